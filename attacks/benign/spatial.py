"""Rotations and translations of the whole image, bilinear, with the outside filled from the image itself."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from ...harness.core.ranges import Portion
from ...harness.core.seeds import Draws
from ..base.perturbation import CountingModel, Perturbation, PerturbationInfo
from .filters import Padding, numbers, pixel_grid, sample

_PAPER = "Engstrom, Tran, Tsipras, Schmidt, Madry 2019, arXiv:1712.02779"


class Rotate(Perturbation):
    """Rotation about the image's centre by a given angle, left or right at random for each image.

    Args:
        degrees: the angle, from 0 (nothing changes) to 180.
        padding: what fills the corners: ``reflect`` mirrors the image at its edge pixels, ``border`` repeats them.

    Raises:
        UsageError: for another value.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Rotation",
        kind="corruption",
        family="spatial",
        paper=_PAPER,
        gradients=False,
        stochastic=True,
        summary="Rotates the image by a fixed angle, left or right at random.",
    )

    def __init__(self, degrees: Annotated[float, Ge(0), Le(180)] = 15.0, padding: Padding = "reflect") -> None:
        self.degrees = degrees
        self.padding: Padding = padding

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        sign = draws.signs(images.new_empty(len(images), 1, 1)).double()
        if self.degrees == 0:
            return images.clone()
        y, x = pixel_grid(images)
        middle_y, middle_x = (images.shape[-2] - 1) / 2, (images.shape[-1] - 1) / 2
        y, x = y - middle_y, x - middle_x
        angle = math.radians(self.degrees)
        sine = sign * math.sin(angle)
        rows = y * math.cos(angle) - x * sine + middle_y
        columns = x * math.cos(angle) + y * sine + middle_x
        return sample(images, rows, columns, self.padding).clamp_(0, 1)


class Translate(Perturbation):
    """Translation by a given part of the shorter side, in a random direction for each image.

    Args:
        fraction: the distance over the shorter side, from 0 (nothing changes) to 1.
        padding: what fills the edge: ``reflect`` mirrors the image at its edge pixels, ``border`` repeats them.

    Raises:
        UsageError: for another value.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Translation",
        kind="corruption",
        family="spatial",
        paper=_PAPER,
        gradients=False,
        stochastic=True,
        summary="Moved by a fixed distance in a random direction.",
    )

    def __init__(self, fraction: Portion = 0.1, padding: Padding = "reflect") -> None:
        self.fraction = fraction
        self.padding: Padding = padding

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        angle = numbers(images, 1, draws).double()[:, :, None] * (2 * math.pi)
        distance = self.fraction * min(images.shape[-2:])
        y, x = pixel_grid(images)
        moved = sample(images, y - distance * torch.sin(angle), x - distance * torch.cos(angle), self.padding)
        return moved.clamp_(0, 1)
