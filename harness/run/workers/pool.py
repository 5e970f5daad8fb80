"""The processes of plugins: one for each plugin and what it is asked for, started when needed, a few at a time."""

from __future__ import annotations

import atexit
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from .folder import remove_abandoned
from .process import Allowance, Source, Worker, WorkerEndedError

DECIDES_NO_NUMBER = True

# A plugin's detectors must not share a process with its data set, which knows all labels, or with its attacks.
Role = Literal["detectors", "perturbations", "datasets", "analyses", "witness"]
# Each takes about 300 MB, and two to three seconds of a processor to start again after it was ended for another.
_SIZE = 300 * 10**6
_FEWEST, _SHARE = 8, 0.25
# A part that has ended its process so often, asked one thing, is not asked it again: each end takes a new start, and
# one that hangs the whole time that it may.
_ENDS = 2


def _most() -> int:
    """Return how many may run at once: as many as fit in a quarter of the machine's memory."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return _FEWEST
    return max(_FEWEST, int(_SHARE * memory / _SIZE))


class WorkerPool:
    """Processes by plugin and role; those that were not asked for longest are ended.

    Args:
        most: that run at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._workers: OrderedDict[tuple[Source, Role], Worker] = OrderedDict()
        self._allowance = Allowance()
        self._ends: dict[tuple[object, ...], list[str]] = {}

    def allow(self, allowance: Allowance) -> None:
        """Set what every process may use from now on; those that were started with another allowance are ended."""
        if allowance != self._allowance:
            self.close()
            self._allowance = allowance

    def worker(self, source: Source, role: Role) -> Worker:
        """Return the process of a plugin for one role; started when it is asked."""
        key = (source, role)
        worker = self._workers.get(key)
        if worker is None:
            if not self._workers:
                remove_abandoned()
            worker = self._workers[key] = Worker(source, self._allowance)
        self._workers.move_to_end(key)
        running = [w for w in self._workers.values() if w is not worker and w.running]
        for old in running[: max(0, len(running) - self._most + 1)]:
            old.close()
        return worker

    @contextmanager
    def fresh(self, source: Source) -> Iterator[Worker]:
        """A plugin's process that was never asked anything; no other process of a plugin runs meanwhile.

        Others could tell it what they have seen, as soon as it imports the plugin. Until then another one gets ready.
        """
        worker = self.worker(source, "witness")
        others = [w for w in self._workers.values() if w is not worker and w.running]
        try:
            for other in others:
                other.pause()
            yield worker
        finally:
            worker.renew()
            for other in others:
                other.resume()

    def refuse(self, *asked: object) -> None:
        """Raise :class:`WorkerEndedError` with the reason where too many processes have ended over one question."""
        ends = self._ends.get(asked, [])
        if len(ends) >= _ENDS:
            raise WorkerEndedError(ends[-1])

    def ended(self, error: WorkerEndedError, *asked: object) -> None:
        """Remember that a process ended over a question."""
        self._ends.setdefault(asked, []).append(str(error))

    def close(self) -> None:
        """End all processes; others are started with the next question."""
        self._ends.clear()
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()


# A process is a resource of the whole program, like the registries whose stand-ins ask it.
POOL = WorkerPool(_most())
atexit.register(POOL.close)
