"""Watching a process while it answers one question: what it uses, and whether it still does anything."""

from __future__ import annotations

import time

from .usage import Usage, exact_memory, usage_of

DECIDES_NO_NUMBER = True

# A question that takes less is not looked at.
LOOK = 0.25
# CPU seconds in the time that a process may wait which count as none.
_NOTHING = 0.05
# Where the system does not report usage: how many times its CPU seconds an answer may take, and how many seconds more.
_TIMES, _MORE = 5, 120.0
_GIB = 2**30


class Watch:
    """Knows what a process may take for one question.

    Args:
        supervisor: the process above it.
        sign: what its processes are known by otherwise (:data:`~.usage.SIGN`).
        cpu: CPU seconds of all its processes together.
        memory: bytes that they may hold, beyond what is shared.
        idle: seconds in which it may compute nothing, when it should, before it is taken to hang.
        limit: what of a suite sets ``cpu``, for a person; empty where nothing does.
    """

    def __init__(self, supervisor: int, sign: str, cpu: float, memory: float, idle: float, limit: str = "") -> None:
        self._limit = limit
        self._supervisor, self._sign, self._cpu, self._memory, self._idle = supervisor, sign, cpu, memory, idle
        self._began = self._progress = self._looked = time.monotonic()
        self._first: Usage | None = None
        self._last = 0.0

    @property
    def due(self) -> bool:
        """Whether it was not looked at for a while."""
        return time.monotonic() - self._looked >= LOOK

    def heard(self) -> None:
        """Note that it said something, so that it does not hang."""
        self._progress = time.monotonic()

    def complaint(self) -> str:
        """Return what is wrong with it by now; empty where nothing is."""
        now, used = time.monotonic(), usage_of(self._supervisor, self._sign)
        self._looked = now
        if used is None:
            late = now - self._began > _MORE + _TIMES * self._cpu
            return f"it gave no answer in {now - self._began:.0f} s" if late else ""
        if self._first is None:
            self._first, self._last = used, used.cpu
        # Quick first: where each fork counts as if it shared nothing.
        if used.memory > self._memory and (exact_memory(self._supervisor, self._sign) or used.memory) > self._memory:
            held = f"it held more than {self._memory / _GIB:g} GiB"
            return f"{held}: let it need less, or raise memory under [limits] in the suite"
        if used.cpu - self._first.cpu > self._cpu:
            taken = f"it took more than {self._cpu:g} s of computing"
            if not self._limit:
                return taken
            return f"{taken} ({self._limit}): let it need less, or raise that under [limits] in the suite"
        if abs(used.cpu - self._last) > _NOTHING:
            self._progress, self._last = now, used.cpu
        if now - self._progress > self._idle:
            return (
                f"it hangs: it has waited for {now - self._progress:.0f} s without computing; if it should, raise "
                "idle_seconds under [limits] in the suite"
            )
        return ""
