"""Dropout whose masks depend on the image and a seed alone: a score must not depend on the rest of its batch."""

from __future__ import annotations

import hashlib
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..core.errors import UsageError
from ..core.seeds import generator

_UNITS = (nn.Dropout,)
_MAPS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class ImageDropout:
    """Within the block, the dropout layers of a model in eval mode drop, image by image.

    Args:
        model: in eval mode.
        seed: other seeds, other masks.

    Raises:
        UsageError: for a layer that does more than dropping (alpha dropout).
    """

    def __init__(self, model: nn.Module, seed: int) -> None:
        self._seed = seed
        self._draws: list[torch.Generator] = []
        self._handles: list[RemovableHandle] = []
        self._layers = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
        for layer in self._layers:
            if not isinstance(layer, (*_UNITS, *_MAPS)):
                raise UsageError(f"Views with dropout know Dropout, Dropout1d, 2d and 3d, not {type(layer).__name__}.")

    def __enter__(self) -> Self:
        self._handles = [layer.register_forward_hook(self._drop) for layer in self._layers]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def begin(self, images: Tensor) -> None:
        """The next forward pass is about these images."""
        whole = images.detach().cpu().float().contiguous()
        digests = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in whole]
        self._draws = [generator(self._seed, "dropout", digest) for digest in digests]

    def _drop(self, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        share = float(getattr(layer, "p", 0.0))
        if share == 0:
            return output
        if len(output) != len(self._draws):
            raise UsageError("Views with dropout need layers that keep one row per image.")
        row = output.shape[1:]
        shape = (row[0], *(1 for _ in row[1:])) if isinstance(layer, _MAPS) else tuple(row)
        kept = torch.stack([torch.rand(shape, generator=draws) >= share for draws in self._draws]).to(output.device)
        return output * kept / (1 - share) if share < 1 else torch.zeros_like(output)
