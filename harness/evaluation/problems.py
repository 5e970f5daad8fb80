"""What could not be written at the end of a run, by name: a part's fault affects its own rows alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ..core.errors import described
from ..core.interrupts import contained
from ..core.process_state import guarded

T = TypeVar("T")


class Problems:
    """Collects reasons.

    Args:
        debug: let the first error through.
    """

    def __init__(self, debug: bool = False) -> None:
        self.debug = debug
        self.found: dict[str, str] = {}

    @contextmanager
    def of(self, name: str, writes: bool = False) -> Iterator[None]:
        """Note why a block failed, and go on after it.

        Args:
            name: of what the block makes, for a person.
            writes: it writes to the run directory, so an ``OSError`` concerns all and is let through.
        """
        try:
            with guarded(), contained():
                yield
        except Exception as error:
            if self.debug or (writes and isinstance(error, OSError)):
                raise
            self.found.setdefault(name, described(error))

    def attempt(self, name: str, make: Callable[[], T], instead: Callable[[str], T]) -> T:
        """Return what ``make`` gives, or where it fails what ``instead`` makes of the reason."""
        made: list[T] = []
        with self.of(name):
            made.append(make())
        return made[0] if made else instead(self.found[name])
