"""Standard output and standard error of a command: a full device or a closed pipe is a sentence, never a traceback."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..core.errors import AftershockError


class _Stream:
    """A stream under another one's name; what is not defined here is the other one's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Output(_Stream):
    """Standard output: what cannot be written raises an :class:`AftershockError`."""

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text) or 0)
        except OSError as error:
            raise _failed(error) from error

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            raise _failed(error) from error


class _Lenient(_Stream):
    """Standard error: what cannot be written is lost, for there is nowhere to say so."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


class _Closed(io.TextIOBase):
    """What stands for a standard output that was closed before the program started."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        if text:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return 0


def _failed(error: OSError) -> AftershockError:
    if error.errno == errno.EPIPE:
        return AftershockError("The output was cut off: its reader ended before everything was written.")
    reason = "it is closed" if error.errno == errno.EBADF else error.strerror or str(error)
    return AftershockError(f"Standard output cannot be written ({reason}); all else that the command did is kept.")


@contextmanager
def checked_output() -> Iterator[None]:
    """Within it, standard output raises an :class:`AftershockError` where it cannot be written, at the exit at last."""
    _occupy()
    real = sys.stdout
    sys.stdout = _Output(_Closed() if real is None else real)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except AftershockError:
        # What is still in the buffer would be tried again, in vain, when the interpreter ends.
        _discard(real)
        raise
    finally:
        sys.stdout = real


@contextmanager
def lenient_errors() -> Iterator[None]:
    """Within it, a standard error that cannot be written stops nothing."""
    _occupy()
    real = sys.stderr
    if real is None:
        with open(os.devnull, "w", encoding="utf-8") as sink:  # noqa: PTH123 - a name, not a path
            sys.stderr = sink
            try:
                yield
            finally:
                sys.stderr = real
        return
    sys.stderr = _Lenient(real)
    try:
        yield
    finally:
        sys.stderr = real
        try:
            real.flush()
        except OSError:
            # What stays in the buffer fails again when the interpreter ends, and makes its exit status 120.
            _discard(real)


def _occupy() -> None:
    """Open the standard descriptors that are closed: a file of ours in their place would receive what others print."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)


def _discard(stream: Any) -> None:
    with suppress(OSError, ValueError, AttributeError):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, stream.fileno())
        os.close(sink)
