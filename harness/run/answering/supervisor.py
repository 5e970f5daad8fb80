"""The process between an owner and the process of a plugin, in which no code of the plugin ever runs.

Whatever the plugin's process does (it holds the lock of its interpreter, leaves its session, ends), this one notices
when the owner is gone, ends everything that was started below it, and removes the folder.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from ..workers.usage import SIGN, end_all

DECIDES_NO_NUMBER = True

# Of <linux/prctl.h>.
_DEATH_SIGNAL, _CHILD_SUBREAPER = 1, 36
# Seconds between two looks at the owner.
_LOOK = 0.5


def main() -> None:
    """Start a plugin's process whenever the owner sends a connection for one, which ends the one before.

    This process ends when a plugin's does, with the same status, or when the owner is gone or says so (SIGTERM). The
    arguments are the owner's process, the descriptor of the socket on which it sends connections, and the folder that
    is removed at the end; the working directory lies in it.
    """
    owner, control, folder = int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])), sys.argv[3]
    status = 0
    try:
        # Orphans become children of this process, not of the system's first one: whatever they did to leave.
        _control(_CHILD_SUBREAPER, 1)
        events = _Events((signal.SIGCHLD, signal.SIGTERM), control)
        # Imported once, here: a fork of this process is ready at once. It has no threads yet.
        from .serve import serve

        # An owner that is gone already is not this process's parent.
        if os.getppid() == owner:
            status = _supervise(owner, control, events, serve)
    finally:
        end_all(os.getpid(), os.environ.get(SIGN, ""))
        shutil.rmtree(folder, ignore_errors=True)
    _end_as(status)


def _supervise(owner: int, control: socket.socket, events: _Events, serve: Callable[[int], None]) -> int:
    """Return the status of a plugin's process that ended, as ``os.waitpid`` gives it; 0 where the owner ended it."""
    worker = 0
    while not events.told_to_end and os.getppid() == owner:
        if events.wait():
            _, (connection, *_), *_ = socket.recv_fds(control, 1, 1)
            worker = _renew(connection, control, events, serve)
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == worker:
                    return found[1]
    return 0


def _renew(connection: int, control: socket.socket, events: _Events, serve: Callable[[int], None]) -> int:
    """End everything below this process, empty the working directory, and return a new process's number."""
    end_all(os.getpid(), os.environ.get(SIGN, ""))
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    for path in Path().iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    worker = os.fork()
    if worker == 0:
        control.close()
        _become_worker(connection, events, serve)
    os.close(connection)
    control.send(b"1")
    return worker


class _Events:
    """What wakes this process up: signals, and the owner.

    Args:
        signals: by number.
        control: what the owner says is read there.
    """

    def __init__(self, signals: Iterable[int], control: socket.socket) -> None:
        self._control = control
        self.told_to_end = False
        self._readable, self._writable = os.pipe()
        os.set_blocking(self._readable, False)
        os.set_blocking(self._writable, False)
        signal.set_wakeup_fd(self._writable, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._note) for number in signals}

    def wait(self) -> bool:
        """Wait for a signal or the owner, but not for long; return whether the owner has sent a connection."""
        ready = select.select([self._readable, self._control.fileno()], [], [], _LOOK)[0]
        with suppress(BlockingIOError):
            os.read(self._readable, 4096)
        if self._control.fileno() not in ready:
            return False
        self.told_to_end = self.told_to_end or not self._control.recv(1, socket.MSG_PEEK)
        return not self.told_to_end

    def restore(self) -> None:
        """Put signals back as they were."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._readable)
        os.close(self._writable)

    def _note(self, number: int, frame: object) -> None:
        self.told_to_end = self.told_to_end or number == signal.SIGTERM


def _become_worker(connection: int, events: _Events, serve: Callable[[int], None]) -> None:
    """Be the plugin's process; does not return."""
    try:
        supervisor = os.getppid()
        events.restore()
        # Signals to its whole group do not reach the supervisor.
        os.setsid()
        _control(_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() == supervisor:
            serve(connection)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


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
