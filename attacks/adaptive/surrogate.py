"""PGD on the classifier and the detector's surrogate, and on the classifier alone."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...harness.core.errors import UsageError
from ...harness.core.ranges import Positive
from ..base.geometry import ascent, per_image
from ..base.perturbation import CountingModel, PerturbationInfo
from ..base.target import Observation, TargetDetector
from .base import Ball
from .iterative import Iterative, gradient_of

Relaxation = Literal["annealed", "straight-through"]

# Temperatures of the relaxation at the first and last step: wide gradients first, nearly the true codes at the end.
_HOT, _COLD = 4.0, 0.5
# A margin of logits beyond the boundary before an image counts as fooled when the next step is chosen, so that steps
# on the detector do not at once fall back over it; what is kept needs no such margin.
_SAFE = 0.1


class SurrogateAttack(Iterative):
    """PGD on classifier and surrogate.

    - ``orthogonal`` (Bryniarski et al. 2021): while an image is not fooled, the gradient of the margin without its
      component along the detector's; once it is fooled, that of the detector without its component along the margin's.
      Two backward passes a step.
    - ``selective`` (there too): the same switch without projections; one backward pass.
    - ``joint``: the margin, up to a small lead, plus ``weight`` times minus the suspicion above the clean median, in
      units of the detector's spread (after Carlini and Wagner 2017, arXiv 1705.07263).

    Args:
        eps: the budget.
        method: see above.
        steps: steps of one run.
        step_size: the first steps' length, by default 2.5 eps / steps; it falls in the second half.
        norm: ``linf`` or ``l2``.
        relaxation: ``annealed`` lowers the surrogate's temperature during the run; ``straight-through`` uses hard
            codes forwards and relaxed ones backwards (BPDA). Detectors without a relaxation ignore it.
        weight: of ``joint``.
        restarts: runs per image; from the second on, from a random start, and only for images that still stand.
        images: number of evaluate images that are attacked, from the first on; ``None`` for all.
        large_eps: see :class:`Adaptive`.
        first_run: number of the first run: only run 0 starts at the image itself, so an attack that goes on starts
            elsewhere.

    Raises:
        UsageError: for a parameter out of range, or a detector without a surrogate.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Adaptive PGD",
        kind="adaptive",
        family="adaptive-pgd",
        norm="linf",
        paper="Bryniarski et al. 2021, Evading Adversarial Example Detection Defenses with Orthogonal PGD, "
        "arXiv:2106.15023",
        stochastic=True,
        cost="medium",
        summary="PGD that fools the classifier and lowers the detector's surrogate, judged by the true score.",
    )

    def __init__(
        self,
        eps: float,
        method: Literal["orthogonal", "selective", "joint"] = "orthogonal",
        steps: int = 50,
        step_size: float | None = None,
        norm: Ball = "linf",
        relaxation: Relaxation = "annealed",
        weight: Positive = 1.0,
        restarts: int = 1,
        images: int | None = 200,
        large_eps: float | None = None,
        first_run: int = 0,
    ) -> None:
        super().__init__(eps, steps, step_size, norm, restarts, images, large_eps, first_run)
        self.method = method
        self.relaxation: Relaxation = relaxation
        self.weight = weight

    @property
    def part(self) -> str:
        """The method."""
        return self.method

    def observe(self, model: CountingModel, target: TargetDetector, images: Tensor, step: int) -> Observation:
        share = step / self.steps
        temperature = _HOT ** (1 - share) * _COLD**share
        return target.observe(model, images, temperature, self.relaxation == "straight-through")

    def direction(
        self, found: Observation, images: Tensor, lead: Tensor, target: TargetDetector, aims: dict[str, Tensor]
    ) -> Tensor:
        if found.suspicion is None:
            raise UsageError(
                "The detector offers no surrogate for gradient attacks: use `adaptive`, which also asks its true score."
            )
        fooled = lead.detach() > _SAFE
        if self.method == "selective":
            loss = torch.where(fooled, -found.suspicion / target.scale, lead)
            return gradient_of(loss, images)
        if self.method == "joint":
            excess = ((found.suspicion - target.target_score) / target.scale).clamp_min(-1.0)
            return gradient_of(lead.clamp_max(1.0) - self.weight * excess, images)
        outward = gradient_of(lead, images, keep=True)
        quiet = gradient_of(-found.suspicion, images)
        chosen, other = (
            torch.where(per_image(fooled, images), quiet, outward),
            torch.where(per_image(fooled, images), outward, quiet),
        )
        return _without(chosen, other)


class MarginAttack(Iterative):
    """PGD on the margin alone, each iterate judged by the true score: where attacks without a surrogate start.

    Arguments as for :class:`FeatureMatching`.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Margin PGD, judged by the detector",
        kind="adaptive",
        family="adaptive-margin",
        norm="linf",
        paper="Madry et al. 2018, Towards Deep Learning Models Resistant to Adversarial Attacks, arXiv:1706.06083",
        stochastic=True,
        cost="medium",
        summary="PGD that fools the classifier; kept is the iterate with the lowest true score.",
    )

    @property
    def part(self) -> str:
        """``start``."""
        return "start"

    def direction(
        self, found: Observation, images: Tensor, lead: Tensor, target: TargetDetector, aims: dict[str, Tensor]
    ) -> Tensor:
        return gradient_of(lead, images)


def _without(direction: Tensor, other: Tensor) -> Tensor:
    """``direction`` without its component along ``other``, image by image."""
    # Scaled first: squares of tiny gradients vanish in float32.
    unit = ascent(other, "l2")
    along = (direction * unit).flatten(1).sum(1)
    return direction - per_image(along, direction) * unit
