"""Tells hooks what happens in a run. Nothing that a hook does can hold a run up or change it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from queue import Full, Queue
from typing import Any

from .base import GROUP

DECIDES_NO_NUMBER = True

# A hook that is this many events behind is left out.
_BEHIND = 100_000
# How long a hook may take, in seconds, to work through the rest once the run is over.
_PATIENCE = 30.0
_END = None


class _Listener:
    """One hook's process, and a thread that writes to it."""

    def __init__(self, name: str, target: str, on_message: Callable[[str], None]) -> None:
        self.name, self._on_message = name, on_message
        self._lines: Queue[bytes | None] = Queue(_BEHIND)
        self._left_out = False
        # Not in the run's working directory or group: its own session, so that a Ctrl-C is the run's to tell.
        self._process = subprocess.Popen(  # noqa: S603 (this interpreter)
            [sys.executable, "-m", "aftershock.harness.run.hooks.process", name, target],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self._errors: list[bytes] = []
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._writer.start()
        self._reader.start()

    def tell(self, line: bytes) -> None:
        """Put a line into the queue; a hook that is too far behind is left out."""
        if self._left_out:
            return
        try:
            self._lines.put_nowait(line)
        except Full:
            self._leave_out(f"it is {_BEHIND:,} events behind")

    def close(self) -> None:
        """Wait for the hook to work through what it was told, but not for ever."""
        with suppress(Full):
            self._lines.put(_END, timeout=1.0)
        self._writer.join(_PATIENCE)
        try:
            status = self._process.wait(_PATIENCE if not self._left_out else 0.1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._leave_out(f"it did not end within {_PATIENCE:.0f} s after the run")
            return
        self._reader.join(1.0)
        if status:
            said = b"".join(self._errors).decode(errors="replace").strip().splitlines()
            self._leave_out(said[-1][:200] if said else f"its process ended with status {status}")

    def _write(self) -> None:
        pipe = self._process.stdin
        if pipe is None:
            return
        # A hook that has ended reads no more; its status is looked at in the end.
        with suppress(OSError, ValueError):
            while (line := self._lines.get()) is not _END:
                pipe.write(line)
                if self._lines.empty():
                    pipe.flush()
        with suppress(OSError, ValueError):
            pipe.close()

    def _read(self) -> None:
        pipe = self._process.stderr
        if pipe is not None:
            for line in pipe:
                # The last lines alone: a hook may write for ever.
                self._errors = [*self._errors[-20:], line[:1000]]

    def _leave_out(self, why: str) -> None:
        if not self._left_out:
            self._left_out = True
            self._on_message(f"The hook {self.name!r} is left out: {why}.")


class Hooks:
    """All installed hooks, told together."""

    def __init__(self, listeners: list[_Listener]) -> None:
        self._listeners = listeners

    def __bool__(self) -> bool:
        return bool(self._listeners)

    def tell(self, event: str, facts: Mapping[str, Any]) -> None:
        """Tell all hooks of an event; returns at once.

        Args:
            event: a method of :class:`~.base.Hook`.
            facts: JSON values; others are told as text.
        """
        if self._listeners:
            line = (json.dumps({"event": event, "facts": facts}, default=str) + "\n").encode()
            for listener in self._listeners:
                listener.tell(line)


@contextmanager
def installed_hooks(on_message: Callable[[str], None]) -> Iterator[Hooks]:
    """Start the hooks of installed distributions, and wait for them in the end.

    Args:
        on_message: told of a hook that is left out.

    Yields:
        what tells them.
    """
    points = sorted({(point.name, point.value) for point in entry_points(group=GROUP)})
    listeners = [_Listener(name, target, on_message) for name, target in points]
    try:
        yield Hooks(listeners)
    finally:
        for listener in listeners:
            listener.close()
