"""The local engine with several workers: tasks are computed in processes of their own, one in each at a time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from ...core.errors import AftershockError
from ..context import Context
from ..work import Outcome, Task
from ..workers.process import ended_how, raised
from .elsewhere import Failure
from .worker import Opening, Said, Share, receive, send

DECIDES_NO_NUMBER = True

_COMMAND = (sys.executable, "-c", "from aftershock.harness.run.engines.worker import main; main()")
# A worker that is idle ends at once when it is asked to.
_END = 2.0


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
        self.slots = len(devices)
        self._waiting: deque[Task] = deque()
        self._said: set[str] = set()
        self._on_message = on_message
        self._workers = [_Worker(Opening(replace(context, device=device), threads, place)) for device in devices]

    def submit(self, task: Task) -> None:
        """Give a task to a worker that is idle, else put it at the end of the queue."""
        self._waiting.append(task)
        self._assign()

    def next(self, on_progress: Callable[[int, float], None]) -> Outcome:
        """Wait until a worker is done with its task, or has ended."""
        while True:
            self._assign()
            busy = {worker.connection: worker for worker in self._workers if worker.task is not None}
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]  # what was given to wait
                outcome = self._heard(worker, on_progress)
                if outcome is not None:
                    worker.task = None
                    return outcome

    def _assign(self) -> None:
        for worker in self._workers:
            if self._waiting and worker.task is None:
                worker.give(self._waiting.popleft())

    def _heard(self, worker: _Worker, on_progress: Callable[[int, float], None]) -> Outcome | None:
        """Return what a worker said: the outcome of its task, or ``None`` for anything else."""
        if (task := worker.task) is None:
            return None
        try:
            found: Any = receive(worker.connection)
        except (EOFError, OSError):
            return Outcome(task.number, error=AftershockError(worker.ended()))
        if isinstance(found, Said):
            if found.text not in self._said:
                self._said.add(found.text)
                self._on_message(found.text)
            return None
        if isinstance(found, Share):
            on_progress(task.number, found.share)
            return None
        if isinstance(found, Failure):
            error = raised({"error": found.text, "types": found.types, "notes": found.notes})
            if found.fatal:
                raise AftershockError(f"A worker could not open the run: {error}")
            return Outcome(task.number, error=error)
        return Outcome(task.number, tuple(found))

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.close()


class _Worker:
    """A process that computes one task at a time; another one takes the place of one that has ended."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self.task: Task | None = None
        self._told = False
        self._process, self.connection = self._start()

    def give(self, task: Task) -> None:
        """Let it compute a task."""
        if self.connection.closed:
            self._process, self.connection = self._start()
        self.task = task
        with suppress(OSError):
            # One that has ended is noticed when it is listened to.
            if not self._told:
                self._told = True
                send(self.connection, self._opening)
            send(self.connection, task)

    def ended(self) -> str:
        """Take leave of a process that has ended; return what to say of that."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END)
        status = self._process.returncode
        self.close()
        return f"the process that computed it ended ({'killed' if status is None else ended_how(status)})"

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
            process = subprocess.Popen(  # noqa: S603 (our own interpreter and module)
                [*_COMMAND, str(theirs.fileno())], stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),),
                # What parts print belongs to no terminal in which several of them compute.
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(p).resolve()) for p in sys.path)},
                # Ctrl-C is for the owner, who ends what it started.
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise AftershockError(f"no worker could be started ({error})") from error
        finally:
            theirs.close()
        self._told = False
        return process, Connection(ours.detach())
