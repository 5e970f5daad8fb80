"""Tables and pages of a run that is not over yet: made now and then of what is finished."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..core.errors import AftershockError
from .computing import Computed

DECIDES_NO_NUMBER = True

# Seconds from one time to the next, and at most this share of a run's time goes into it.
_EVERY, _SHARE = 600.0, 0.02


@dataclass
class Interim:
    """Writes what is finished, when it is time.

    Args:
        write: writes tables and pages.
        on_message: told once if they cannot be written; the run goes on without.
        every: seconds from one time to the next, at least.
    """

    write: Callable[[Computed], None]
    on_message: Callable[[str], None]
    every: float = field(default_factory=lambda: _EVERY)
    _next: float = field(init=False)

    def __post_init__(self) -> None:
        self._next = time.monotonic() + self.every

    def __call__(self, finished: Callable[[], Computed]) -> None:
        """Write, if it is time.

        Args:
            finished: returns what there is.
        """
        start = time.monotonic()
        if start < self._next:
            return
        try:
            self.write(finished())
        except AftershockError as error:
            self.on_message(f"Pages of what is finished so far cannot be made: {error}")
            self._next = float("inf")
            return
        took = time.monotonic() - start
        self._next = start + took + max(self.every, took / _SHARE)
