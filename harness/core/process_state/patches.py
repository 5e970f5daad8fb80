"""Which functions stand where in torch, NumPy, the standard library and this package, so that none stays replaced.

Compared are the attributes of modules and classes, and the tables (dictionaries, lists and sets) that this package's
modules hold. What is new is let be, as imports add names, unless it hides what stood behind it: an attribute of a base
class, or a built-in function.
"""

from __future__ import annotations

import builtins
import functools
import json
import math
import operator
import os
import pathlib
import random
import sys
import time
import types
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch

from ..registry import PACKAGE, REGISTRIES
from .probe import Probe

DECIDES_NO_NUMBER = True

_MODULES: Sequence[types.ModuleType] = (
    torch, torch.autograd, torch.nn, torch.nn.functional, torch.linalg, torch.fft, torch.random, torch.overrides,
    np, np.linalg, np.random, builtins, json, math, operator, os, os.path, random, time, safetensors.torch,
)  # fmt: skip
_CLASSES: Sequence[type] = (torch.Tensor, torch.nn.Parameter, pathlib.Path)
# What an interactive session or Python itself writes, or torch with the default dtype.
_IGNORED = (
    "_", "Storage", "__annotations__", "__warningregistry__", "__abstractmethods__", "_abc_impl", "__slotnames__",
    # Written by `time.tzset`, which the first date that is read calls; the variable that decides them is environment.
    "timezone", "altzone", "daylight", "tzname",
)  # fmt: skip
_GONE = object()
_real_setattr, _real_delattr = setattr, delattr


@functools.lru_cache(maxsize=4)
def _places(imported: int) -> tuple[tuple[Any, ...], ...]:
    """Return modules and classes, views of their attributes, and tables, with ``imported`` modules in the process."""
    own = [m for name, m in tuple(sys.modules.items()) if name == PACKAGE or name.startswith(f"{PACKAGE}.")]
    own = [m for m in own if isinstance(m, types.ModuleType) and ".tests" not in m.__name__]
    layers = [v for v in vars(torch.nn).values() if isinstance(v, type) and issubclass(v, torch.nn.Module)]
    classes = [
        value for module in own for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]  # fmt: skip
    places = tuple(dict.fromkeys([*_MODULES, *own, *_CLASSES, *layers, *classes]))
    tables = [
        value for module in own for name, value in vars(module).items()
        if isinstance(value, dict | list | set) and not name.startswith("__") and name != "_LEFT"
    ]  # fmt: skip
    tables += [registry._entries for registry in REGISTRIES.values()]
    return places, tuple(map(vars, places)), tuple({id(t): t for t in tables}.values())


class _Standing:
    """The attributes of every place, and the content of every table, at one moment."""

    def __init__(self) -> None:
        self.places, self.attributes, self.tables = _places(len(sys.modules))
        self.before = [mapping.copy() for mapping in self.attributes]
        self.contents = [table.copy() for table in self.tables]
        self._flat = _values(self.before, self.contents)

    def changed(self) -> list[str]:
        """Return the readable names of what is not as it was, none where all is."""
        try:
            # Quick: what is the same object is not compared further. What this denies is looked at by name.
            if self._flat == _values(self.attributes, self.tables):
                return []
        except Exception:  # noqa: S110 (what stands there now cannot be compared, so it is another)
            pass
        places = [
            f"{_name(place)}.{name}"
            for place, now, before in zip(self.places, self.attributes, self.before, strict=True)
            for name in _differences(place, now, before)
        ]
        return [*places, *(["a table of this package"] if list(self._other_tables()) else [])]

    def put_back(self) -> None:
        """Make all as it was."""
        for place, now, before in zip(self.places, self.attributes, self.before, strict=True):
            for name in _differences(place, now, before):
                value = before.get(name, _GONE)
                if value is _GONE:
                    _real_delattr(place, name)
                else:
                    _real_setattr(place, name, value)
        for table, before in self._other_tables():
            if isinstance(table, dict):
                table.update(before)
            elif isinstance(table, list):
                table[:] = before
            else:
                table.clear()
                table.update(before)

    def _other_tables(self) -> list[tuple[Any, Any]]:
        both = zip(self.tables, self.contents, strict=True)
        return [(table, before) for table, before in both if not _holds(table, before)]


def _values(*groups: Iterable[Any]) -> list[Any]:
    """Return the values of mappings and the items of other containers, one after the other."""
    return list(chain.from_iterable(_items(container) for group in groups for container in group))


def _items(container: Any) -> Iterable[Any]:
    if hasattr(container, "values"):
        return cast(Iterable[Any], container.values())
    # Two sets with the same items may list them in another order.
    return [_identities(container)] if isinstance(container, set) else cast(Iterable[Any], container)


def _identities(items: Iterable[Any]) -> frozenset[int]:
    return frozenset(map(id, items))


def _holds(now: Any, before: Any) -> bool:
    """Return whether a table has all that it had; by identity, as a replacement may claim to be equal to anything."""
    if isinstance(before, dict):
        return all(now.get(name, _GONE) is value for name, value in before.items())
    if isinstance(before, set):
        return _identities(now) == _identities(before)
    return len(now) == len(before) and all(map(operator.is_, now, before))


def _differences(place: Any, now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Return the names of a module or class whose values are others, are gone, or hide something."""
    found = [n for n, value in before.items() if now.get(n, _GONE) is not value]
    found += [n for n in tuple(now) if n not in before and _hides(place, n)]
    return [n for n in found if n not in _IGNORED]


def _hides(place: Any, name: str) -> bool:
    if isinstance(place, types.ModuleType):
        return place is not builtins and hasattr(builtins, name) and not name.startswith("__")
    return any(name in vars(base) for base in place.__mro__[1:])


def _name(place: Any) -> str:
    return place.__name__ if isinstance(place, types.ModuleType) else f"{place.__module__}.{place.__qualname__}"


class _FunctionsProbe(Probe):
    def changed(self, before: Any) -> list[str]:
        found: list[str] = before.changed()
        return found


PROBE = _FunctionsProbe("functions", _Standing, _Standing.put_back)
