"""Perturbed images as pictures: clean, perturbed, the difference magnified and the control, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

FloatArray = NDArray[np.float32]

# Pixels of a panel's shorter side, at least; larger images keep their size.
_SIDE, _GAP = 128, 8
_WHITE = 255


def strip(
    clean: FloatArray | None, perturbed: FloatArray, difference: FloatArray | None, control: FloatArray | None
) -> Image:
    """Return the panels that there are, in this order, in one row.

    Args:
        clean: (channels, height, width) in [0, 1]; ``None`` to leave it out, as for all others but ``perturbed``.
        perturbed: the same.
        difference: in [−1, 1]; grey where nothing changed, and magnified by :func:`magnification`.
        control: the same as ``clean``.
    """
    from PIL import Image

    shown = None if difference is None else 0.5 + 0.5 * magnification(difference) * difference
    panels = [pixels(p) for p in (clean, perturbed, shown, control) if p is not None]
    height, width, _ = panels[0].shape
    scale = max(1, -(-_SIDE // min(height, width)))
    high, wide = height * scale, width * scale
    whole = np.full((high, len(panels) * wide + (len(panels) - 1) * _GAP, 3), _WHITE, np.uint8)
    for i, panel in enumerate(panels):
        start = i * (wide + _GAP)
        whole[:, start : start + wide] = panel.repeat(scale, 0).repeat(scale, 1)
    return Image.fromarray(whole)


def magnification(difference: FloatArray) -> float:
    """Return the factor at which the largest change of a pixel just spans grey to black or white."""
    largest = float(np.abs(difference).max(initial=0.0))
    return 1 / largest if largest > 0 else 1.0


def pixels(image: FloatArray) -> NDArray[np.uint8]:
    """Return (height, width, 3); of one channel grey, of two or more than three the first one."""
    finite = np.nan_to_num(image, nan=1.0)
    levels = (np.clip(finite, 0, 1) * 255).round().astype(np.uint8)
    rgb = levels if len(levels) == 3 else levels[:1].repeat(3, 0)
    return np.ascontiguousarray(rgb.transpose(1, 2, 0))
