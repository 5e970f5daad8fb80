"""Events that a caller receives while a run goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..plan.cells import Cell

DECIDES_NO_NUMBER = True


# ``waiting``: all that is left is being computed by other runs that share the cache.
Kind = Literal["start", "share", "waiting", "done", "kept", "failed", "skipped"]
# Those after which a cell is over.
ENDED: tuple[Kind, ...] = ("done", "kept", "failed", "skipped")


@dataclass(frozen=True)
class Event:
    """Progress: a cell starts, a share of it is done (long ones tell), or it is over.

    Attributes:
        kind: what happens.
        cell: the cell that it happens to.
        finished: number of cells that are over, and
        total: of how many.
        seconds_left: how long the rest is expected to take.
        reason: why the cell failed or was skipped.
        share: which share of the cell is done.
        over: which share of the expected work of this call is over.
    """

    kind: Kind
    cell: Cell
    finished: int
    total: int
    seconds_left: float
    reason: str = ""
    share: float = 0.0
    over: float = 0.0


def once(on_message: Callable[[str], None]) -> Callable[[str], None]:
    """Return what passes a sentence on the first time that it is told."""
    told: set[str] = set()

    def tell(text: str) -> None:
        if text not in told:
            told.add(text)
            on_message(text)

    return tell
