"""The local engine with several workers: tasks are computed in processes of their own, one in each at a time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from ...core.errors import AftershockError
from ..context import Context
from ..events import once
from ..work import Outcome, Task
from ..workers.process import ended_how
from .elsewhere import Failure, plugin_labels, runs_plugin
from .worker import Opening, Ready, Said, Share, receive, send

DECIDES_NO_NUMBER = True

# Without the working directory on the search path: a folder's `statistics.py` is not the one that is meant.
_COMMAND = (sys.executable, "-P", "-c", "from aftershock.harness.run.engines.worker import main; main()")
# Seconds after which processes are looked at that say nothing: others may hold the end of one that has ended.
_LOOK = 1.0
# A worker that is idle ends at once when its owner closes the connection.
_END = 2.0
# So often in a row a worker may end before it has opened the run.
_TRIES = 2


class WorkersEngine:
    """Computes tasks in several processes; one that ends costs its task, and another takes its place.

    Args:
        context: surroundings of the tasks.
        place: a folder on the run directory's file system, for the artifacts that they give away.
        devices: one worker for each, where its models run.
        threads: that each may compute with.
        on_message: told sentences that a person should see, each once.

    Raises:
        AftershockError: if the workers cannot be started.
    """

    def __init__(
        self,
        context: Context,
        place: Path,
        devices: tuple[str, ...],
        threads: int,
        on_message: Callable[[str], None],
    ) -> None:
        self._plugins = plugin_labels(context.suite)
        # Tasks of plugins wait for one worker; the others take what comes after them.
        self.slots = len(devices) * (2 if self._plugins else 1)
        self._waiting: deque[Task] = deque()
        self._on_message = once(on_message)
        self._workers = [
            _Worker(Opening(replace(context, device=device), threads, place), place / f"{number}.log")
            for number, device in enumerate(devices)
        ]

    def submit(self, task: Task) -> None:
        """Give a task to a worker that is idle, else put it at the end of the queue."""
        self._waiting.append(task)
        self._assign()

    def next(self, on_progress: Callable[[int, float], None], seconds: float | None = None) -> Outcome | None:
        """Wait until a worker is done with its task, or has ended."""
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            self._assign()
            busy = [worker for worker in self._workers if worker.task is not None]
            left = _LOOK if until is None else min(_LOOK, max(0.0, until - time.monotonic()))
            heard = wait([worker.connection for worker in busy], left)
            for worker in busy:
                if worker.connection in heard or worker.has_ended:
                    outcome = self._heard(worker, on_progress)
                    if outcome is not None:
                        worker.task = None
                        return outcome
            if until is not None and time.monotonic() >= until:
                return None

    def _assign(self) -> None:
        first = self._workers[0]
        for worker in self._workers:
            if worker.task is None:
                task = next((t for t in self._waiting if worker is first or not runs_plugin(t, self._plugins)), None)
                if task is not None:
                    self._waiting.remove(task)
                    worker.give(task)

    def _heard(self, worker: _Worker, on_progress: Callable[[int, float], None]) -> Outcome | None:
        """Return what a worker said: the outcome of its task, or ``None`` for anything else."""
        if (task := worker.task) is None:
            return None
        try:
            if not worker.connection.poll():
                raise EOFError
            found: Any = receive(worker.connection)
        except (EOFError, OSError):
            return worker.ended(task)
        if isinstance(found, Ready):
            worker.opened()
            return None
        if isinstance(found, Said):
            self._on_message(found.text)
            return None
        if isinstance(found, Share):
            on_progress(task.number, found.share)
            return None
        if isinstance(found, Failure):
            if found.fatal:
                raise found.error()
            return Outcome(task.number, error=found.error())
        return Outcome(task.number, tuple(found))

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.close()


class _Worker:
    """A process that computes one task at a time; another one takes the place of one that has ended.

    Args:
        opening: what it is told first.
        log: a file for what its libraries write to standard error.
    """

    def __init__(self, opening: Opening, log: Path) -> None:
        self._opening, self._log = opening, log
        self.task: Task | None = None
        self._told = self._ready = False
        self._failed = 0
        self._process, self.connection = self._start()

    @property
    def has_ended(self) -> bool:
        """Whether there is no process any more."""
        return self._process.poll() is not None

    def give(self, task: Task) -> None:
        """Let it compute a task."""
        if self.connection.closed or self.has_ended:
            self.close()
            self._process, self.connection = self._start()
        self.task = task
        with suppress(OSError):
            # One that has ended is noticed when it is listened to.
            if not self._told:
                self._told = True
                send(self.connection, self._opening)
            send(self.connection, task)

    def opened(self) -> None:
        """Note that it has opened the run."""
        self._ready, self._failed = True, 0

    def ended(self, task: Task) -> Outcome | None:
        """Take leave of a process that has ended; return what that means for its task, ``None`` if it is tried again.

        Raises:
            AftershockError: if several in a row ended before they had opened the run.
        """
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END)
        self.close()
        how = ended_how(self._process.returncode)
        if self._ready:
            return Outcome(task.number, error=AftershockError(f"the process that computed it ended ({how})"))
        self._failed += 1
        if self._failed >= _TRIES:
            last = self._log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
            raise AftershockError(f"A worker ended before it had opened the run ({how}). {last}".strip())
        self.give(task)
        return None

    def close(self) -> None:
        """End the process. It ends by itself when its owner is gone, and so do the processes of its plugins."""
        self.connection.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END)
        self._process.kill()
        self._process.wait()

    def _start(self) -> tuple[subprocess.Popen[bytes], Connection]:
        ours, theirs = socket.socketpair()
        try:
            with self._log.open("wb") as log:
                process = subprocess.Popen(  # noqa: S603 (our own interpreter and module)
                    [*_COMMAND, str(theirs.fileno())], stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),),
                    # What parts print belongs to no terminal in which several of them compute.
                    stdout=subprocess.DEVNULL, stderr=log,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(p).resolve()) for p in sys.path)},
                    # Ctrl-C is for the owner, who ends what it started.
                    start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            raise AftershockError(f"no worker could be started ({error})") from error
        finally:
            theirs.close()
        self._told = self._ready = False
        return process, Connection(ours.detach())
