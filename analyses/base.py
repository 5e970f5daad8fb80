"""What an analysis is, and what it is given: a model, its clean and perturbed images with their traces, seeded draws.

An analysis answers a question about a model's codes and says how sure it is: controls (an untrained network, noise of
the same size, a permutation null) belong to it. It returns :class:`~.findings.Findings`; the harness stores them as a
cell, writes its tables, and draws its page.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ..harness.core.registry import ANALYSES
from ..harness.core.seeds import generator
from ..harness.tracing.traced_model import Instruments
from ..harness.tracing.traces import Need, Traces
from .findings import Findings


@dataclass(frozen=True)
class AnalysisInfo:
    """What people should know about an analysis.

    Attributes:
        title: a short human name.
        paper: authors, year, title and an identifier.
        summary: one sentence for ``aftershock list``.
    """

    title: str
    paper: str = ""
    summary: str = ""


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

    def __call__(self, draw: int = 0) -> Instruments:
        """The network of one draw; raises :class:`~..harness.core.errors.UsageError` if its architecture is unknown."""


@dataclass(frozen=True, eq=False)
class Material:
    """What an analysis works with.

    Attributes:
        instruments: the model, in eval mode on its device, its taps, and how to trace other images.
        untrained: the same architecture with freshly drawn weights: a control for what the architecture alone does.
        classes: names of the classes.
        fit: clean images of the train split.
        evaluate: clean images of the test split, disjoint from those.
        perturbed: by label; empty unless the analysis asks for them (:attr:`Analysis.reads_perturbed`).
        seed: of the run and this analysis.
        progress: told the share that is done, from 0 to 1.
    """

    instruments: Instruments
    untrained: Untrained
    classes: tuple[str, ...]
    fit: ImageSet
    evaluate: ImageSet
    perturbed: Mapping[str, PerturbedSet]
    seed: int
    progress: Callable[[float], None] = lambda share: None

    def draws(self, *names: str | int) -> torch.Generator:
        """A seeded generator (CPU) of its own for each purpose."""
        return generator(self.seed, "analysis", *names)

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next((p.device for p in self.instruments.model.parameters()), torch.device("cpu"))


class Analysis(ABC):
    """Base of every analysis; the constructor's parameters are what a suite may set.

    Parameters that bound the work (images, taps, steps) have defaults for real data; small ones make it run in
    seconds.
    """

    info: ClassVar[AnalysisInfo]
    reads_perturbed: ClassVar[bool] = False

    @property
    @abstractmethod
    def needs(self) -> tuple[Need, ...]:
        """The codes that the traces shall hold; logits are always there."""

    @abstractmethod
    def study(self, material: Material) -> Findings:
        """Do the work.

        Raises:
            UsageError: where the question makes no sense for this model or these images, with the reason.
        """


register = ANALYSES.register
