"""The weather among the common corruptions (Hendrycks & Dietterich 2019), all of it drawn, without image files."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ...harness.core.seeds import Draws
from ..base.perturbation import PerturbationInfo
from .corruptions import Corruption, describe
from .filters import gaussian_blur, gaussian_weights, length_scale, numbers, plasma, trail, zoomed


def tint(images: Tensor, red: float, green: float, blue: float) -> Tensor:
    """A colour for images of three channels, its brightness (Rec. 601) for all channels of others, (1, c, 1, 1)."""
    channels = images.shape[1]
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    return images.new_tensor((red, green, blue) if channels == 3 else (grey,) * channels).view(1, -1, 1, 1)


class Fog(Corruption):
    """A plasma fractal added to the image, and the sum brought back to the image's range."""

    info: ClassVar[PerturbationInfo] = describe("Fog", "weather", "Fog, a plasma fractal.")

    def corrupt(self, images: Tensor, draws: Draws) -> Tensor:
        amount, decay = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))[self.severity - 1]
        brightest = images.amax((1, 2, 3), keepdim=True)
        # A black image stays black by this rule; fog over it would be grey, but the published form is kept.
        return (images + amount * plasma(images, decay, draws)) * brightest / (brightest + amount)


class Frost(Corruption):
    """Needles and flakes of ice over the image, denser in places.

    Published are photographs of frost; here the crystals are ridges of plasma fractals, and the image fades in
    proportion to the ice, so that severities rank.
    """

    info: ClassVar[PerturbationInfo] = describe("Frost", "weather", "Ice crystals, ridges of plasma fractals.")

    def corrupt(self, images: Tensor, draws: Draws) -> Tensor:
        amount = (0.2, 0.3, 0.4, 0.5, 0.6)[self.severity - 1]
        # Where a fractal crosses its middle value runs a thin line: a needle.
        ridges = [(1 - (2 * plasma(images, 1.7, draws) - 1).abs()) ** 8 for _ in range(3)]
        needles = torch.maximum(torch.maximum(ridges[0], ridges[1]), ridges[2])
        density = plasma(images, 2.2, draws)
        ice = (0.3 + 0.7 * needles) * (0.4 + 0.6 * density) * tint(images, 0.88, 0.95, 1.0)
        return (1 - amount / 2) * images + amount * ice


class Snow(Corruption):
    """Flakes with trails, and the rest of the image whitened.

    Level 2 has a threshold of 0.55, published is 0.5, with which it would be as strong as level 3.
    """

    info: ClassVar[PerturbationInfo] = describe("Snow", "weather", "Falling snow and a whiter scene.")

    def corrupt(self, images: Tensor, draws: Draws) -> Tensor:
        loc, std, zoom, threshold, radius, sigma, kept = (
            (0.1, 0.2, 1.0, 0.60, 8, 3, 0.95),
            (0.1, 0.2, 1.0, 0.55, 10, 4, 0.90),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.90),
            (0.25, 0.3, 2.25, 0.60, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.80),
        )[self.severity - 1]
        scale = length_scale(images)
        angles = (numbers(images, 1, draws)[:, 0].double() + 0.5) * (math.pi / 2)
        flakes = zoomed(loc + std * draws.normal(images[:, :1]), zoom * scale)
        flakes = torch.where(flakes < threshold, torch.zeros_like(flakes), flakes).clamp_(0, 1)
        flakes = trail(flakes, sigma * scale, radius * scale, angles)
        grey = images.mean(1, keepdim=True) * 1.5 + 0.5
        whiter = kept * images + (1 - kept) * torch.maximum(images, grey)
        return whiter + flakes + flakes.flip((2, 3))


class Spatter(Corruption):
    """Drops of water on the lens, which brighten.

    Simpler than published: drops are where smooth noise is high, without the light at a drop's edge, and all five
    levels are water, since mud (published levels 4 and 5) hardly shows on dark images and so would not rank.
    """

    info: ClassVar[PerturbationInfo] = describe("Spatter", "weather", "Drops of water on the lens.")

    def corrupt(self, images: Tensor, draws: Draws) -> Tensor:
        covered = (0.06, 0.10, 0.15, 0.21, 0.28)[self.severity - 1]
        scale = length_scale(images)
        sigma = 0.9 * scale
        noise = draws.normal(images.new_empty(len(images), 1, *images.shape[-2:]))
        # Smoothing leaves white noise the standard deviation sum(w ** 2), so the threshold is a normal quantile.
        level = gaussian_blur(noise, sigma) / float(gaussian_weights(sigma).square().sum())
        threshold = float(torch.special.ndtri(torch.tensor(1 - covered, dtype=torch.float64)))
        drops = gaussian_blur((level > threshold).to(images), 0.4 * scale)
        return images + 0.5 * drops * tint(images, 0.69, 0.93, 0.93)
