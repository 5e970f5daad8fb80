"""The few things that were used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

DECIDES_NO_NUMBER = True

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Values by key; beyond ``size`` of them, those that were used least recently go.

    Args:
        size: maximum number of values, at least 1, or of what ``weigh`` counts.
        weigh: what a value counts; by default 1. A value that alone counts more than ``size`` is not held.
    """

    def __init__(self, size: int, weigh: Callable[[V], int] = lambda value: 1) -> None:
        self._size, self._weigh = size, weigh
        self._weight = 0
        self._held: OrderedDict[K, V] = OrderedDict()

    def __contains__(self, key: K) -> bool:
        return key in self._held

    def __getitem__(self, key: K) -> V:
        self._held.move_to_end(key)
        return self._held[key]

    def __setitem__(self, key: K, value: V) -> None:
        self.discard(key)
        self._held[key] = value
        self._weight += self._weigh(value)
        while self._weight > self._size:
            self._weight -= self._weigh(self._held.popitem(last=False)[1])

    def discard(self, key: K) -> None:
        """Forget a value, if it is held."""
        if key in self._held:
            self._weight -= self._weigh(self._held.pop(key))

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """Return a value, made where it is not held."""
        if key in self._held:
            return self[key]
        value = make()
        self[key] = value
        return value
