"""Images as they could as well have been taken or stored: moved a little, or saved and opened again.

Neither is a perturbation that a suite names. Both are made of the evaluate images of every run: a detector that answers
for these images, not for images like them, answers otherwise for their variants.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...harness.core.seeds import Draws
from .corruptions import jpeg
from .filters import numbers, pixel_grid, sample, shifted

# The largest shift, in pixels for each 32 pixels of the shorter side and never more than one; the largest rotation, in
# degrees; and the largest change of brightness, relative to it.
SHIFT, DEGREES, BRIGHTNESS = 1.0, 5.0, 0.02
QUALITY = 95


def shadows(images: Tensor, draws: Draws, levels: int = 256) -> Tensor:
    """Return images shifted, rotated and brightened or darkened a little, each by numbers of its own.

    Args:
        images: float32 in [0, 1], (n, channels, height, width).
        draws: of these images.
        levels: equally spaced levels that the results are rounded to, as a file of such images holds them.
    """
    drawn = numbers(images, 4, draws).double().mul_(2).sub_(1)
    shift = min(1.0, SHIFT * min(images.shape[-2:]) / 32)
    angle = (drawn[:, 0] * math.radians(DEGREES))[:, None, None]
    down, right = (drawn[:, 1] * shift)[:, None, None], (drawn[:, 2] * shift)[:, None, None]
    y, x = pixel_grid(images)
    middle_y, middle_x = (images.shape[-2] - 1) / 2, (images.shape[-1] - 1) / 2
    y, x = y - middle_y, x - middle_x
    rows = y * torch.cos(angle) - x * torch.sin(angle) + middle_y - down
    columns = x * torch.cos(angle) + y * torch.sin(angle) + middle_x - right
    moved = sample(images, rows, columns) * (1 + BRIGHTNESS * drawn[:, 3])[:, None, None, None].to(images)
    return (moved.clamp_(0, 1) * (levels - 1)).round_() / (levels - 1)


def reencoded(images: Tensor) -> Tensor:
    """Return images moved right by one pixel, saved as JPEG of quality 95, and brightened by one level of 255.

    Args:
        images: float32 in [0, 1], (n, channels, height, width).
    """
    return (jpeg(shifted(images, 0, 1), QUALITY) + 1 / 255).clamp_(0, 1)
