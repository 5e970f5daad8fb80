"""What a fitted detector says about images now: one instrumented pass, and the extra ones that it declares."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..detectors.base import Detector
from .recorder import input_gradient, record
from .seeds import derive_seed, generator
from .trace import Need, TapInfo, Traces, capped


@dataclass(frozen=True, eq=False)
class Instruments:
    """A model with everything that is needed to trace it.

    Attributes:
        model: images in [0, 1] to logits.
        taps: as discovered.
        modules: the named modules among them.
        root: the part of the model whose module paths name the taps.
        bits_per_tap: how many bits of a tap are kept; ``None`` for all.
    """

    model: nn.Module
    taps: tuple[TapInfo, ...]
    modules: tuple[str, ...] = ()
    root: nn.Module | None = None
    bits_per_tap: int | None = None

    def needs(self, detector: Detector) -> tuple[Need, ...]:
        """What a detector reads of this model, capped as it is stored."""
        return tuple(capped(need, self.bits_per_tap) for need in detector.needs)

    def traces(self, detector: Detector, images: Tensor, seed: int = 0) -> Traces:
        """Traces of images (n, channels, height, width) in [0, 1], as :meth:`Detector.score` gets them, on the CPU.

        Args:
            detector: whose codes, views and gradients are recorded.
            images: on any device.
            seed: what the transforms of views draw from.
        """
        needs = self.needs(detector)
        found = record(self.model, images, self.taps, needs, self.modules, self.root)
        views = {}
        for view in detector.views:
            changed = view.transform(images.cpu().clone(), generator(seed, "view", view.name))
            seen = record(
                self.model, changed, self.taps, needs, self.modules, self.root, dropout=view.dropout,
                seed=derive_seed(seed, "dropout", view.name),
            )  # fmt: skip
            views[view.name] = Traces(seen.logits, self.taps, seen.codes, needs)
        gradients = {g.name: input_gradient(self.model, images, g.objective) for g in detector.gradients}
        return Traces(found.logits, self.taps, found.codes, needs, views, gradients)

    def score(self, detector: Detector, images: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Logits (n, classes) and scores (n,), float64, on the CPU."""
        traces = self.traces(detector, images, seed)
        with torch.no_grad():
            return traces.logits, detector.score(traces).detach().double().cpu()


def fit_traces(traces: Traces, labels: Tensor, draws: torch.Generator) -> Traces:
    """Traces as :meth:`Detector.fit` gets them: with labels and a generator."""
    return replace(traces, label_rows=labels, random=draws)
