"""The processes of plugins: one for each plugin and what it is asked for, started when needed, a few at a time."""

from __future__ import annotations

import atexit
from collections import OrderedDict
from typing import Literal

from .process import Allowance, Source, Worker

# A plugin's detectors must not share a process with its data set, which knows all labels, or with its attacks.
Role = Literal["detectors", "perturbations", "datasets", "analyses", "witness"]
# Each takes about 300 MB; one that is ended is started again when it is needed.
_MOST = 8


class WorkerPool:
    """Processes by plugin and role; those that were not asked for longest are ended."""

    def __init__(self) -> None:
        self._workers: OrderedDict[tuple[Source, Role], Worker] = OrderedDict()
        self._allowance = Allowance()

    def allow(self, allowance: Allowance) -> None:
        """Let every process use so much from now on; those that were started with another allowance are ended."""
        if allowance != self._allowance:
            self.close()
            self._allowance = allowance

    def worker(self, source: Source, role: Role) -> Worker:
        """The process of a plugin for one role; started when it is asked."""
        key = (source, role)
        worker = self._workers.get(key)
        if worker is None:
            worker = self._workers[key] = Worker(source, self._allowance)
        self._workers.move_to_end(key)
        running = [w for w in self._workers.values() if w is not worker and w.running]
        for old in running[: max(0, len(running) - _MOST + 1)]:
            old.close()
        return worker

    def close(self) -> None:
        """End all processes; others are started when somebody asks again."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()


# A process is a resource of the whole program, like the registries whose stand-ins ask it.
POOL = WorkerPool()
atexit.register(POOL.close)
