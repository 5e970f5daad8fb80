"""Common corruptions (Hendrycks & Dietterich 2019) in five severities: their base, the noises and the digital ones.

Settings are those published for 32-pixel images where they rank by strength; where they do not, the class says what
differs. Lengths in pixels grow with the shorter side above 32 pixels (:func:`~.filters.length_scale`). With the
same seed all severities of a corruption draw the same numbers. Images of any size and channel count are taken.
"""

from __future__ import annotations

import io
from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...harness.core.errors import UsageError
from ...harness.core.seeds import Draws
from ..base.perturbation import CountingModel, Perturbation, PerturbationInfo
from .filters import gaussian_blur, gaussian_weights, length_scale, numbers, pixel_grid, sample
from .noise import impulses, photons

Group = Literal["noise", "blur", "weather", "digital"]


def describe(title: str, group: Group, summary: str, stochastic: bool = True) -> PerturbationInfo:
    """Return the info of a common corruption."""
    return PerturbationInfo(
        title=title,
        kind="corruption",
        family=f"corruption-{group}",
        paper="Hendrycks, Dietterich 2019, arXiv:1903.12261",
        gradients=False,
        stochastic=stochastic,
        summary=summary,
    )


class Corruption(Perturbation):
    """Base of the common corruptions, which do not look at the model.

    Args:
        severity: 1 (weakest) to 5.

    Raises:
        UsageError: for another severity.
    """

    def __init__(self, severity: int = 3) -> None:
        if isinstance(severity, bool) or not isinstance(severity, int) or not 1 <= severity <= 5:
            raise UsageError(f"severity = {severity!r}: give a whole number from 1 to 5.")
        self.severity = severity

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        return self.corrupt(images.detach(), draws).clamp(0, 1)

    @abstractmethod
    def corrupt(self, images: Tensor, draws: Draws) -> Tensor:
        """Return the corrupted images, (n, channels, height, width), not yet clipped; ``images`` stay as they are."""


class GaussianNoise(Corruption):
    """Independent normal noise."""

    info: ClassVar[PerturbationInfo] = describe("Gaussian noise", "noise", "Normal noise, as of a poor sensor.")

    def corrupt(self, images: Tensor, draws: Draws) -> Tensor:
        return images + (0.04, 0.06, 0.08, 0.09, 0.10)[self.severity - 1] * draws.normal(images)


class ShotNoise(Corruption):
    """Poisson noise of few photons."""

    info: ClassVar[PerturbationInfo] = describe("Shot noise", "noise", "Poisson noise, as of little light.")

    def corrupt(self, images: Tensor, draws: Draws) -> Tensor:
        return photons(images, (500, 250, 100, 75, 50)[self.severity - 1], draws)


class ImpulseNoise(Corruption):
    """Elements, each channel by itself, that become 0 or 1."""

    info: ClassVar[PerturbationInfo] = describe("Impulse noise", "noise", "Salt and pepper in each channel.")

    def corrupt(self, images: Tensor, draws: Draws) -> Tensor:
        return impulses(images, (0.01, 0.02, 0.03, 0.05, 0.07)[self.severity - 1], draws, whole_pixels=False)


class SpeckleNoise(Corruption):
    """Normal noise in proportion to the brightness."""

    info: ClassVar[PerturbationInfo] = describe("Speckle noise", "noise", "Noise in proportion to the brightness.")

    def corrupt(self, images: Tensor, draws: Draws) -> Tensor:
        return images + images * (0.06, 0.10, 0.12, 0.16, 0.20)[self.severity - 1] * draws.normal(images)


class Brightness(Corruption):
    """A higher value in HSV with hue and saturation kept; the value is the largest channel, of any number of them."""

    info: ClassVar[PerturbationInfo] = describe(
        "Brightness", "digital", "Brighter, hue and saturation kept.", stochastic=False
    )

    def corrupt(self, images: Tensor, draws: Draws) -> Tensor:
        value = images.amax(1, keepdim=True)
        brighter = (value + (0.05, 0.10, 0.15, 0.20, 0.30)[self.severity - 1]).clamp_max(1)
        return torch.where(value > 0, images / value.clamp_min(torch.finfo(value.dtype).tiny), 1.0) * brighter


class Contrast(Corruption):
    """Distances from each channel's mean shrink."""

    info: ClassVar[PerturbationInfo] = describe(
        "Contrast", "digital", "Nearer to each channel's mean.", stochastic=False
    )

    def corrupt(self, images: Tensor, draws: Draws) -> Tensor:
        # Float64 sums: the mean must not depend on how a reduction over the batch is cut up.
        mean = images.double().mean((2, 3), keepdim=True).float()
        return mean + (0.75, 0.50, 0.40, 0.30, 0.15)[self.severity - 1] * (images - mean)


class Saturate(Corruption):
    """A higher saturation in HSV with hue and value kept; colourless pixels stay as they are.

    The published levels 1 and 2 wash colours out, which ranks them above level 3; here all five go one way, and the
    last three are the published ones. Images of one channel have no colour, so it does not work on them.
    """

    info: ClassVar[PerturbationInfo] = describe("Saturation", "digital", "Stronger colours.", stochastic=False)

    def inapplicable(self, shape: tuple[int, int, int], classes: int) -> str | None:
        if shape[0] == 1:
            return "Saturation needs images of several channels: images of one channel have no colour."
        return None

    def corrupt(self, images: Tensor, draws: Draws) -> Tensor:
        gain, offset = ((1.2, 0.0), (1.35, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))[self.severity - 1]
        value = images.amax(1, keepdim=True)
        tiny = torch.finfo(value.dtype).tiny
        saturation = (value - images.amin(1, keepdim=True)) / value.clamp_min(tiny)
        # In HSV a channel is V (1 - S k) with k fixed by the hue: its distance from V is in proportion to S.
        ratio = (saturation * gain + offset).clamp_max(1) / saturation.clamp_min(tiny)
        return torch.where(saturation > 0, value - (value - images) * ratio, images)


class Elastic(Corruption):
    """A small random affine map and a smooth random displacement.

    The published levels trade the one for the other and so do not rank by strength; here both grow. The smooth field
    has a width of 0.08 of the shorter side.
    """

    info: ClassVar[PerturbationInfo] = describe("Elastic transform", "digital", "Stretched here and squeezed there.")

    def corrupt(self, images: Tensor, draws: Draws) -> Tensor:
        local, affine = ((0.010, 0.02), (0.015, 0.03), (0.020, 0.04), (0.025, 0.05), (0.035, 0.06))[self.severity - 1]
        n, side = len(images), min(images.shape[-2:])
        sigma = 0.08 * side
        noise = draws.normal(images.new_empty(n, 2, *images.shape[-2:]))
        # Smoothing leaves white noise the standard deviation sum(w ** 2).
        smooth = gaussian_blur(noise, sigma) * (local * side / float(gaussian_weights(sigma).square().sum()))
        # Three corners of a square move each for itself, and the rest with them.
        moves = (numbers(images, 6, draws).double() * 2 - 1).view(n, 3, 2, 1, 1) * affine * side
        y, x = pixel_grid(images)
        unit = max(side / 3, 1.0)
        u, v = (y - (y.shape[1] - 1) / 2) / unit, (x - (x.shape[2] - 1) / 2) / unit
        first, second, third = moves.unbind(1)
        field = (first + third + (second - third) * u + (first - second) * v) / 2 + smooth.double()
        return sample(images, y + field[:, 0], x + field[:, 1])


class Pixelate(Corruption):
    """Averages over larger cells; a pixel that lies across cells shows each by its share.

    Published, such a pixel shows the cell of its centre; distances then follow how cells and pixels happen to lie,
    and severities do not rank. Small images have few cell counts, so neighbouring severities may be the same there.
    """

    info: ClassVar[PerturbationInfo] = describe("Pixelate", "digital", "Fewer, larger pixels.", stochastic=False)

    def corrupt(self, images: Tensor, draws: Draws) -> Tensor:
        share = (0.95, 0.90, 0.85, 0.75, 0.65)[self.severity - 1]
        cell = 1 + (1 / share - 1) * length_scale(images)
        for axis in (2, 3):
            images = _in_cells(images, axis, max(1, int(images.shape[axis] / cell + 1e-9)))
        return images


def _in_cells(images: Tensor, axis: int, cells: int) -> Tensor:
    """Images averaged over ``cells`` equal parts of an axis; a pixel across two parts counts by its shares in both."""
    size = images.shape[axis]
    images = images.movedim(axis, -1)
    edges = torch.arange(cells + 1, dtype=torch.float64) * size / cells
    pixels = torch.arange(size, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    # Rounding leaves traces of neighbours that do not overlap.
    overlap = torch.where(overlap > 1e-9, overlap, 0.0)
    averages = _mixed(images, overlap * cells / size)
    return _mixed(averages, overlap.T).movedim(-1, axis)


def _mixed(images: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums over the last axis, one for each row of ``weights``, as a matrix product without its rounding."""
    rows = []
    for row in weights.tolist():
        total = torch.zeros_like(images[..., 0])
        for position, weight in enumerate(row):
            if weight:
                total.add_(images[..., position], alpha=weight)
        rows.append(total)
    return torch.stack(rows, -1)


class JPEG(Corruption):
    """JPEG compression of 8-bit images; channels are compressed together if there are three, else each for itself."""

    info: ClassVar[PerturbationInfo] = describe("JPEG", "digital", "JPEG compression.", stochastic=False)

    def corrupt(self, images: Tensor, draws: Draws) -> Tensor:
        return jpeg(images, (80, 65, 58, 50, 40)[self.severity - 1])


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Return images as they come back from JPEG files of a quality.

    Channels are compressed together if there are three, else each for itself.
    """
    bytes_ = (images.cpu() * 255).round_().to(torch.uint8)
    if images.shape[1] == 3:
        made = [_compressed(image, quality) for image in bytes_.movedim(1, -1)]
        result = torch.stack(made).movedim(-1, 1) if made else bytes_
    else:
        made = [_compressed(plane, quality) for plane in bytes_.flatten(0, 1)]
        result = torch.stack(made).view(images.shape) if made else bytes_
    return (result.float() / 255).to(images.device)


def _compressed(pixels: Tensor, quality: int) -> Tensor:
    """Return an 8-bit image, (height, width) or (height, width, 3), as it comes back from a JPEG file."""
    import numpy as np
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image))
