"""How an iterate moves along a direction: with steps that fall, or with AutoPGD's momentum and step control."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..base.geometry import Radius, ascent, per_image, step_within
from ..native.autopgd import NEW, RHO, checkpoints
from .pixels import Ball


class Walk(ABC):
    """The iterates of a run, each within its budget.

    Args:
        images: where the run starts, float32 in [0, 1], (n, channels, height, width).
        clean: the images attacked, of the same shape.
        eps: the budget in ``norm``, of all images or of each (n,).
        norm: ``linf`` or ``l2``.
        steps: of the run.
        size: the length of the first step, likewise.
    """

    def __init__(self, images: Tensor, clean: Tensor, eps: Radius, norm: Ball, steps: int, size: Radius) -> None:
        self.images, self.clean, self.eps, self.norm, self.steps, self.size = images, clean, eps, norm, steps, size

    @abstractmethod
    def move(self, step: int, direction: Tensor, value: Tensor, going: Tensor) -> None:
        """Go one step on.

        Args:
            step: its number, from 0.
            direction: where to go, of the images' shape.
            value: how far each image has come, (n,), the more the better.
            going: which images still move, bool (n,); what is done stays where it is until it leaves.
        """

    def keep(self, going: Tensor) -> None:
        """Drop the other images."""
        self.images, self.clean = self.images[going], self.clean[going]
        self.eps, self.size = _of(self.eps, going), _of(self.size, going)

    def _within(self, images: Tensor, step: Tensor) -> Tensor:
        return step_within(images, step, self.clean, self.eps, self.norm)


class FallingSteps(Walk):
    """Whole steps in the first half, then falling linearly to a tenth."""

    def move(self, step: int, direction: Tensor, value: Tensor, going: Tensor) -> None:
        size = self.size * max(0.1, min(1.0, 2 * (self.steps - step) / self.steps))
        length = per_image(size, direction) if isinstance(size, Tensor) else size
        moved = self._within(self.images, length * ascent(direction, self.norm))
        self.images = torch.where(per_image(going, moved), moved, self.images)


class HalvingSteps(Walk):
    """Croce & Hein 2020 (arXiv:2003.01690, algorithm 1): momentum; at a checkpoint an image whose steps did not pay
    halves them and goes back to the best iterate of the run.
    """

    def __init__(self, images: Tensor, clean: Tensor, eps: Radius, norm: Ball, steps: int, size: Radius) -> None:
        super().__init__(images, clean, eps, norm, steps, size)
        n, device = len(images), images.device
        self._previous, self._best, self._uphill = images, images, torch.zeros_like(images)
        self._length = size if isinstance(size, Tensor) else torch.full((n,), size, device=device)
        self._value = self._best_value = torch.full((n,), -torch.inf, dtype=torch.float64, device=device)
        self._at_checkpoint, self._rises = self._best_value, torch.zeros(n, device=device)
        self._halved = torch.ones(n, dtype=torch.bool, device=device)
        self._looks, self._looked = checkpoints(steps), 0

    def move(self, step: int, direction: Tensor, value: Tensor, going: Tensor) -> None:
        value = value.double()
        self._rises = self._rises + (value > self._value)
        better = value > self._best_value
        self._value, self._best_value = value, torch.where(better, value, self._best_value)
        self._best = torch.where(per_image(better, direction), self.images, self._best)
        self._uphill = torch.where(per_image(better, direction), direction, self._uphill)
        if step in self._looks:
            direction = self._reconsider(step, direction)
        length = per_image(self._length, direction) * ascent(direction, self.norm)
        reached = self._within(self.images, length)
        # The first step has none before it to repeat.
        new = NEW if step else 1.0
        mixed = new * (reached - self.images) + (1 - new) * (self.images - self._previous)
        moved = self._within(self.images, mixed)
        still = per_image(going, moved)
        self._previous, self.images = self.images, torch.where(still, moved, self.images)

    def keep(self, going: Tensor) -> None:
        super().keep(going)
        for name in (
            "_previous", "_best", "_uphill", "_length", "_value", "_best_value", "_at_checkpoint", "_rises", "_halved",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name)[going])

    def _reconsider(self, step: int, direction: Tensor) -> Tensor:
        unchanged = ~self._halved & (self._best_value <= self._at_checkpoint)
        halve = (self._rises < RHO * (step - self._looked)) | unchanged
        back = per_image(halve, direction)
        self._length = torch.where(halve, self._length / 2, self._length)
        self.images = torch.where(back, self._best, self.images)
        self._value = torch.where(halve, self._best_value, self._value)
        self._halved, self._at_checkpoint, self._looked = halve, self._best_value, step
        self._rises = torch.zeros_like(self._rises)
        return torch.where(back, self._uphill, direction)


def _of(values: Radius, rows: Tensor) -> Radius:
    return values[rows] if isinstance(values, Tensor) else values
