"""Images as they could as well have been taken or stored: moved a little, or saved and opened again.

Neither is a perturbation that a suite names. Both are made of the evaluate images of every run: a detector that answers
for these images, not for images like them, answers otherwise for their variants.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...harness.core.seeds import Draws
from .corruptions import jpeg
from .filters import numbers, shifted

# The largest shift, in pixels for each 32 pixels of the shorter side and never more than one; the largest rotation, in
# degrees; and the largest change of brightness, relative to it.
SHIFT, DEGREES, BRIGHTNESS = 1.0, 5.0, 0.02
QUALITY = 95


def shadows(images: Tensor, draws: Draws, levels: int = 256) -> Tensor:
    """Return images shifted, rotated and brightened or darkened a little, each by numbers of its own.

    Interpolation is bicubic: a linear one blurs, and blurred images are easier to attack.

    Args:
        images: float32 in [0, 1], (n, channels, height, width), on the CPU.
        draws: of these images.
        levels: equally spaced levels that the results are rounded to, as a file of such images holds them.
    """
    height, width = images.shape[-2:]
    drawn = numbers(images, 4, draws).mul_(2).sub_(1)
    shift, angle = min(1.0, SHIFT * min(height, width) / 32), drawn[:, 0] * math.radians(DEGREES)
    sine, cosine = angle.sin(), angle.cos()
    # From places of the result to places of the image, in halves of its sides.
    rows = [[cosine, -sine * height / width, drawn[:, 1] * 2 * shift / width],
            [sine * width / height, cosine, drawn[:, 2] * 2 * shift / height]]  # fmt: skip
    grid = F.affine_grid(torch.stack([torch.stack(row, 1) for row in rows], 1), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, "bicubic", "reflection", align_corners=False)
    changed = moved * (1 + BRIGHTNESS * drawn[:, 3])[:, None, None, None]
    return (changed.clamp_(0, 1) * (levels - 1)).round_() / (levels - 1)


def reencoded(images: Tensor) -> Tensor:
    """Return images moved right by one pixel, saved as JPEG of quality 95, and brightened by one level of 255.

    Args:
        images: float32 in [0, 1], (n, channels, height, width).
    """
    return (jpeg(shifted(images, 0, 1), QUALITY) + 1 / 255).clamp_(0, 1)
