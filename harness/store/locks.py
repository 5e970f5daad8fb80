"""Locks by name in a folder that processes share, on one machine or several; a lock leaves no file behind."""

from __future__ import annotations

import hashlib
import os
import struct
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

DECIDES_NO_NUMBER = True

_FILE = "names"


class Locks:
    """Locks that end with their process.

    On Linux a name is one byte far inside a file, which is locked without being there: a hundred thousand locks take a
    fraction of a second, also on a file system of another machine. Elsewhere, and where that does not work, each is a
    file of ``filelock``.

    Args:
        folder: where their files lie; made with the first lock.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bytes: _Bytes | None = None
        self._ready = False

    def take(self, name: str) -> ExitStack | None:
        """Lock a name until what is returned is closed.

        Returns:
            ``None`` if another process, or this one, holds it.

        Raises:
            OSError: if it cannot be locked here.
        """
        if not self._ready:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._bytes = _Bytes.opened(self._folder / _FILE)
            self._ready = True
        held = ExitStack()
        if self._bytes is not None:
            place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])
            if not self._bytes.take(place):
                return None
            held.callback(self._bytes.release, place)
            return held
        lock = FileLock(self._folder / f"{name}.lock")
        try:
            held.enter_context(lock.acquire(timeout=0))
        except Timeout:
            return None
        held.callback(_remove, lock)
        return held

    def claim(self, pack: str) -> ExitStack | None:
        """Lock a pack, to append to it; like :meth:`take`, and ``None`` also where it cannot be locked here."""
        try:
            return self.take(f"{pack}-pack")
        except OSError:
            return None

    def close(self) -> None:
        """Release all that is held still."""
        if self._bytes is not None:
            self._bytes.close()
        self._bytes, self._ready = None, False


class _Bytes:
    """Locks of single bytes of a file, held by this opening of it (``F_OFD_SETLK``)."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        # The system knows no difference between two locks of one opening.
        self._held: set[int] = set()

    @classmethod
    def opened(cls, path: Path) -> _Bytes | None:
        """Open the file; ``None`` where there are no such locks."""
        if sys.platform != "linux" or sys.maxsize < 2**32:
            return None
        made = cls(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666))
        try:
            # The one byte that no name has.
            made._set(True, 2**62)
            made._set(False, 2**62)
        except BlockingIOError:
            pass
        except (OSError, AttributeError):
            made.close()
            return None
        return made

    def take(self, place: int) -> bool:
        """Lock a byte; return whether it was free."""
        if place in self._held:
            return False
        try:
            self._set(True, place)
        except BlockingIOError:
            return False
        self._held.add(place)
        return True

    def release(self, place: int) -> None:
        """Unlock a byte; closing the file did."""
        if self._descriptor < 0:
            return
        self._held.discard(place)
        with suppress(OSError):
            self._set(False, place)

    def close(self) -> None:
        """Close the file, which unlocks all."""
        os.close(self._descriptor)
        self._descriptor = -1

    def _set(self, locked: bool, place: int) -> None:
        import fcntl

        kind = fcntl.F_WRLCK if locked else fcntl.F_UNLCK
        # struct flock: kind, from where on, first byte, how many, and a process number that must be 0.
        fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, struct.pack("@hhqqi4x", kind, os.SEEK_SET, place, 1, 0))


def _remove(lock: BaseFileLock) -> None:
    """Remove the file of a lock that is still held, so that a process that waited for it finds it gone and asks for a
    new one, as ``filelock`` does on POSIX systems; on Windows it removes the file itself."""
    if lock.is_locked and os.name == "posix":
        with suppress(OSError):
            Path(lock.lock_file).unlink()
