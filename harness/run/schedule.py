"""Which cells can be computed next: those whose inputs are settled, in an order that keeps all workers busy."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Mapping

from ..plan.cells import Cell


class Schedule:
    """Gives out groups of cells, each cell once, when all its inputs are settled.

    One worker takes cells in the plan's order, so that one model's work stays together. Several take the group first
    that the longest chain of other cells waits for, so that no chain is left over that only one of them can work on.

    Args:
        cells: all that have to be computed, in an order in which inputs come first; inputs that are not among them are
            settled.
        seconds: what a cell is expected to take.
        workers: that will compute at once.
        first: of a group, by its key, whether it is taken before others.
    """

    def __init__(
        self,
        cells: Mapping[str, Cell],
        seconds: Callable[[Cell], float],
        workers: int,
        first: Callable[[str], bool] = lambda group: True,
    ) -> None:
        self._cells, self._first = cells, first
        # How many inputs each cell waits for, and which cells wait for each.
        self._waiting = dict.fromkeys(cells, 0)
        self._dependents: dict[str, list[str]] = defaultdict(list)
        for key, cell in cells.items():
            for needed in cell.inputs:
                if needed in cells:
                    self._waiting[key] += 1
                    self._dependents[needed].append(key)
        self._order = {key: i for i, key in enumerate(cells)}
        self._chain = dict.fromkeys(cells, 0.0)
        if workers > 1:
            for key in reversed(list(cells)):
                after = max((self._chain[later] for later in self._dependents[key]), default=0.0)
                self._chain[key] = after + seconds(cells[key])
        # Ready cells by group, and a heap of groups; a group stands there once for each time that it grew from nothing.
        self._ready: dict[str, list[str]] = {}
        self._heap: list[tuple[bool, float, int, str]] = []
        for key, inputs in self._waiting.items():
            if inputs == 0:
                self._add(key)

    def __bool__(self) -> bool:
        """Return whether a group can be computed now."""
        return bool(self._ready)

    def next(self) -> list[Cell]:
        """Take the next group: the cells of it that are ready, in the plan's order.

        Raises:
            IndexError: if there is none.
        """
        group = heapq.heappop(self._heap)[-1]
        keys = sorted(self._ready.pop(group), key=self._order.__getitem__)
        return [self._cells[key] for key in keys]

    def settle(self, key: str) -> None:
        """Note that a cell is over, whatever became of it: cells that wait for nothing else are ready."""
        for dependent in self._dependents.pop(key, ()):
            self._waiting[dependent] -= 1
            if self._waiting[dependent] == 0:
                self._add(dependent)

    def _add(self, key: str) -> None:
        group = self._cells[key].group
        found = self._ready.get(group)
        if found is None:
            self._ready[group] = [key]
            heapq.heappush(self._heap, (not self._first(group), -self._chain[key], self._order[key], group))
        else:
            found.append(key)
