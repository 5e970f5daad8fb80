"""The small process between an owner and the process of a plugin, in which no code of the plugin ever runs.

Whatever the plugin's process does (it holds the lock of its interpreter, leaves its session, ends), this one notices
when the owner is gone, ends everything that was started below it, and removes the folder.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import sys
import traceback
from collections.abc import Iterable
from contextlib import suppress

from .usage import SIGN, end_all

DECIDES_NO_NUMBER = True

# Of <linux/prctl.h>.
_DEATH_SIGNAL, _CHILD_SUBREAPER = 1, 36
# Seconds between two looks at the owner.
_LOOK = 0.5


def main() -> None:
    """Start the plugin's process, and end as it ends, or when the owner is gone or says so (SIGTERM).

    The arguments are the owner's process, the descriptor of the connection to it, and the folder that is removed at
    the end; the working directory lies in it.
    """
    owner, connection, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    status = 0
    try:
        # Orphans become children of this process, not of the system's first one: whatever they did to leave.
        _control(_CHILD_SUBREAPER, 1)
        events = _Events((signal.SIGCHLD, signal.SIGTERM))
        # An owner that is gone already is not this process's parent.
        if os.getppid() == owner:
            worker = os.fork()
            if worker == 0:
                _become_worker(events, connection)
            os.close(connection)
            status = _wait(worker, owner, events)
    finally:
        end_all(os.getpid(), os.environ.get(SIGN, ""))
        shutil.rmtree(folder, ignore_errors=True)
    _end_as(status)


class _Events:
    """Signals that wake this process up."""

    def __init__(self, signals: Iterable[int]) -> None:
        self.told_to_end = False
        self._readable, self._writable = os.pipe()
        os.set_blocking(self._readable, False)
        os.set_blocking(self._writable, False)
        signal.set_wakeup_fd(self._writable, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._note) for number in signals}

    def wait(self) -> None:
        """Wait for a signal, but not for long."""
        select.select([self._readable], [], [], _LOOK)
        with suppress(BlockingIOError):
            os.read(self._readable, 4096)

    def restore(self) -> None:
        """Put signals back as they were."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._readable)
        os.close(self._writable)

    def _note(self, number: int, frame: object) -> None:
        self.told_to_end = self.told_to_end or number == signal.SIGTERM


def _become_worker(events: _Events, connection: int) -> None:
    """Be the plugin's process; does not return."""
    try:
        supervisor = os.getppid()
        events.restore()
        # Signals to its whole group do not reach the supervisor.
        os.setsid()
        _control(_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() == supervisor:
            from .serve import serve

            serve(connection)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _wait(worker: int, owner: int, events: _Events) -> int:
    """Return the status of the plugin's process, as ``os.waitpid`` gives it; 0 where it was not waited for."""
    while not events.told_to_end and os.getppid() == owner:
        events.wait()
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == worker:
                    return found[1]
    return 0


def _end_as(status: int) -> None:
    """End with the status of the plugin's process, so that the owner sees how that ended."""
    if os.WIFSIGNALED(status):
        with suppress(ImportError, ValueError, OSError):
            import resource

            # One core is enough.
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(status)
        with suppress(OSError):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _control(option: int, value: int) -> None:
    """Set an attribute of this process, where the system is Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main()
