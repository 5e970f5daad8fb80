"""The default engine: tasks one after the other, in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from . import Outcome, Output


class LocalEngine:
    """Computes each task when its outcome is asked for, in the order of submission."""

    slots = 1

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Callable[[], Sequence[Output]]]] = deque()

    def submit(self, task: int, work: Callable[[], Sequence[Output]]) -> None:
        """Put a task at the end of the queue."""
        self._waiting.append((task, work))

    def outcomes(self) -> Iterator[Outcome]:
        """Compute and give, until nothing waits."""
        while self._waiting:
            task, work = self._waiting.popleft()
            try:
                yield Outcome(task, tuple(work()))
            except Exception as error:
                yield Outcome(task, error=error)
