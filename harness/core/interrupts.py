"""Telling a person's Ctrl-C from what a part raises: only a person ends a run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .errors import UsageError, text_of

DECIDES_NO_NUMBER = True


class UserInterrupt(KeyboardInterrupt):
    """SIGINT reached this process."""


class PartEndedError(UsageError):
    """Code of others tried to end the program, or raised what no part may raise."""


class Interrupt:
    """Whether SIGINT came since it was listened for; code of others may have caught what was raised then."""

    came = False

    def check(self) -> None:
        """Raise :class:`UserInterrupt` if it came."""
        if self.came:
            raise UserInterrupt

    @contextmanager
    def told(self) -> Iterator[None]:
        """Raise :class:`UserInterrupt` where a library (Ray) raises a ``KeyboardInterrupt`` of its own for a signal."""
        try:
            yield
        except KeyboardInterrupt:
            self.check()
            raise


@contextmanager
def listening() -> Iterator[Interrupt]:
    """Raise :class:`UserInterrupt` for SIGINT inside the block.

    Where SIGINT is ignored, as for a command in the background of a script, it stays so; outside the main thread no
    handler can be set, and none is needed, as no signal arrives there.
    """
    found = Interrupt()
    before = signal.getsignal(signal.SIGINT)
    if before in (signal.SIG_IGN, None) or threading.current_thread() is not threading.main_thread():
        yield found
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        found.came = True
        raise UserInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield found
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def contained() -> Iterator[None]:
    """Let nothing but exceptions out of code of others: what would end the program becomes an error with its reason.

    Raises:
        UserInterrupt: as it is.
        PartEndedError: for ``SystemExit``, ``KeyboardInterrupt`` without a signal, and the like.
    """
    try:
        yield
    except (Exception, UserInterrupt):
        raise
    except SystemExit as error:
        raise PartEndedError(f"it tried to end the program (sys.exit({error.code!r}))") from error
    except BaseException as error:
        text = f"{type(error).__name__}: {text_of(error)}".removesuffix(": ")
        raise PartEndedError(f"it raised {text}") from error
