"""Feature matching: the activations that the detector reads become those of a clean image of another class."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ...harness.core.seeds import Draws
from ..base.perturbation import CountingModel, PerturbationInfo
from ..base.target import Observation, TargetDetector
from .base import target_of
from .best_found import Best
from .iterative import Iterative, gradient_of


class FeatureMatching(Iterative):
    """Moves the activations that the detector reads towards those of a clean image of another class.

    It needs no surrogate: an image with ordinary activations has an ordinary score, whatever the score is
    (Sabour et al. 2016). The guide is the clean image of another class whose logits are nearest, the next nearest for
    each restart; every tap's squared distance is divided by its distance at the start.

    Args:
        eps: the budget.
        steps: steps of one run.
        step_size: the first steps' length, by default 2.5 eps / steps; it falls in the second half.
        norm: ``linf`` or ``l2``.
        restarts: guides that are tried, the later ones only for images that still stand.
        images: number of evaluate images that are attacked, from the first on; ``None`` for all.
        large_eps: see :class:`Adaptive`.
        first_run: number of the first run, see :class:`SurrogateAttack`.

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

    def improve(
        self, best: Best, rows: Tensor, model: CountingModel, clean: Tensor, labels: Tensor, draws: Draws
    ) -> None:
        if len(target_of(model).guides().images):
            super().improve(best, rows, model, clean, labels, draws)

    def aims(
        self, model: CountingModel, target: TargetDetector, clean: Tensor, labels: Tensor, restart: int
    ) -> dict[str, Tensor]:
        guides = target.guides()
        pool, classes = guides.images.to(clean.device), guides.labels.to(clean.device)
        distances = torch.cdist(_logits(model, clean), _logits(model, pool))
        distances[labels[:, None] == classes] = torch.inf
        # No further than there are guides of another class.
        ranks = (distances.isfinite().sum(1) - 1).clamp(0, restart)
        chosen = distances.argsort(dim=1, stable=True).gather(1, ranks[:, None]).squeeze(1)
        # A detach is not enough: features of the guides are taken without a graph at all.
        with torch.no_grad():
            aimed = target.observe(model, pool[chosen], surrogate=False).features
            now = target.observe(model, clean, surrogate=False).features
        found = {name: value.detach() for name, value in aimed.items()}
        scales = {
            f"scale:{name}": (now[name] - value).flatten(1).square().sum(1).clamp_min(1e-12)
            for name, value in found.items()
        }
        return found | scales

    def direction(
        self, found: Observation, images: Tensor, lead: Tensor, target: TargetDetector, aims: dict[str, Tensor]
    ) -> Tensor:
        terms = [
            (value - aims[name]).flatten(1).square().sum(1) / aims[f"scale:{name}"]
            for name, value in found.features.items()
        ]
        return gradient_of(-torch.stack(terms).mean(0), images)


def _logits(model: CountingModel, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(images)
    return logits
