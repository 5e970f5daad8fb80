"""A process of its own for the code of one plugin: started when it is first asked, watched, and started again.

The owner asks a question and gets an answer or an exception. Whatever the process does instead (it ends, hangs, takes
too much time or memory) costs that question and nothing else.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from ...core.errors import AftershockError, UnavailableError, UsageError
from ...tracing.rows import Rows
from .channel import Channel, ChannelError, Message
from .folder import WorkFolder
from .usage import ENDING, SIGN, end_all, pause_all, resume_all
from .watch import LOOK, Watch

if TYPE_CHECKING:
    from ...suite.resolved import LimitsPart

DECIDES_NO_NUMBER = True

_COMMAND = (sys.executable, "-c", "from aftershock.harness.run.answering.supervisor import main; main()")
# Starting imports torch, on a busy machine too.
_START = 120.0
_GIB = 2**30
# What the processes of plugins must not know: where runs, caches and data are, and how to use a Ray cluster.
_HIDDEN = ("PWD", "OLDPWD", "_")
_HIDDEN_PREFIXES = ("AFTERSHOCK_", "RAY_")

# A number is never used twice, so that nothing made in one process is looked for in another.
_GENERATIONS = count(1)

Callback = Callable[[Mapping[str, Any], Mapping[str, Tensor]], Message]


class WorkerEndedError(AftershockError):
    """The process ended, or was ended because it took too much, before it answered."""


class PartError(AftershockError):
    """A part raised an exception of its own; the text begins with its type."""


@dataclass(frozen=True)
class Source:
    """The plugin whose code a process runs: a local file, an installed distribution, or neither for built-in parts.

    Attributes:
        path: of a local file.
        digest: of its content, so that a changed file gets another process.
        distribution: name of an installed one.
    """

    path: Path | None = None
    digest: str = ""
    distribution: str = ""

    def __str__(self) -> str:
        return str(self.path) if self.path is not None else self.distribution


@dataclass(frozen=True)
class Allowance:
    """What a process may use.

    Attributes:
        memory: bytes, beyond what is shared.
        idle: seconds in which it may compute nothing, when it should, before it is taken to hang.
        output: what it prints is shown.
    """

    memory: float = 8 * _GIB
    idle: float = 30.0
    output: bool = False

    @classmethod
    def of(cls, limits: LimitsPart, output: bool = False) -> Self:
        """Return what the limits of a suite allow."""
        return cls(limits.memory * _GIB, limits.idle_seconds, output)


class Worker:
    """A process that answers questions about one plugin's parts.

    Args:
        source: whose code it runs.
        allowance: what it may use.

    Attributes:
        generation: number of the present process; what an earlier one knew is lost.
        used: when it was last asked, on the monotonic clock.
    """

    def __init__(self, source: Source, allowance: Allowance | None = None) -> None:
        self.source, self.allowance = source, allowance or Allowance()
        self.generation = 0
        self.used = time.monotonic()
        self._sign = secrets.token_hex(16)
        self._environment = {**_environment(), SIGN: self._sign}
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._control: socket.socket | None = None
        self._folder: WorkFolder | None = None
        self._told = False
        self._greeting: Message | None = None
        self._forgotten: list[int] = []

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        """End the process with all that it started, and remove its folder."""
        if self._process is not None:
            if self._told:
                # The supervisor ends all, unless it was ended or stopped itself.
                self._process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(2 * ENDING)
            self._process.kill()
            end_all(self._process.pid, self._sign)
            self._process.wait()
            self._process = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._folder is not None:
            self._folder.remove()
            self._folder = None
        self._told, self._greeting = False, None

    def start(self) -> None:
        """Start the process and let it import the plugin, if it has not; it gets ready while others work."""
        self.prepare()
        if not self._told:
            source = {
                "path": None if self.source.path is None else str(self.source.path),
                "distribution": self.source.distribution,
            }
            self._told = True
            self._open().send(Message({"source": source, "memory": self.allowance.memory}))

    def pause(self) -> None:
        """Let the process, and all that it started, stand still."""
        if self._process is not None:
            pause_all(self._process.pid, self._sign)

    def resume(self) -> None:
        """Let them go on."""
        if self._process is not None:
            resume_all(self._process.pid, self._sign)

    def prepare(self) -> None:
        """Start the process, if it does not run, without any code of the plugin."""
        if self.running:
            return
        self.close()
        self._folder = WorkFolder()
        self._control, theirs = socket.socketpair()
        output = None if self.allowance.output else subprocess.DEVNULL
        about = (str(os.getpid()), str(theirs.fileno()), str(self._folder.path))
        try:
            self._process = subprocess.Popen(  # noqa: S603 (our own interpreter and module)
                [*_COMMAND, *about], stdin=subprocess.DEVNULL, stdout=2 if output is None else output, stderr=output,
                cwd=self._folder.place, env=self._environment, pass_fds=(theirs.fileno(),),
                # Ctrl-C is for the owner, who ends what it started.
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self.close()
            raise AftershockError(f"no process could be started for {self.source} ({error})") from error
        finally:
            theirs.close()
        self._connect()

    def renew(self) -> None:
        """Let a process that knows nothing take the place of this one, which has ended when this returns."""
        if self._control is not None and self.running:
            # The answer to an earlier connection.
            self._control.settimeout(_START)
            with suppress(OSError):
                if self._control.recv(1):
                    self._connect()
                    if self._control.recv(1, socket.MSG_PEEK):
                        return
            self.close()
        self.prepare()

    def _connect(self) -> None:
        """Send the supervisor a connection for a new process."""
        if self._channel is not None:
            self._channel.close()
        self.generation, self._told, self._greeting = next(_GENERATIONS), False, None
        self._forgotten.clear()
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours, seconds=_START, limit=self.allowance.memory)
        with theirs, suppress(OSError):
            # One that has ended is noticed when it is asked.
            if self._control is not None:
                socket.send_fds(self._control, [b"1"], [theirs.fileno()])

    def greeting(self) -> Mapping[str, Any]:
        """Return what it says once everything is imported, the plugin too: its parts and the files that it opened.

        Raises:
            UsageError: if the plugin cannot be imported.
            WorkerEndedError: if it ended meanwhile.
        """
        self.start()
        if self._greeting is None:
            try:
                self._wait(self._watch(_START))
                self._greeting = self._open().receive()
            except ChannelError as error:
                raise self._ended(str(error)) from error
        if "error" in self._greeting.values:
            raise raised(self._greeting.values)
        return self._greeting.values

    def _open(self) -> Channel:
        if self._channel is None:
            raise ChannelError("there is no process")
        return self._channel

    def ask(
        self, question: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor | Rows] | None = None, *,
        cpu: float = 60.0, limit: str = "", calls: Mapping[str, Callback] | None = None,
    ) -> Message:  # fmt: skip
        """Return the answer to a question.

        Args:
            question: what the process knows how to answer.
            values: JSON values that go with it, and
            tensors: what it is about.
            cpu: seconds that all its processors may take together.
            limit: what of a suite sets them, for a person.
            calls: what it may ask back, by name.

        Raises:
            UsageError, UnavailableError: as the part raised them.
            PartError: for any other exception.
            WorkerEndedError: if it gives no answer.
        """
        self.greeting()
        self.used = time.monotonic()
        forgotten, self._forgotten = self._forgotten, []
        here = {"drop": forgotten, "threads": torch.get_num_threads(), "gradients": torch.is_grad_enabled()}
        try:
            self._open().send(Message({"question": question, "values": values, **here}, tensors or {}))
            watch = self._watch(cpu, limit)
            while True:
                self._wait(watch)
                answer = self._open().receive()
                if "call" not in answer.values:
                    break
                self._open().send(self._called(answer, calls or {}))
        except ChannelError as error:
            raise self._ended(str(error)) from error
        except BaseException:
            # Ctrl-C, or an error of ours: whatever it would still say belongs to no later question.
            self.close()
            raise
        finally:
            self.used = time.monotonic()
        if "error" in answer.values:
            raise raised(answer.values)
        if not _is_answer(answer.values):
            self.close()
            raise WorkerEndedError("what it sent is not an answer")
        return answer

    def forget(self, number: int, generation: int) -> None:
        """Let the process drop a part that is no longer used; sent with the next question."""
        if generation == self.generation:
            self._forgotten.append(number)

    def _called(self, asked: Message, calls: Mapping[str, Callback]) -> Message:
        """Return what the owner says when it is asked back; its exceptions go where the question came from."""
        name = str(asked.values["call"])
        if name not in calls:
            raise ChannelError(f"it asks for {name!r}")
        found = {n: t for n, t in asked.tensors.items() if isinstance(t, Tensor)}
        try:
            return calls[name](asked.values.get("values", {}), found)
        except Exception as error:
            return Message({"error": " ".join(str(error).split()), "types": [type(error).__name__]})

    def _watch(self, cpu: float, limit: str = "") -> Watch:
        if self._process is None:
            raise ChannelError("there is no process")
        return Watch(self._process.pid, self._sign, cpu, self.allowance.memory, self.allowance.idle, limit)

    def _wait(self, watch: Watch) -> None:
        """Wait until it says something.

        Raises:
            WorkerEndedError: if it takes too much before, or waits for nothing.
        """
        channel = self._open()
        while True:
            said = bool(select.select([channel], [], [], LOOK)[0])
            if said:
                watch.heard()
            elif not self.running:
                # Others that it started may hold its end open.
                raise self._ended("it ended")
            # One that asks back all the time is looked at, too.
            complaint = watch.complaint() if not said or watch.due else ""
            if complaint:
                self.close()
                raise WorkerEndedError(complaint)
            if said:
                return

    def _ended(self, why: str) -> WorkerEndedError:
        """End what is left of it, and say how it ended."""
        if self._process is not None:
            # A moment for one that is ending by itself, whose status says more.
            with suppress(subprocess.TimeoutExpired):
                why = f"it ended its process ({ended_how(self._process.wait(2))})"
        self.close()
        return WorkerEndedError(why)


def raised(values: Mapping[str, Any]) -> AftershockError:
    """Return the exception that a part raised in its process, by its text and the names of its types."""
    text, types = str(values["error"]), [str(name) for name in values.get("types", ())]
    error: AftershockError
    if "UnavailableError" in types:
        error = UnavailableError(text)
    elif "UsageError" in types:
        error = UsageError(text)
    elif "AftershockError" in types:
        error = AftershockError(text)
    else:
        error = PartError(f"{types[0]}: {text}" if text and types else (types or [text])[0])
    for note in values.get("notes", ()):
        error.add_note(str(note))
    return error


def _is_answer(values: Mapping[str, Any]) -> bool:
    """Return whether an answer has what every answer has; code of a plugin could have written to the connection."""
    spent, lists = values.get("spent"), [values.get(name) for name in ("files", "programs", "changed")]
    numbers = isinstance(spent, list) and len(spent) == 2 and all(isinstance(n, int | float) for n in spent)
    return numbers and all(isinstance(names, list) for names in lists)


def ended_how(status: int) -> str:
    """Return the status of a process that has ended, or the signal that ended it, for a person."""
    if status >= 0:
        return f"status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _environment() -> dict[str, str]:
    """Return the environment of a process: as ours is now, without what tells where runs, caches and data are."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_HIDDEN_PREFIXES) and k not in _HIDDEN}
    # Wherever this process found the package and its plugins, the other one does.
    # Files that a part makes for itself lie in its own folder, which is its working directory.
    kept["TMPDIR"] = "."
    kept["PYTHONPATH"] = os.pathsep.join(str(Path(p).resolve()) for p in sys.path)
    return kept


def json_values(value: Any) -> Any:
    """Return a value as JSON carries it."""
    return json.loads(json.dumps(value))
