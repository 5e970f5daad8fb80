"""From what a network returns to logits, float32 (n, classes): the same for every use of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UsageError

# Where a network of two classes that gives one logit z has its classes: the logits -z/2 and z/2 have its sigmoid for
# a softmax, and treat both classes alike (with 0 and z, the largest logit would be 0 for every image of class 0).
_HALVES = (-0.5, 0.5)


def find_logits(output: Any) -> tuple[Tensor, str]:
    """Return the tensor of logits in what a network returned, as it is, and in words where it was found.

    A tensor is taken as it is (no words), else the attribute ``logits`` of an object, the entry ``"logits"`` of a
    mapping, or the first element of a tuple or list.

    Raises:
        UsageError: for anything else.
    """
    if isinstance(output, Tensor):
        return output, ""
    named = getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named, f"the attribute `logits` of {_a(type(output).__name__)}"
    if isinstance(output, Mapping):
        if isinstance(output.get("logits"), Tensor):
            return output["logits"], 'the entry "logits" of a mapping'
        held = ", ".join(repr(key) for key in list(output)[:5])
        raise UsageError(f'it must return a tensor of logits, not a mapping without "logits" (it holds {held})')
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        alike = sum(isinstance(other, Tensor) and other.shape == output[0].shape for other in output[1:])
        beside = f", {alike} of the others being of the same shape (an auxiliary head comes after the main one)"
        return output[0], f"the first of {len(output)} elements of a {type(output).__name__}{beside if alike else ''}"
    raise UsageError(f"it must return a tensor of logits, not {_a(type(output).__name__)}")


def is_single(found: Tensor, classes: int) -> bool:
    """Whether a network gives one logit, (n,) or (n, 1), for two classes; () for one image, as squeezing makes it."""
    return classes == 2 and (found.ndim <= 1 or (found.ndim == 2 and found.shape[1] == 1))


def as_logits(output: Any, classes: int) -> Tensor:
    """Logits, float32 (n, classes), of what a network returned (:func:`find_logits`), differentiable.

    One logit z for two classes, (n,) or (n, 1), becomes -z/2 and z/2: class 1 where z is positive. Numbers of another
    type are cast.

    Raises:
        UsageError: if the network returned anything else.
    """
    found, _ = find_logits(output)
    if found.is_quantized:
        found = found.dequantize()
    if found.is_complex() or found.layout != torch.strided:
        what = f"{found.dtype}".removeprefix("torch.") if found.is_complex() else "sparse"
        raise UsageError(f"it must return real numbers in a dense tensor, not {what} ones")
    if is_single(found, classes):
        z = found.reshape(-1, 1).float()
        return z * z.new_tensor(_HALVES)
    if found.shape == (classes,):
        # One image, squeezed.
        found = found[None]
    if found.ndim != 2 or found.shape[1] != classes:
        raise UsageError(f"it must return (n, {classes}) logits, not a tensor of the shape {tuple(found.shape)}")
    return found.float()


def _a(name: str) -> str:
    return f"{'an' if name[:1].upper() in 'AEIOU' else 'a'} {name}"
