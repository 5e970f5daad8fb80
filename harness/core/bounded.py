"""How large a thing may be that a run directory or a guard asks to be built; both may come from an untrusted source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, Field, ValidationError
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from .errors import UsageError

# Numbers of one image: 3 x 2,364 x 2,364.
LARGEST_IMAGE = 2**24
MOST_CLASSES = 100_000
# A ResNet of 1,001 layers has some 1,000.
MOST_TAPS = 10_000
MOST_TENSORS = 20_000
# Values in the parameters of a detector, and how deep they are nested.
MOST_VALUES = 10_000
DEEPEST = 20
# Checkpoints may hold 8 or 16 bits where the network computes in 32.
_WIDER = 4
_SLACK = 2**20


class TooLargeError(UsageError):
    """What a file asks to be built is larger than what it holds."""


def _sensible(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    if shape[0] * shape[1] * shape[2] > LARGEST_IMAGE:
        raise ValueError(f"images of {' x '.join(map(str, shape))} are larger than {LARGEST_IMAGE:,} numbers")
    return shape


Size = Annotated[int, Field(ge=1, le=2**31)]
ImageShape = Annotated[tuple[Size, Size, Size], AfterValidator(_sensible)]
Classes = Annotated[int, Field(ge=1, le=MOST_CLASSES)]
TapShape = tuple[Size, ...]
# Name, kind, shape, and where it is known the axis of the channels.
Tap = tuple[str, str, TapShape] | tuple[str, str, TapShape, int | None]
Taps = Annotated[list[Tap], Field(max_length=MOST_TAPS)]
Modules = Annotated[list[str], Field(max_length=MOST_TAPS)]
BitsPerTap = Annotated[int, Field(ge=1)] | None

Channels = Annotated[list[float], Field(min_length=1, max_length=2**16)]


class Normalisation(BaseModel):
    """Mean and standard deviation per channel."""

    mean: Channels
    std: Channels


class KnownModel(BaseModel):
    """What a run knows of a model."""

    digest: str
    shape: ImageShape
    classes: Classes
    normalise: Normalisation | None
    taps: Taps


@contextmanager
def bounded_parameters(what: str, held: int) -> Iterator[None]:
    """Within it, a network that would be much larger than its weights is refused before it takes that much memory.

    Args:
        what: what is built, for the message.
        held: bytes of the weights that it will be given.

    Raises:
        TooLargeError: as soon as the registered parameters and buffers have more than four times (and 1 MiB more) as
            many bytes, or are more than :data:`MOST_TENSORS`.
    """
    most, size, count = _WIDER * held + _SLACK, 0, 0

    def seen(module: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal size, count
        if value is None:
            return
        size, count = size + value.numel() * value.element_size(), count + 1
        if size > most or count > MOST_TENSORS:
            reason = f"more than {most:,} bytes" if size > most else f"more than {MOST_TENSORS:,} tensors"
            raise TooLargeError(f"{what} asks for a network of {reason}, but its weights have {held:,} bytes.")

    hooks = [register_module_parameter_registration_hook(seen), register_module_buffer_registration_hook(seen)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def without_memory() -> Iterator[None]:
    """Within it, new tensors have a shape and no memory."""
    with torch.device("meta"):
        yield


def reason_of(error: BaseException) -> str:
    """Return what is wrong with a file's content in one line: of a description, its first wrong field."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {' '.join(first['msg'].split())}"[:200]
    text = " ".join(str(error).split()) or type(error).__name__
    named = isinstance(error, KeyError | AttributeError | IndexError)
    return (f"{type(error).__name__}: {text}" if named else text)[:200]


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """Return how many bytes some tensors have."""
    return sum(t.numel() * t.element_size() for t in tensors.values())


def check_parameters(params: Mapping[str, Any], what: str) -> None:
    """Refuse parameters that no person wrote.

    Raises:
        TooLargeError: for more than :data:`MOST_VALUES` values, or values nested deeper than :data:`DEEPEST`.
    """
    waiting: list[tuple[Any, int]] = [(params, 1)]
    count = 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > MOST_VALUES or depth > DEEPEST:
            reason = f"more than {MOST_VALUES:,} values" if count > MOST_VALUES else f"values nested {depth} deep"
            raise TooLargeError(f"The parameters of {what} hold {reason}: no detector of a suite has such.")
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting += [(item, depth + 1) for item in inner]
