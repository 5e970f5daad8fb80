"""Tasks one after the other, in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ...core.interrupts import contained
from ..work import Compute, Outcome, Task

DECIDES_NO_NUMBER = True


class LocalEngine:
    """Computes each task when its outcome is asked for, in the order of submission.

    Args:
        compute: computes a task.
    """

    slots = 1

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._waiting: deque[Task] = deque()

    def submit(self, task: Task) -> None:
        """Put a task at the end of the queue."""
        self._waiting.append(task)

    def next(self, on_progress: Callable[[int, float], None], seconds: float | None = None) -> Outcome:
        """Compute the first task that waits."""
        task = self._waiting.popleft()
        try:
            with contained():
                return Outcome(task.number, tuple(self._compute(task, lambda share: on_progress(task.number, share))))
        except Exception as error:
            return Outcome(task.number, error=error)

    def close(self) -> None:
        """Nothing was started."""
        self._waiting.clear()
