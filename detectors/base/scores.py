"""What ``score`` returned, checked: the same for a run and for the conformance kit."""

from __future__ import annotations

import torch
from torch import Tensor

from ...harness.core.errors import AftershockError


def checked_scores(found: object, images: int) -> Tensor:
    """Return what ``score`` returned as float64 on the CPU.

    Raises:
        AftershockError: unless it is one finite real number for each image; integers are numbers, truth values are not.
    """
    if not isinstance(found, Tensor) or tuple(found.shape) != (images,):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise AftershockError(
            f"score() gave {shape} for {images} images instead of shape ({images},): reduce over units and layers, not "
            "over images"
        )
    if found.is_complex() or found.dtype == torch.bool or found.layout != torch.strided:
        kind = str(found.dtype if found.layout == torch.strided else found.layout).removeprefix("torch.")
        raise AftershockError(f"score() gave {kind} values: return a real number for each image, such as float32")
    if not bool(torch.isfinite(found).all()):
        raise AftershockError(
            f"score() gave {int((~torch.isfinite(found)).sum())} values that are not finite: guard divisions and "
            "logarithms against zero"
        )
    return found.detach().double().cpu()
