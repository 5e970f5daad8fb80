"""The few things that were used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

DECIDES_NO_NUMBER = True

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Values by key; beyond ``size`` of them, the one that was used least recently goes.

    Args:
        size: maximum number of values, at least 1.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: OrderedDict[K, V] = OrderedDict()

    def __contains__(self, key: K) -> bool:
        return key in self._held

    def __getitem__(self, key: K) -> V:
        self._held.move_to_end(key)
        return self._held[key]

    def __setitem__(self, key: K, value: V) -> None:
        self._held[key] = value
        self._held.move_to_end(key)
        while len(self._held) > self._size:
            self._held.popitem(last=False)

    def discard(self, key: K) -> None:
        """Forget a value, if it is held."""
        self._held.pop(key, None)

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """Return a value, made where it is not held."""
        if key not in self._held:
            self[key] = make()
        return self[key]
