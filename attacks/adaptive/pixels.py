"""What an attack shows of its iterates: all of them, those that an image file can hold, or only pixels that vary.

A detector may flag what no image of the data can have: values between two levels of an 8-bit file, or light where every
image is dark. Rounding an attack's result afterwards does not answer it, since what was optimised is another image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from ..base.geometry import Radius, levels_within
from ..base.target import Guides

Pixels = Literal["any", "8-bit", "varying"]
Ball = Literal["linf", "l2"]

_LEVELS = 255


class Grid(ABC):
    """What is left of images within a budget."""

    @abstractmethod
    def of(self, images: Tensor, clean: Tensor, eps: Radius) -> Tensor:
        """Return what is shown of images (n, channels, height, width) in [0, 1] within ``eps`` of ``clean``, too."""


class AnyPixels(Grid):
    """Images as they are."""

    def of(self, images: Tensor, clean: Tensor, eps: Radius) -> Tensor:
        return images


class EightBits(Grid):
    """The nearest levels of an 8-bit file; in L-inf the nearest within the budget, where there is one.

    In L2 an image goes to the level on the clean image's side of its value, so that no pixel moves further away.

    Args:
        norm: ``linf`` or ``l2``.
    """

    def __init__(self, norm: Ball) -> None:
        self._norm = norm

    def of(self, images: Tensor, clean: Tensor, eps: Radius) -> Tensor:
        if self._norm == "l2":
            levels, around = images.double() * _LEVELS, clean.double() * _LEVELS
            # Clean values may themselves lie between levels; beyond their nearest one nothing is gained.
            toward = torch.where(levels > around, levels.floor(), levels.ceil())
            return (toward / _LEVELS).clamp(0, 1).float()
        return (levels_within(images, clean, _LEVELS, eps) / _LEVELS).clamp(0, 1).float()


class VaryingPixels(Grid):
    """Pixels that are the same in every guide stay those of the clean image.

    Args:
        guides: clean images.
    """

    def __init__(self, guides: Guides) -> None:
        images = guides.images
        self._vary = (images.amax(0) > images.amin(0)) if len(images) else torch.ones((), dtype=torch.bool)

    def of(self, images: Tensor, clean: Tensor, eps: Radius) -> Tensor:
        return torch.where(self._vary.to(images.device), images, clean)
