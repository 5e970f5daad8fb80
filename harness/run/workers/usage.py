"""The processes of a plugin, as far as the system tells of them: what they use, and how they are paused and ended.

They are those below a supervisor (:mod:`aftershock.harness.run.answering.supervisor`), which adopts what others leave
behind, and those that have a sign in their environment, should the supervisor itself be gone.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

DECIDES_NO_NUMBER = True

# The variable of the environment that holds the sign.
SIGN = "WORKER_SIGN"
# Seconds in which all should be gone, or stand still; each look finds those that were started since the last one.
ENDING = 5.0
# States of a process that has ended and was not waited for.
_GONE = "ZX"
_STOPPED = "Tt"


@dataclass(frozen=True)
class Usage:
    """CPU seconds so far and private memory in bytes of the processes of one plugin."""

    cpu: float
    memory: int


@dataclass(frozen=True)
class _Process:
    """One process: its place in /proc, its state, and its CPU time with that of children which it waited for."""

    place: Path
    number: int
    state: str
    parent: int
    ticks: int


def usage_of(supervisor: int, sign: str) -> Usage | None:
    """Return what a plugin's processes use; ``None`` where the system does not tell (/proc)."""
    try:
        ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None
    cpu, memory, found = 0.0, 0, False
    for process in _members(supervisor, sign):
        try:
            resident, shared = (int(n) for n in (process.place / "statm").read_text(encoding="ascii").split()[1:3])
        except (OSError, ValueError):
            # It ended meanwhile.
            continue
        found = True
        cpu += process.ticks / ticks
        if process.number != supervisor:
            memory += (resident - shared) * page
    return Usage(cpu, memory) if found else None


def exact_memory(supervisor: int, sign: str) -> int:
    """Return the private memory of a plugin's processes, in bytes.

    What forks share with each other counts once, which :func:`usage_of` cannot tell; this takes some milliseconds.
    """
    memory = 0
    for process in _members(supervisor, sign):
        if process.number == supervisor:
            continue
        try:
            lines = (process.place / "smaps_rollup").read_text(encoding="ascii").splitlines()
            sizes = dict(line.split()[:2] for line in lines[1:])
            memory += 1024 * (int(sizes["Pss_Anon:"]) + int(sizes["SwapPss:"]))
        except (OSError, ValueError, KeyError):
            # It ended meanwhile, or the system does not tell.
            continue
    return memory


def end_all(supervisor: int, sign: str) -> None:
    """End a plugin's processes; the supervisor, and the process that calls this, go on."""
    _signal_all(supervisor, sign, signal.SIGKILL, _GONE)


def pause_all(supervisor: int, sign: str) -> None:
    """Let a plugin's processes stand still; the supervisor goes on."""
    _signal_all(supervisor, sign, signal.SIGSTOP, _GONE + _STOPPED)


def resume_all(supervisor: int, sign: str) -> None:
    """Let a plugin's processes go on."""
    for process in _members(supervisor, sign):
        if process.number not in (supervisor, os.getpid()):
            with suppress(OSError):
                os.kill(process.number, signal.SIGCONT)


def _signal_all(supervisor: int, sign: str, number: signal.Signals, done: str) -> None:
    """Send a signal until all processes are in one of the states that it leads to."""
    until, spared = time.monotonic() + ENDING, (supervisor, os.getpid())
    while left := [p for p in _members(supervisor, sign) if p.number not in spared and p.state not in done]:
        for process in left:
            with suppress(OSError):
                os.kill(process.number, number)
        if time.monotonic() > until:
            return
        time.sleep(0.01)


def _members(supervisor: int, sign: str) -> Iterator[_Process]:
    """Return the supervisor, everything below it, and what has the sign."""
    processes = {process.number: process for process in _processes()}
    line = f"\0{SIGN}={sign}\0".encode()
    below: dict[int, bool] = {supervisor: True}

    def is_below(number: int) -> bool:
        way = []
        while number not in below and number in processes and number not in way:
            way.append(number)
            number = processes[number].parent
        found = below.get(number, False)
        below.update(dict.fromkeys(way, found))
        return found

    for process in processes.values():
        with suppress(OSError):
            # It ended meanwhile, or belongs to another user.
            if is_below(process.number) or line in b"\0" + (process.place / "environ").read_bytes():
                yield process


def _processes() -> Iterator[_Process]:
    try:
        places = [place for place in Path("/proc").iterdir() if place.name.isdigit()]
    except OSError:
        return
    for place in places:
        try:
            # The name in parentheses may hold anything; the fields after it are numbers.
            stat = (place / "stat").read_text(encoding="utf-8", errors="replace")
            state, *fields = stat.rpartition(")")[2].split()
            # Of itself and of its children, in user and in system mode.
            yield _Process(place, int(place.name), state, int(fields[0]), sum(int(n) for n in fields[10:14]))
        except (OSError, ValueError, IndexError):
            # It ended meanwhile.
            continue
