"""Feature matching: the activations that the detector reads become those of a clean image of another class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...harness.core.ranges import Count, Natural, Positive
from ...harness.core.seeds import Draws
from ..base.perturbation import CountingModel, PerturbationInfo
from ..base.target import Observation, TargetDetector
from .base import target_of
from .best_found import Best
from .features import described
from .iterative import Carried, Iterative, Pace, gradient_of
from .pixels import Ball, Pixels

Near = Literal["logits", "codes"]


class FeatureMatching(Iterative):
    """Moves the activations that the detector reads towards those of a clean image of another class.

    It needs no surrogate: an image with ordinary activations has an ordinary score, whatever the score is
    (Sabour et al. 2016). The guide is a clean image of another class, the nearest one first, the next nearest for each
    restart; every tap's squared distance is divided by its distance at the start.

    Args:
        eps: the budget.
        steps: steps of one run.
        step_size: see :class:`~.iterative.Iterative`.
        norm: ``linf`` or ``l2``.
        restarts: guides that are tried, the later ones only for images that still stand.
        images: number of evaluate images that are attacked, from the first on; ``None`` for all.
        large_eps: see :class:`~.base.Adaptive`.
        first_run: number of the first run, see :class:`~.iterative.Iterative`.
        pace: see :class:`~.iterative.Iterative`.
        pixels: see :class:`~.base.Adaptive`.
        near: where guides are near: in their ``logits``, or in what the detector reads (``codes``: mean and spread of
            every map at its taps, in units of the guides' own spread).

    Raises:
        UsageError: for a parameter out of range.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Feature matching",
        kind="adaptive",
        family="feature-matching",
        norm="linf",
        paper="Sabour, Cao, Faghri, Fleet 2016, Adversarial Manipulation of Deep Representations, arXiv:1511.05122",
        stochastic=True,
        cost="medium",
        summary="Imitates the activations of a clean image of another class; needs no surrogate.",
    )

    def __init__(
        self,
        eps: float,
        steps: Count = 50,
        step_size: Positive | None = None,
        norm: Ball = "linf",
        restarts: Count = 1,
        images: int | None = 200,
        large_eps: float | None = None,
        first_run: Natural = 0,
        pace: Pace = "falling",
        pixels: Pixels = "any",
        near: Near = "logits",
    ) -> None:
        super().__init__(eps, steps, step_size, norm, restarts, images, large_eps, first_run, pace, "any", pixels)
        self.near: Near = near

    @property
    def part(self) -> str:
        """The name, and what is not as by default."""
        return "feature-matching" + ("-codes" if self.near == "codes" else "") + self.how

    def improve(
        self, best: Best, rows: Tensor, model: CountingModel, clean: Tensor, labels: Tensor, draws: Draws
    ) -> None:
        if len(target_of(model).guides().images):
            super().improve(best, rows, model, clean, labels, draws)

    def observe(self, model: CountingModel, target: TargetDetector, images: Tensor, step: int) -> Observation:
        return target.observe(model, images, surrogate=False)

    def carried(
        self, model: CountingModel, target: TargetDetector, clean: Tensor, labels: Tensor, run: int
    ) -> Carried:  # fmt: skip
        guides = target.guides()
        pool, classes = guides.images.to(clean.device), guides.labels.to(clean.device)
        # A detach is not enough: features of the guides are taken without a graph at all.
        with torch.no_grad():
            now = target.observe(model, clean, surrogate=False)
            distances = self._distances(model, target, now, pool)
            distances[labels[:, None] == classes] = torch.inf
            # No further than there are guides of another class.
            ranks = (distances.isfinite().sum(1) - 1).clamp(0, run)
            chosen = distances.argsort(dim=1, stable=True).gather(1, ranks[:, None]).squeeze(1)
            aimed = target.observe(model, pool[chosen], surrogate=False).features
        found = {name: value.detach() for name, value in aimed.items()}
        return found | _scales(now.features, found)

    def _distances(self, model: CountingModel, target: TargetDetector, now: Observation, pool: Tensor) -> Tensor:
        """How far each guide is from each image, (n, guides)."""
        if self.near == "logits":
            return torch.cdist(now.logits, model(pool))
        there = described(target.observe(model, pool, surrogate=False))
        spread = there.std(0).clamp_min(1e-6)
        return torch.cdist(described(now) / spread, there / spread)

    def direction(
        self, found: Observation, images: Tensor, lead: Tensor, target: TargetDetector, carried: Carried
    ) -> Tensor:
        terms = [
            (value - carried[name]).flatten(1).square().sum(1) / carried[f"scale:{name}"]
            for name, value in found.features.items()
        ]
        return gradient_of(-torch.stack(terms).mean(0), images)


def _scales(now: Mapping[str, Tensor], aimed: Mapping[str, Tensor]) -> Carried:
    """Return each image's squared distance to its guide, by tap."""
    return {
        f"scale:{name}": (now[name] - value).flatten(1).square().sum(1).clamp_min(1e-12)
        for name, value in aimed.items()
    }
