"""Image operations that corruptions share: padding, convolution, resampling, fractals and split generators.

Everything is a sum of shifted or gathered images, never a library convolution: those choose another algorithm, and
round differently, for another batch size, and an image's result must not depend on its neighbours. Images are float32
(n, channels, height, width) on any device; borders are mirrored without repeating the edge unless said otherwise, and
as often as a small image needs.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ...harness.core.seeds import Draws

Padding = Literal["reflect", "border"]


def length_scale(images: Tensor) -> float:
    """Return how many times longer the lengths of a 32-pixel setting are here: the shorter side over 32, at least 1.

    Below 32 pixels lengths stay as they are, since a blur much shorter than a pixel would be none.
    """
    return max(1.0, min(images.shape[-2:]) / 32)


def mirrored(positions: Tensor, size: int, padding: Padding = "reflect") -> Tensor:
    """Whole positions on any axis, brought into [0, size)."""
    if padding == "border" or size == 1:
        return positions.clamp(0, size - 1)
    period = 2 * (size - 1)
    positions = positions.remainder(period)
    return torch.minimum(positions, period - positions)


def shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Return images moved by whole pixels."""
    rows = mirrored(torch.arange(images.shape[-2], device=images.device) - down, images.shape[-2])
    columns = mirrored(torch.arange(images.shape[-1], device=images.device) - right, images.shape[-1])
    return images[..., rows, :][..., columns]


def convolve(images: Tensor, kernel: Tensor) -> Tensor:
    """Return the correlation with a kernel of odd sides, the same for every image and channel."""
    up, left = kernel.shape[0] // 2, kernel.shape[1] // 2
    height, width = images.shape[-2:]
    rows = mirrored(torch.arange(-up, height + up, device=images.device), height)
    columns = mirrored(torch.arange(-left, width + left, device=images.device), width)
    padded = images[..., rows, :][..., columns]
    result = torch.zeros_like(images)
    for y, row in enumerate(kernel.tolist()):
        for x, weight in enumerate(row):
            if weight:
                result.add_(padded[..., y : y + height, x : x + width], alpha=weight)
    return result


def gaussian_weights(sigma: float, radius: int | None = None) -> Tensor:
    """Return normalised samples of a Gaussian, cut off at ``radius`` (by default 4 sigma), float64, (2 radius + 1,)."""
    radius = int(4 * sigma + 0.5) if radius is None else radius
    if radius == 0 or sigma <= 0:
        return torch.ones(1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    return weights / weights.sum()


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Convolution with a Gaussian of ``sigma`` pixels."""
    weights = gaussian_weights(sigma)
    return convolve(convolve(images, weights[:, None]), weights[None, :])


def trail(images: Tensor, sigma: float, radius: float, angles: Tensor) -> Tensor:
    """Return half a Gaussian along a line: each image moves the way of its angle (radians, (n,)) and leaves a trail.

    The line has 2 radius + 1 pixels, as ImageMagick's motion blur, on which the published corruptions rest.
    """
    steps = torch.arange(2 * round(radius) + 1, dtype=torch.float64)
    halved = torch.exp(-0.5 * (steps / sigma) ** 2)
    weights = (halved / halved.sum()).tolist()
    result = torch.zeros_like(images)
    for image, out, angle in zip(images, result, angles.tolist(), strict=True):
        for step, weight in enumerate(weights):
            out.add_(shifted(image, round(step * math.sin(angle)), round(step * math.cos(angle))), alpha=weight)
    return result


def pixel_grid(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and columns of all pixels, float64, (1, height, width) each."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, dtype=torch.float64, device=images.device)
    columns = torch.arange(width, dtype=torch.float64, device=images.device)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return y[None], x[None]


def sample(images: Tensor, rows: Tensor, columns: Tensor, padding: Padding = "reflect") -> Tensor:
    """Bilinear values of images at positions in pixels, (n or 1, height, width); exact at whole positions.

    Args:
        images: (n, channels, height, width).
        rows: where to look, float64; may lie outside.
        columns: likewise.
        padding: ``reflect`` mirrors at the edge pixels, ``border`` repeats them.
    """
    n, channels, height, width = images.shape
    top, left = rows.floor(), columns.floor()
    down, right = (rows - top).to(images.dtype), (columns - left).to(images.dtype)
    flat = images.flatten(2)

    def at(y: Tensor, x: Tensor) -> Tensor:
        where = mirrored(y.long(), height, padding) * width + mirrored(x.long(), width, padding)
        where = where.expand(n, *where.shape[1:])
        return flat.gather(2, where.flatten(1)[:, None].expand(-1, channels, -1)).view(n, channels, *where.shape[1:])

    down, right = down[:, None], right[:, None]
    upper = at(top, left) * (1 - right) + at(top, left + 1) * right
    lower = at(top + 1, left) * (1 - right) + at(top + 1, left + 1) * right
    return upper * (1 - down) + lower * down


def zoomed(images: Tensor, factor: float) -> Tensor:
    """Return the middle of images, magnified by ``factor`` (at least 1) to their size."""
    y, x = pixel_grid(images)
    middle_y, middle_x = (images.shape[-2] - 1) / 2, (images.shape[-1] - 1) / 2
    return sample(images, (y - middle_y) / factor + middle_y, (x - middle_x) / factor + middle_x)


def plasma(images: Tensor, decay: float, draws: Draws) -> Tensor:
    """Return a plasma fractal for each image (diamond-square on a torus), spread over [0, 1], (n, 1, height, width).

    Args:
        images: what the fractals are for.
        decay: the random part shrinks by its square at each halving; below 2 is rougher, above smoother.
        draws: one generator per image.
    """
    n, (height, width) = len(images), images.shape[-2:]
    size = max(2, 1 << (max(height, width) - 1).bit_length())
    field = images.new_zeros(n, size, size)
    step, random = size, 1.0
    while step > 1:
        half = step // 2
        corners = field[:, ::step, ::step]
        beside = corners + corners.roll(-1, 2)
        middles = (beside + beside.roll(-1, 1)) / 4 + random * _symmetric(corners, draws)
        field[:, half::step, half::step] = middles
        across = (beside + middles + middles.roll(1, 1)) / 4 + random * _symmetric(corners, draws)
        along = (corners + corners.roll(-1, 1) + middles + middles.roll(1, 2)) / 4
        field[:, half::step, ::step] = along + random * _symmetric(corners, draws)
        field[:, ::step, half::step] = across
        step, random = half, random / decay**2
    low, high = field.amin((1, 2), keepdim=True), field.amax((1, 2), keepdim=True)
    return ((field - low) / (high - low).clamp_min(1e-12))[:, None, :height, :width]


def _symmetric(like: Tensor, draws: Draws) -> Tensor:
    return draws.uniform(like).mul_(2).sub_(1)


def numbers(images: Tensor, count: int, draws: Draws) -> Tensor:
    """``count`` numbers uniform in [0, 1) for each image, (n, count)."""
    return draws.uniform(images.new_empty(len(images), count))


def split(images: Tensor, draws: Draws) -> list[torch.Generator]:
    """A further CPU generator for each image, seeded by the image's own (for distributions that ``draws`` lacks)."""
    parts = draws.uniform(torch.empty(len(images), 2, dtype=torch.float64)).mul_(2**24).long()
    made = []
    for high, low in parts.tolist():
        generator = torch.Generator()
        generator.manual_seed(high << 24 | low)
        made.append(generator)
    return made
