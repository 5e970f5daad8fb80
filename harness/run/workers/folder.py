"""Folders in which processes work, and what is left of those whose owner was killed."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

from ...core.errors import AftershockError

DECIDES_NO_NUMBER = True

# Not aftershock-<run>: a name that tells nothing.
_PREFIX = "worker-"
_LOCK = "lock"


class WorkFolder:
    """A new folder with a place to work in.

    A file in it is locked as long as this process lives, so that others can tell when it is no longer needed: the
    number of a process may be used again, a lock ends with its process.

    Args:
        parent: where it lies; by default where temporary files do.

    Attributes:
        path: of the folder.
        place: the working directory, which lies in it.

    Raises:
        AftershockError: if it cannot be made.
    """

    def __init__(self, parent: Path | None = None) -> None:
        try:
            if parent is not None:
                parent.mkdir(parents=True, exist_ok=True)
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            self.place = self.path / "place"
            self.place.mkdir()
            self._lock = _locked(self.path / f"{_LOCK}.new")
            # It gets its name once it is locked: an unlocked file means that its process has ended.
            (self.path / f"{_LOCK}.new").rename(self.path / _LOCK)
        except OSError as error:
            raise AftershockError(f"no folder could be made in {parent or tempfile.gettempdir()} ({error})") from error
        self._finalizer = weakref.finalize(self, _remove, self.path, self._lock)

    def remove(self) -> None:
        """Remove it with all that is in it."""
        self._finalizer()


def _locked(path: Path) -> int:
    """Make a file and lock it, where the system has locks that end with a process."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _remove(path: Path, descriptor: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        os.close(descriptor)


def remove_abandoned(parent: Path | None = None) -> None:
    """Remove this user's folders in a place whose owners are gone: their lock is free.

    Folders without a lock, and where locks cannot be taken, stay: nothing tells whose they are.
    """
    with suppress(ImportError):
        import fcntl

        for path in (parent or Path(tempfile.gettempdir())).glob(f"{_PREFIX}*"):
            with suppress(OSError):
                if not stat.S_ISDIR(path.lstat().st_mode) or path.lstat().st_uid != os.getuid():
                    continue
                descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
                finally:
                    os.close(descriptor)
