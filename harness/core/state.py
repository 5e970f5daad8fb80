"""Values as tensors and JSON: what cells hold, without a pickle.

A *state* is nested dicts and lists of tensors and JSON values (:func:`split_state`, :func:`join_state`). A *record* is
a frozen dataclass; its class says what its fields hold, and a file is read against that (:func:`encode`,
:func:`decode`).
"""

from __future__ import annotations

import collections.abc
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from .errors import UsageError

T = TypeVar("T")
_NUMBER = "$number"
_SEQUENCES = (list, tuple, collections.abc.Sequence)
_MAPPINGS = (dict, collections.abc.Mapping)


def state_on(state: Any, device: torch.device) -> Any:
    """Return a state, or a part of one, with its tensors on a device."""
    if isinstance(state, torch.Tensor):
        return state.to(device)
    if isinstance(state, Mapping):
        return {name: state_on(value, device) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return [state_on(value, device) for value in state]
    return state


def split_state(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Separate a nested state into tensors by path and a JSON value in which ``{"$tensor": path}`` marks their places.

    Raises:
        UsageError: for a value that is neither a tensor nor JSON, with its path and what to do.
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            # A clone: tensors that share memory cannot be stored.
            tensors[path] = value.detach().cpu().clone().contiguous()
            return {"$tensor": path}
        if isinstance(value, Mapping):
            if not all(isinstance(k, str) for k in value):
                raise UsageError(f"The state {path!r} has keys that are not strings.")
            return {k: walk(v, f"{path}/{k}" if path else k) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [walk(v, f"{path}/{i}") for i, v in enumerate(value)]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise UsageError(
            f"The state {path!r} is a {type(value).__name__}, which cannot be stored: keep tensors, "
            "numbers, strings, lists and dicts, or override state() and load_state()."
        )

    return tensors, walk(state, "")


def join_state(tensors: Mapping[str, Tensor], value: Any) -> Any:
    """Return the inverse of :func:`split_state`."""
    if isinstance(value, dict):
        if set(value) == {"$tensor"}:
            return tensors[value["$tensor"]]
        return {k: join_state(tensors, v) for k, v in value.items()}
    if isinstance(value, list):
        return [join_state(tensors, v) for v in value]
    return value


def encode(record: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Separate a frozen dataclass into tensors by path and a JSON value.

    Its fields hold tensors, NumPy arrays, numbers, texts, ``None``, sequences and mappings of these (keys: numbers,
    texts or tuples of them), and frozen dataclasses again.

    Raises:
        UsageError: for anything else, with its place.
    """
    return split_state(_plain(record, type(record).__name__))


def _plain(value: Any, path: str) -> Any:
    plain: Any
    if isinstance(value, type) or value is None or isinstance(value, bool | str | Tensor):
        plain = value
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        plain = torch.from_numpy(value.copy())
    elif isinstance(value, int | float | np.generic):
        number = value.item() if isinstance(value, np.generic) else value
        # JSON has no form for these.
        plain = number if math.isfinite(number) else {_NUMBER: str(number)}
    elif is_dataclass(value):
        if not vars(type(value))["__dataclass_params__"].frozen:
            raise UsageError(f"{path} is a {type(value).__name__}, which is not frozen: declare it frozen=True.")
        plain = {f.name: _plain(getattr(value, f.name), f"{path}.{f.name}") for f in fields(value)}
    elif isinstance(value, Mapping):
        # Pairs, for keys that JSON has no form for.
        plain = [[_plain(k, path), _plain(v, f"{path}[{k!r}]")] for k, v in value.items()]
    elif isinstance(value, list | tuple):
        plain = [_plain(v, f"{path}[{i}]") for i, v in enumerate(value)]
    else:
        plain = type(value)
    if isinstance(plain, type):
        raise UsageError(
            f"{path} is a {plain.__name__}, which cannot be stored: keep tensors, numbers, texts, tuples, mappings "
            "and frozen dataclasses of these."
        )
    return plain


def decode(kind: type[T], tensors: Mapping[str, Tensor], value: Any) -> T:
    """Return the inverse of :func:`encode`: a record of class ``kind``, each field checked against its annotation.

    Sequences come back as lists, or as tuples where the annotation says so.

    Raises:
        UsageError: if ``value`` is not what :func:`encode` writes for this class.
    """
    try:
        made: T = _made(kind, join_state(tensors, value), kind.__name__)
    except (KeyError, TypeError, ValueError, NameError, RecursionError) as error:
        raise UsageError(f"this is not a {kind.__name__} as this version writes it ({error})") from error
    return made


def _made(kind: Any, value: Any, path: str) -> Any:
    """``value`` as ``kind`` asks for it.

    Raises:
        ValueError: if it is not that, with its place.
    """
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is typing.Annotated:
        return _made(inner[0], value, path)
    if origin in (typing.Union, types.UnionType):
        for each in inner:
            try:
                return _made(each, value, path)
            except ValueError:
                continue
    elif origin is typing.Literal:
        if value in inner:
            return value
    elif kind in (None, type(None)):
        if value is None:
            return None
    elif origin is np.ndarray:
        if isinstance(value, Tensor):
            return value.numpy()
    elif isinstance(origin, type) and is_dataclass(origin):
        hints = typing.get_type_hints(origin)
        names = [f.name for f in fields(origin)]
        if isinstance(value, dict) and set(value) == set(names):
            return origin(**{n: _made(hints[n], value[n], f"{path}.{n}") for n in names})
    elif origin in _MAPPINGS:
        if isinstance(value, list):
            key, held = inner
            return {_made(key, k, path): _made(held, v, f"{path}[{k!r}]") for k, v in value}
    elif origin in _SEQUENCES:
        if isinstance(value, list):
            return _sequence(origin, inner, value, path)
    elif origin is float and isinstance(value, dict) and set(value) == {_NUMBER}:
        return float(value[_NUMBER])
    elif _is(origin, value):
        return value
    raise ValueError(f"{path} is not {kind}")


def _sequence(origin: Any, inner: tuple[Any, ...], value: list[Any], path: str) -> Any:
    if origin is tuple and (len(inner) != 2 or inner[1] is not Ellipsis):
        if len(inner) != len(value):
            raise ValueError(f"{path} has {len(value)} entries, not {len(inner)}")
        return tuple(_made(k, v, f"{path}[{i}]") for i, (k, v) in enumerate(zip(inner, value, strict=True)))
    made = [_made(inner[0], v, f"{path}[{i}]") for i, v in enumerate(value)]
    return tuple(made) if origin is tuple else made


def _is(kind: Any, value: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    # A whole number is a number.
    wanted = (int, float) if kind is float else kind
    return kind in (bool, int, float, str, Tensor) and isinstance(value, wanted)
