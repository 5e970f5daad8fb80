"""How long the rest of a run takes: what was expected of each cell, corrected by what its like took."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..plan.cells import Cell

DECIDES_NO_NUMBER = True

# How much measured time a correction needs until it counts as much as the one that it starts from: of all cells as a
# share of what is expected in all, of a kind as a share of what is expected of it, of a group in cells.
_ALL, _KIND, _GROUP = 0.15, 0.15, 0.5
_MOST = 3.0
# Seconds for which a sum over all groups holds.
_FRESH = 0.1


@dataclass
class _Sum:
    """Expected seconds of cells that wait, and of those that are over expected and measured seconds."""

    waiting: float = 0.0
    expected: float = 0.0
    spent: float = 0.0
    cells: int = 0

    @property
    def total(self) -> float:
        return self.waiting + self.expected

    def corrected(self, start: float, weight: float) -> float:
        """Return measured over expected, beginning at ``start`` with a weight in expected seconds."""
        return (self.spent + weight * start) / (self.expected + weight) if self.expected + weight > 0 else start


class TimeLeft:
    """How long the rest takes.

    Args:
        expected: seconds that a cell is expected to take before anything was measured.
        clock: seconds of a steady clock.
    """

    def __init__(self, expected: Callable[[Cell], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._expect, self._clock = expected, clock
        self._all = _Sum()
        self._kinds: dict[str, _Sum] = {}
        self._groups: dict[tuple[str, str, str], _Sum] = {}
        # Cells that are being computed: since when, and what a long one says is left.
        self._running: dict[str, tuple[Cell, float, float | None]] = {}
        self._first: dict[str, float] = {}
        self._spent = 0.0
        self._known: tuple[float | None, float] = (None, 0.0)

    def expect(self, cell: Cell) -> None:
        """A cell that has to be computed."""
        self._known = None, 0.0
        seconds = self._first[cell.key] = max(1e-6, self._expect(cell))
        for found in self._sums(cell):
            found.waiting += seconds

    def begin(self, cell: Cell) -> None:
        """A cell that is being computed from now on."""
        self._running[cell.key] = (cell, self._clock(), None)

    def share(self, cell: Cell, share: float) -> None:
        """A cell that is being computed says which share of it is done."""
        began = self._running.get(cell.key, (cell, self._clock(), None))[1]
        if share > 0:
            spent = self._clock() - began
            self._running[cell.key] = (cell, began, spent / share)

    def settle(self, cell: Cell, seconds: float | None = None) -> None:
        """A cell that is over, whatever became of it, and what it took where it was computed."""
        when, known = self._known
        self._known = when, max(0.0, known - self.expected(cell))
        # A single cell that takes much longer says little of others.
        most = _MOST * self.expected(cell)
        expected = self._first.pop(cell.key, 0.0)
        self._running.pop(cell.key, None)
        every, kind, group = self._sums(cell)
        for found, spent in ((every, most), (kind, most), (group, math.inf)):
            found.waiting = max(0.0, found.waiting - expected)
            if seconds is not None:
                found.expected += expected
                found.spent += min(seconds, spent)
                found.cells += 1
        self._spent += seconds or 0.0

    def seconds(self, slots: int = 1) -> float:
        """Return how many seconds pass until all is done.

        Args:
            slots: how many cells are computed at once; a cell that is being computed is not shared.
        """
        when, known = self._known
        now = self._clock()
        if when is None or now - when > _FRESH or not self._first:
            known = self._work()
            self._known = (now, known)
        done, longest = 0.0, 0.0
        for cell, began, total in self._running.values():
            if cell.key in self._first:
                whole = total if total is not None else self.expected(cell)
                passed = now - began
                # One that takes longer than expected takes a little longer still.
                left = max(whole - passed, 0.1 * passed)
                done += self.expected(cell) - left
                longest = max(longest, left)
        return max(longest, (known - done) / max(1, slots), 0.0)

    def spent(self) -> float:
        """Return the measured seconds of all cells that are over and of those that are being computed."""
        now = self._clock()
        return self._spent + sum(now - began for _, began, _ in self._running.values())

    def expected(self, cell: Cell) -> float:
        """Return the expected seconds of one cell."""
        first = self._first.get(cell.key)
        return (self._expect(cell) if first is None else first) * self._correction(_group(cell), self._kind(cell.kind))

    def _work(self) -> float:
        if not self._first:
            return 0.0
        factors = {kind: self._kind(kind) for kind in self._kinds}
        return sum(
            found.waiting * self._correction(group, factors[group[1]])
            for group, found in self._groups.items()
            if found.waiting > 0
        )

    def _kind(self, kind: str) -> float:
        found = self._kinds.get(kind)
        start = self._all.corrected(1.0, _ALL * self._all.total)
        return start if found is None else found.corrected(start, _KIND * found.total)

    def _correction(self, group: tuple[str, str, str], start: float) -> float:
        found = self._groups.get(group)
        if found is None or not found.cells:
            return start
        return found.corrected(start, _GROUP * found.expected / found.cells)

    def _sums(self, cell: Cell) -> tuple[_Sum, _Sum, _Sum]:
        kind, group = self._kinds.setdefault(cell.kind, _Sum()), self._groups.setdefault(_group(cell), _Sum())
        return self._all, kind, group


def _group(cell: Cell) -> tuple[str, str, str]:
    """Cells of one model, kind and part take what they were expected to, by the same factor."""
    return cell.name.model, cell.name.kind, cell.name.part
