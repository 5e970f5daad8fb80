"""Which axis of an activation holds its channels: followed from the images through every operation of a pass.

Convolutions give (n, channels, height, width); ConvNeXt, Swin and many users' networks carry (n, height, width,
channels) from layer to layer, and sizes do not tell the two apart. Channels are what is made with weights of its own
while the other axes share them: axis 1 of a convolution, the last axis of a linear layer. A ``TorchDispatchMode`` sees
the few operations that all spellings (modules, functions, methods, ``einsum``) come down to, and carries the axis
through permutations, changes of shape and whatever works on elements.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# An axis from 0; ``None`` where it cannot be told.
Axis = int | None
_Key = tuple[object, ...]

_CONVOLUTIONS = ("convolution", "_convolution", "convolution_overrideable")
_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "_addmm_activation": 1, "linear": 0}
# What gives a tensor of another number of axes by leaving some out.
_WITHOUT = ("select", "unbind")
_REDUCTIONS = (
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "logsumexp", "norm", "prod",
    "linalg_vector_norm", "any", "all", "argmax", "argmin", "median",
)  # fmt: skip
# Here an axis keeps its place, though its size may change.
_SAME_PLACE = (
    "slice", "narrow", "split", "split_with_sizes", "chunk", "cat", "index_select", "constant_pad_nd", "repeat",
    "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "glu",
)  # fmt: skip
# What these give is not made of the images, until something is written into it.
_BLANK = ("empty", "zeros", "ones", "full", "rand", "randn", "empty_strided")
_VIEWS = ("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "squeeze", "unsqueeze")


class ChannelAxes(TorchDispatchMode):
    """While active, follows the axis of the channels from images to every tensor that is made of them.

    Whatever is not made of the images counts as weights. Every tensor that is seen is kept, so that no memory is used
    twice: take few images.

    Args:
        images: (n, channels, height, width), what a model is called with inside the block.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        self._axes: dict[_Key, Axis] = {}
        self._kept: list[Tensor] = []
        self._blank: dict[int, list[Tensor]] = {}
        self._note(images, 1)

    def of(self, activation: Tensor) -> Axis:
        """The axis of an activation that holds its channels, from 0 (the batch); ``None`` where it cannot be told."""
        axis = self._axes.get(_key(activation))
        return axis if axis is not None and 0 < axis < activation.ndim else None

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if _is_composite(func):
            # Some operations that are made of others come whole, under inference mode all of them.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        given = list(_tensors((args, kwargs)))
        # Before the call: an operation in place changes its input's shape or axis.
        seen = [(t.shape, self._axes.get(_key(t)), self._is_known(t)) for t in given if _has_storage(t)]
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__.removesuffix("_")
        if name.removeprefix("new_").removesuffix("_like") in _BLANK:
            self._blank.setdefault(out.untyped_storage()._cdata, []).append(out)
            return out
        if not any(known for _, _, known in seen):
            return out
        for made in _tensors(out):
            if _has_storage(made):
                self._note(made, self._axis(name, func, args, kwargs, seen, made))
        return out

    def _is_known(self, tensor: Tensor) -> bool:
        return _key(tensor) in self._axes

    def _note(self, tensor: Tensor, axis: Axis) -> None:
        self._axes[_key(tensor)] = axis
        self._kept.append(tensor)
        for blank in self._blank.get(tensor.untyped_storage()._cdata, ()):
            # The whole that this is a part of, or another view of it.
            if blank.ndim == tensor.ndim and blank.stride() == tensor.stride():
                self._axes[_key(blank)] = axis
            elif axis is not None and blank.numel() == tensor.numel():
                self._axes[_key(blank)] = _reshaped(tensor.shape, blank.shape, axis)

    def _axis(
        self,
        name: str,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        seen: Sequence[tuple[torch.Size, Axis, bool]],
        made: Tensor,
    ) -> Axis:
        """The axis of one output; ``seen`` holds shape, axis and whether it is made of the images, of every input."""
        shape, axis = next(((s, a) for s, a, known in seen if known and a is not None), (None, None))
        if func.namespace == "quantized" and ("conv" in name or "linear" in name):
            # Their weights are packed.
            return 1 if "conv" in name else made.ndim - 1
        if name in _CONVOLUTIONS:
            return 1 if made.ndim == args[1].ndim else 0
        if name in _PRODUCTS:
            start = _PRODUCTS[name]
            return self._product(args[start], args[start + 1], made, transposed=name == "linear")
        if "scaled_dot_product" in name:
            value = self._axes.get(_key(args[2]))
            return value if value is not None and value < made.ndim else None
        if axis is None or shape is None:
            return self._from_normalisation(name, args, made)
        return _carried(name, func, args, kwargs, shape, axis, made)

    def _product(self, left: Tensor, right: Tensor, made: Tensor, transposed: bool) -> Axis:
        """Of a product of (batches of) matrices: what weights make is the channels, else they stay where they are."""
        first, second = self._is_known(left), self._is_known(right)
        if transposed or (first and not second):
            return made.ndim - 1
        if second and not first:
            return made.ndim - 2
        own, other = self._axes.get(_key(left)), self._axes.get(_key(right))
        if other == right.ndim - 1:
            return made.ndim - 1
        return own if own is not None and own < left.ndim - 1 else None

    @staticmethod
    def _from_normalisation(name: str, args: tuple[Any, ...], made: Tensor) -> Axis:
        """Take the axis from a normalisation, where nothing else is known."""
        if "batch_norm" in name or "group_norm" in name:
            return 1 if made.ndim > 1 and made.shape == args[0].shape else None
        if "layer_norm" in name or "rms_norm" in name:
            normalised = args[1] if len(args) > 1 else ()
            one = isinstance(normalised, Sequence) and len(normalised) == 1
            return made.ndim - 1 if one and made.shape == args[0].shape else None
        return None


def _carried(
    name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], shape: torch.Size, axis: int, made: Tensor
) -> Axis:
    """Return the axis after an operation that moves, removes or keeps axes."""
    ndim = len(shape)
    if name == "permute":
        order: list[int] = [d % ndim for d in args[1]]
        return order.index(axis)
    if name in ("transpose", "t", "swapaxes", "swapdims"):
        first, second = (d % ndim for d in args[1:3]) if len(args) > 2 else (0, ndim - 1)
        return {first: second, second: first}.get(axis, axis)
    if name in _VIEWS:
        return _reshaped(shape, made.shape, axis)
    if name in _WITHOUT:
        gone: int = _argument(func, args, kwargs, "dim", 0) % ndim
        return None if gone == axis else axis - (gone < axis)
    if name == "stack":
        at: int = _argument(func, args, kwargs, "dim", 0) % made.ndim
        return axis + (at <= axis)
    if name in _REDUCTIONS:
        return _reduced(_argument(func, args, kwargs, "dim", None), ndim, axis, made.ndim)
    if name in _SAME_PLACE:
        return axis if made.ndim == ndim else None
    if name in ("copy", "fill", "zero"):
        return axis + made.ndim - ndim
    # Elements, places or neighbourhoods: an axis of the same size at the same place, counted from the last.
    place = axis + made.ndim - ndim
    return place if 0 <= place < made.ndim and made.shape[place] in (shape[axis], max(shape[axis], 1)) else None


def _reshaped(before: Sequence[int], after: Sequence[int], axis: int) -> Axis:
    """Where an axis goes when a tensor is seen in another shape: with what it is merged with, first of its parts."""
    i = j = 0
    while i < len(before) and j < len(after):
        group, into, left, right = [i], [j], before[i], after[j]
        while left != right:
            if left < right:
                i += 1
                if i == len(before):
                    return None
                group.append(i)
                left *= before[i]
            else:
                j += 1
                if j == len(after):
                    return None
                into.append(j)
                right *= after[j]
        if axis in group:
            if len(group) > 1 and len(into) > 1:
                return None
            return into[0] if len(into) == 1 else next((d for d in into if after[d] > 1), into[0])
        i, j = i + 1, j + 1
    return None


def _reduced(dims: Any, ndim: int, axis: int, left: int) -> Axis:
    if left == ndim:
        return axis
    gone = {d % ndim for d in ([dims] if isinstance(dims, int) else dims or range(ndim))}
    return None if axis in gone else axis - sum(d < axis for d in gone)


def _argument(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str, default: Any) -> Any:
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            return args[place] if place < len(args) else kwargs.get(name, default)
    return default


def _is_composite(func: Any) -> bool:
    return isinstance(func, torch._ops.OpOverload) and func.has_kernel_for_dispatch_key(
        torch._C.DispatchKey.CompositeImplicitAutograd
    )


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def _has_storage(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided


def _key(tensor: Tensor) -> _Key:
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
