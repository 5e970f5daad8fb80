"""What every attack that knows a detector has in common: its budget, its images, and its check at a large budget."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ...harness.core.errors import UsageError
from ...harness.core.ranges import Count
from ...harness.core.seeds import Draws
from ..base import parameters as checks
from ..base.perturbation import CountingModel, Norm, Perturbation, PerturbationInfo
from ..base.target import TargetDetector
from .best_found import Best
from .pixels import AnyPixels, Ball, EightBits, Grid, Pixels, VaryingPixels


def target_of(model: CountingModel) -> TargetDetector:
    """Return the detector that an attack is made against; raises :class:`UsageError` where there is none."""
    if model.target is None:
        raise UsageError("An adaptive attack is made against a detector: use it in a suite that has detectors.")
    return model.target


class InBall(Perturbation):
    """Base of what stays within a ball around each image.

    Args:
        eps: its radius.
        norm: ``linf`` or ``l2``.

    Raises:
        UsageError: for a parameter out of range.
    """

    def __init__(self, eps: float, norm: Ball) -> None:
        self.ball: Ball = norm
        self.eps: float = checks.budget(eps, norm)

    @property
    def norm(self) -> Norm:
        """The norm of the ball."""
        return self.ball


class Adaptive(InBall):
    """Base of the attacks that are made against one detector.

    Args:
        eps: the budget.
        norm: ``linf`` or ``l2``.
        images: number of evaluate images that are attacked, from the first on; ``None`` for all.
        large_eps: the budget at which the attack is checked: it must fool the model and evade the detector on every
            image there, or the detector's row is flagged ``adaptive-incomplete``; ``None``: eight times ``eps``, for
            L-inf at most 0.5, where every image can become plain grey.
        pixels: what is shown of an iterate: ``any`` value, the levels of an ``8-bit`` file, or only what is ``varying``
            among clean images; gradients are taken at what is shown, steps from the iterate itself.

    Raises:
        UsageError: for a parameter out of range.
    """

    info: ClassVar[PerturbationInfo]

    def __init__(
        self, eps: float, norm: Ball = "linf", images: Count | None = 200, large_eps: float | None = None,
        pixels: Pixels = "any",
    ) -> None:  # fmt: skip
        super().__init__(eps, norm)
        self.images = None if images is None else images
        self.pixels: Pixels = pixels
        default = max(min(8 * self.eps, 0.5), self.eps) if norm == "linf" else 8 * self.eps
        self.large_eps = default if large_eps is None else checks.budget(large_eps, norm)
        # A check at a smaller budget than the default is none.
        self.is_checked = self.large_eps >= default
        if self.large_eps < self.eps:
            raise UsageError(f"large_eps = {large_eps!r} is below eps = {eps!r}: the check needs a larger budget.")

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """See the base; the result is the best found by the true score."""
        best = Best(images, target_of(model))
        try:
            self.improve(best, torch.arange(len(images), device=images.device), model, images, labels, draws)
        finally:
            # Also where a limit ends it: what was found by then counts.
            model.credits, model.late, model.told, model.partial = best.credits, best.late, best.told, best.images
            model.asked, model.asked_score = best.asked, best.asked_score
        return best.images

    @property
    def part(self) -> str:
        """What this attack is called as a part of another."""
        return self.info.family

    @abstractmethod
    def improve(
        self, best: Best, rows: Tensor, model: CountingModel, clean: Tensor, labels: Tensor, draws: Draws
    ) -> None:
        """Search for some rows (int64) of all images, labels and draws, and offer what is found to ``best``."""

    def grid(self, target: TargetDetector) -> Grid:
        """Return what is shown of this attack's iterates."""
        if self.pixels == "8-bit":
            return EightBits(self.ball)
        return VaryingPixels(target.guides()) if self.pixels == "varying" else AnyPixels()
