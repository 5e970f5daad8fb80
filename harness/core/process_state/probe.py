"""One piece of a process's state."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

DECIDES_NO_NUMBER = True

# What a change means: numbers of later work may depend on it; it disturbs others and changes no number; or nothing, as
# whatever draws random numbers does it.
Effect = Literal["numbers", "disturbs", "none"]


@dataclass(frozen=True)
class Probe:
    """How one piece of state is read and put back.

    Attributes:
        name: as a note and a flag call it.
        read: gives the state, as a value that later changes do not reach.
        write: puts back what ``read`` gave.
        effect: what a change means.
        same: whether two readings are equal.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]
    effect: Effect = "numbers"
    same: Callable[[Any, Any], bool] = operator.eq

    def changed(self, before: Any) -> list[str]:
        """Return what is not as it was, by name; state that cannot be read any more is not."""
        try:
            return [] if self.same(before, self.read()) else [self.name]
        except Exception:
            return [self.name]


def identical(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Return whether two sequences hold the same objects; what replaced one may claim to be equal to anything."""
    return len(one) == len(other) and all(map(operator.is_, one, other))
