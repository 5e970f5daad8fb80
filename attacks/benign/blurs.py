"""The blurs among the common corruptions (Hendrycks & Dietterich 2019)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ...harness.core.seeds import Draws
from ..base.perturbation import PerturbationInfo
from .corruptions import Corruption, describe
from .filters import convolve, gaussian_blur, gaussian_weights, length_scale, numbers, pixel_grid, sample, trail, zoomed


class GaussianBlur(Corruption):
    """Convolution with a Gaussian."""

    info: ClassVar[PerturbationInfo] = describe("Gaussian blur", "blur", "A Gaussian blur.", stochastic=False)

    def corrupt(self, images: Tensor, draws: Draws) -> Tensor:
        return gaussian_blur(images, (0.4, 0.6, 0.7, 0.8, 1.0)[self.severity - 1] * length_scale(images))


class DefocusBlur(Corruption):
    """Convolution with a disc whose edge is softened by a small Gaussian."""

    info: ClassVar[PerturbationInfo] = describe("Defocus blur", "blur", "A lens out of focus.", stochastic=False)

    def corrupt(self, images: Tensor, draws: Draws) -> Tensor:
        radius, soft = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))[self.severity - 1]
        radius *= length_scale(images)
        reach = math.floor(radius)
        offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
        disc = (offsets[:, None] ** 2 + offsets**2 <= radius**2).double()
        weights = gaussian_weights(soft, 1)
        return convolve(convolve(convolve(images, disc / disc.sum()), weights[:, None]), weights[None, :])


class GlassBlur(Corruption):
    """Every pixel takes the value of a random neighbour, between two slight Gaussian blurs.

    Published are swaps along a scan of the image and three settings that do not rank by strength; here all pixels
    look at once, each within a square, and its half side alone grows with the severity.
    """

    info: ClassVar[PerturbationInfo] = describe("Glass blur", "blur", "As through frosted glass.")

    def corrupt(self, images: Tensor, draws: Draws) -> Tensor:
        scale = length_scale(images)
        reach = (0.6, 0.75, 0.95, 1.2, 1.6)[self.severity - 1] * scale
        y, x = pixel_grid(images)
        offsets = draws.uniform(images.new_empty(len(images), 2, *images.shape[-2:])).double() * 2 - 1
        offsets = (offsets * reach).round()
        sigma = 0.3 * scale
        return gaussian_blur(sample(gaussian_blur(images, sigma), y + offsets[:, 0], x + offsets[:, 1]), sigma)


class MotionBlur(Corruption):
    """A trail along a random direction within 45 degrees of the horizontal.

    Published levels 3 and 4 differ by weights of about 1e-9 only; here level 4 has a width of its own.
    """

    info: ClassVar[PerturbationInfo] = describe("Motion blur", "blur", "The camera moved.")

    def corrupt(self, images: Tensor, draws: Draws) -> Tensor:
        radius, sigma = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.25), (9, 2.5))[self.severity - 1]
        scale = length_scale(images)
        angles = (numbers(images, 1, draws)[:, 0].double() - 0.5) * (math.pi / 2)
        return trail(images, sigma * scale, radius * scale, angles)


class ZoomBlur(Corruption):
    """The mean over zooms in steps of 0.01 from 1 to a largest factor."""

    info: ClassVar[PerturbationInfo] = describe(
        "Zoom blur", "blur", "The camera moved towards the object.", stochastic=False
    )

    def corrupt(self, images: Tensor, draws: Draws) -> Tensor:
        steps = (5, 10, 15, 20, 25)[self.severity - 1]
        # The published mean holds the image once more than the zoom by 1 that the range begins with.
        total = images.clone()
        for step in range(steps + 1):
            total += zoomed(images, 1 + step / 100)
        return total / (steps + 2)
