"""What a piece of work costs, so that a limit means the same on a busy machine and on one with many cores."""

from __future__ import annotations

import sys
import time

# Work that only waits is charged this share of its time: it blocks a run, but no machine.
_WAITING = 30


class Stopwatch:
    """Counts from the moment when it is made."""

    def __init__(self) -> None:
        self._wall, self._cpu, self._modules = time.perf_counter(), time.process_time(), len(sys.modules)

    @property
    def seconds(self) -> float:
        """Seconds to hold against a limit: CPU seconds of all threads, or wall-clock where that is less.

        On a busy machine the CPU seconds are less. On one with many cores those of all threads add up, and the
        wall-clock is less. Of time spent waiting, a thirtieth counts.
        """
        wall = time.perf_counter() - self._wall
        return max(min(time.process_time() - self._cpu, wall), wall / _WAITING)

    @property
    def imported(self) -> bool:
        """Whether modules were imported meanwhile, which only the first call of a part pays for."""
        return len(sys.modules) != self._modules
