"""Working through a plan: what is stored is kept, what is missing is computed, what fails is noted and left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from fnmatch import fnmatch
from itertools import count

from ..core.errors import AftershockError, UnavailableError, UsageError, described
from ..core.interrupts import Interrupt
from ..core.registry import did_you_mean
from ..plan.cells import Cell
from ..plan.summary import Summary
from ..store.run_directory import Store
from .events import Event, Kind
from .options import Shard
from .schedule import Schedule
from .time_left import TimeLeft
from .work import Engine, Outcome, Output, Result, Task

# Seconds after which cells that another run computes are looked for again.
POLL = 0.2


def choose(cells: Mapping[str, Cell], pattern: str | None) -> dict[str, Cell]:
    """Return the cells that a pattern names, with everything that they need; all without a pattern.

    Raises:
        UsageError: if nothing matches.
    """
    if pattern is None:
        return dict(cells)
    # As plain text too: the brackets of `pgd[eps=8/255]` mean something else in a pattern.
    names = {cell.key: str(cell.name) for cell in cells.values()}
    wanted = [key for key, name in names.items() if pattern in name or fnmatch(name, f"*{pattern}*")]
    if not wanted:
        raise UsageError(f"--only {pattern!r} matches no cell{did_you_mean(pattern, set(names.values()))}.")
    keep: set[str] = set()
    while wanted:
        key = wanted.pop()
        if key not in keep:
            keep.add(key)
            wanted.extend(cells[key].inputs)
    return {key: cell for key, cell in cells.items() if key in keep}


class Runner:
    """Runs cells through an engine and stores what comes back; the only writer.

    Args:
        cells: in an order in which inputs come first.
        store: the run directory.
        engine: where they are computed.
        expected: seconds that a cell is expected to take.
        on_progress: called with every event.
        debug: let the first error of a cell through instead of noting it.
        interrupt: knows of a Ctrl-C, which a part may have caught.
        shard: which of several processes this is that share the work.
    """

    def __init__(
        self,
        cells: Mapping[str, Cell],
        store: Store,
        engine: Engine,
        expected: Callable[[Cell], float],
        on_progress: Callable[[Event], None],
        debug: bool = False,
        interrupt: Interrupt | None = None,
        shard: Shard | None = None,
    ) -> None:
        self.cells, self.store, self.engine = cells, store, engine
        self.on_progress, self.debug, self.interrupt = on_progress, debug, interrupt or Interrupt()
        self.first = (lambda group: True) if shard is None else shard.owns
        self.summary = Summary()
        self.time = TimeLeft(expected)
        self._running: dict[int, tuple[list[Cell], ExitStack]] = {}
        # Outcomes for which nothing has to be computed: inputs that failed, cells that another process computed.
        self._known: deque[Outcome] = deque()
        # By number of a task: the cell that is shown for it.
        self._begun: dict[int, Cell] = {}
        # Groups that another run computes at the moment.
        self._elsewhere: deque[list[Cell]] = deque()
        self._numbers = count()

    def run(self) -> Summary:
        """Work until nothing is left that can be done.

        Raises:
            AftershockError: if the run directory cannot be written; what was there stays.
        """
        pending = self._keep_stored()
        for cell in pending.values():
            self.time.expect(cell)
        schedule = Schedule(pending, self.time.expected, self.engine.slots, self.first)
        try:
            while schedule or self._elsewhere or self._running:
                self._submit_next(schedule)
                if not self._running:
                    # All that is left is being computed by others.
                    self._say("waiting", self._elsewhere[0][0])
                    time.sleep(POLL)
                    self.interrupt.check()
                    continue
                # While a slot is free, what another run computes is looked for again.
                free = self._elsewhere and len(self._running) < self.engine.slots
                outcome = (
                    self._known.popleft() if self._known else self.engine.next(self._share, POLL if free else None)
                )
                self.interrupt.check()
                for key in self._take(outcome) if outcome is not None else ():
                    schedule.settle(key)
        finally:
            for _, lock in self._running.values():
                lock.close()
            self._running.clear()
        return self.summary

    def _keep_stored(self) -> dict[str, Cell]:
        pending: dict[str, Cell] = {}
        for key, cell in self.cells.items():
            record = self.store.find(key, cell.name)
            if record is None:
                pending[key] = cell
                continue
            self.summary.done.add(key)
            self._say("kept", cell)
        return pending

    def _submit_next(self, schedule: Schedule) -> None:
        """Fill the engine; what another run computes comes last.

        Cells whose inputs failed are settled on the way: nothing has to be computed to know that.
        """
        again = len(self._elsewhere)
        while (schedule or again) and len(self._running) < self.engine.slots:
            if schedule:
                cells = schedule.next()
            else:
                again -= 1
                cells = self._elsewhere.popleft()
            lock = self.store.computing(cells[0].group)
            if lock is None:
                self._elsewhere.append(cells)
                continue
            # A unit that another process computed meanwhile is only linked.
            self._hold(cells, lock)

    def _hold(self, cells: Sequence[Cell], lock: ExitStack) -> None:
        number = next(self._numbers)
        self._running[number] = (list(cells), lock)
        self._submit(number, cells)

    def _submit(self, number: int, cells: Sequence[Cell]) -> None:
        blocked = self._blocked(cells[0])
        missing = tuple(cell for cell in cells if self.store.find(cell.key, cell.name) is None)
        if blocked or not missing:
            self._known.append(Outcome(number, error=UnavailableError(blocked) if blocked else None))
            return
        self.time.begin(missing[0])
        self._say("start", missing[0])
        self._begun[number] = missing[0]
        self.engine.submit(Task(number, missing))

    def _share(self, number: int, share: float) -> None:
        cell = self._begun[number]
        self.time.share(cell, share)
        self._say("share", cell, share=share)

    def _blocked(self, cell: Cell) -> str:
        for key in cell.inputs:
            reason = self.summary.failed.get(key) or self.summary.skipped.get(key)
            if reason:
                name = self.cells[key].name
                # The first cause, not the chain that led here.
                return reason if reason.startswith("needs ") else f"needs {name}: {reason}"
        return ""

    def _take(self, outcome: Outcome) -> list[str]:
        """Store what a task gave; returns the keys that are settled."""
        cells, lock = self._running.pop(outcome.task)
        try:
            if outcome.error is not None:
                if len(cells) > 1 and not isinstance(outcome.error, UnavailableError):
                    # One part's fault must not take down what only shares a forward pass with it.
                    return self._one_by_one(cells, lock)
                self._note_failure(cells, outcome.error)
                return [cell.key for cell in cells]
            results = {result.key: result for result in outcome.results}
            for cell in cells:
                result = results.get(cell.key)
                if result is not None:
                    try:
                        stored = Result.of(result) if isinstance(result, Output) else result
                        self.store.put(cell.key, cell.name, stored.artifact, stored.values, stored.seconds)
                    except AftershockError:
                        raise
                    except Exception as error:
                        # What a part gave has no form on disk: its own failure, not the run's.
                        self._note_failure([cell], error)
                        continue
                self.time.settle(cell, None if result is None else result.seconds)
                if result is not None:
                    self.summary.computed.add(cell.key)
                self.summary.done.add(cell.key)
                self._say("done" if result is not None else "kept", cell)
            return [cell.key for cell in cells]
        finally:
            lock.close()

    def _one_by_one(self, cells: Sequence[Cell], lock: ExitStack) -> list[str]:
        """Submit the cells of a group that failed again, each alone; nothing is settled yet."""
        lock.close()
        for cell in cells:
            self._hold([cell], self.store.computing(cell.key) or ExitStack())
        return []

    def _note_failure(self, cells: Iterable[Cell], error: BaseException) -> None:
        skipped = isinstance(error, UnavailableError)
        if self.debug and not skipped:
            raise error
        reason = described(error)
        for cell in cells:
            self.time.settle(cell)
            (self.summary.skipped if skipped else self.summary.failed)[cell.key] = reason
            self.store.put_failure(cell.key, cell.name, "skipped" if skipped else "failed", reason)
            self._say("skipped" if skipped else "failed", cell, reason)

    def _say(
        self, kind: Kind, cell: Cell, reason: str = "",
        share: float = 0.0,
    ) -> None:  # fmt: skip
        finished = len(self.summary.done) + len(self.summary.failed) + len(self.summary.skipped)
        left, slots = self.time.seconds(self.engine.slots), self.engine.slots
        spent = self.time.spent()
        over = spent / (spent + left * slots) if spent + left > 0 else 1.0
        self.on_progress(Event(kind, cell, finished, len(self.cells), left, reason, share, over))
