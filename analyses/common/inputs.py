"""What an analysis is given: a model, its clean and perturbed images with their traces, seeded draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...harness.core.errors import UsageError
from ...harness.core.seeds import generator
from ...harness.tracing.traced_model import TracedModel
from ...harness.tracing.traces import Need, Traces
from .recording import record_rows


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and their traces, row by row.

    Attributes:
        traces: with ``labels``, and the codes that the analysis needs; may be larger than memory: read in batches.
        read: a run of rows to images, float32 in [0, 1], (n, channels, height, width), on the CPU.
    """

    traces: Traces
    read: Callable[[slice], Tensor]

    def __len__(self) -> int:
        return len(self.traces)


@dataclass(frozen=True, eq=False)
class PerturbedSet:
    """What one perturbation made of evaluate images that the model gets right.

    Attributes:
        label: the perturbation's.
        kind: noise, corruption or attack.
        images: the perturbed images; their ``labels`` are the true classes.
        rows: int64 (n,), their positions among the evaluate images.
        success: bool (n,), the prediction turned.
        control: noise of the same norm as each success, which left the prediction as it was.
        control_rows: int64 (k,), their positions among the evaluate images.
    """

    label: str
    kind: str
    images: ImageSet
    rows: Tensor
    success: Tensor
    control: ImageSet
    control_rows: Tensor


class Untrained(Protocol):
    """Makes the untrained network: other draws of its weights by other numbers."""

    def __call__(self, draw: int = 0) -> TracedModel:
        """The network of one draw; raises :class:`UsageError` for a model whose architecture nobody knows."""


@dataclass(frozen=True, eq=False)
class AnalysisInput:
    """What an analysis works with.

    Attributes:
        traced_model: the model, in eval mode on its device, its taps, and how to trace other images.
        untrained: the same architecture with freshly drawn weights: a control for what the architecture alone does.
        classes: names of the classes.
        fit: clean images of the train split.
        evaluate: clean images of the test split, disjoint from those.
        perturbed: by label; empty unless the analysis asks for them
            (:attr:`~aftershock.analyses.base.Analysis.reads_perturbed`).
        seed: of the run and this analysis; of the run alone for one that is part of every run.
        progress: told the share that is done, from 0 to 1.
        prepared: what an analysis that is part of every run learned of the model before; ``None`` for others.
    """

    traced_model: TracedModel
    untrained: Untrained
    classes: tuple[str, ...]
    fit: ImageSet
    evaluate: ImageSet
    perturbed: Mapping[str, PerturbedSet]
    seed: int
    progress: Callable[[float], None] = lambda share: None
    prepared: object = None

    def untrained_or_reason(self) -> tuple[TracedModel | None, str]:
        """The untrained network and an empty text, or ``None`` and why there is none."""
        try:
            return self.untrained(), ""
        except UsageError as error:
            return None, str(error)

    def codes(self, network: TracedModel, images: ImageSet, rows: Tensor, needs: Sequence[Need]) -> Traces:
        """Logits and codes that a network has of some images, all in memory, in the order of ``rows``.

        Args:
            network: any network of the model's taps, as the untrained one.
            images: whose pixels are read in batches of 256.
            rows: int64 (n,), their positions in ``images``.
            needs: which codes; :func:`~.recording.tap_groups` says how many taps' fit into a bound of memory.
        """
        return record_rows(images.read, len(images), rows, lambda part: network.codes(needs, part))

    def draws(self, *names: str | int) -> torch.Generator:
        """A seeded generator (CPU) of its own for each purpose."""
        return generator(self.seed, "analysis", *names)

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next((p.device for p in self.traced_model.model.parameters()), torch.device("cpu"))
