"""The processes of a plugin, as far as the system tells of them: what they use, and how they are ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

DECIDES_NO_NUMBER = True

# A variable of the environment that all of them have, also those that left their group.
SIGN = "WORKER_SIGN"
# Seconds in which all should be gone; each look finds those that were started since the last one.
_ENDING = 5.0


@dataclass(frozen=True)
class Usage:
    """CPU seconds so far and private memory in bytes of a process and everything that it started."""

    cpu: float
    memory: int


def usage_of(group: int, sign: str) -> Usage | None:
    """Return what the processes of a group or with a sign use; ``None`` where the system does not tell (/proc)."""
    try:
        ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None
    cpu, memory, found = 0.0, 0, False
    for process, fields in _members(group, sign):
        try:
            resident, shared = (int(n) for n in (process / "statm").read_text(encoding="ascii").split()[1:3])
        except (OSError, ValueError):
            # It ended meanwhile.
            continue
        found = True
        cpu += (int(fields[11]) + int(fields[12])) / ticks
        memory += (resident - shared) * page
    return Usage(cpu, memory) if found else None


def exact_memory(group: int, sign: str) -> int:
    """Return the private memory of the processes of a group or with a sign, in bytes.

    What forks share with each other counts once, which :func:`usage_of` cannot tell; this takes some milliseconds.
    """
    memory = 0
    for process, _ in _members(group, sign):
        try:
            lines = (process / "smaps_rollup").read_text(encoding="ascii").splitlines()
            sizes = dict(line.split()[:2] for line in lines[1:])
            memory += 1024 * (int(sizes["Pss_Anon:"]) + int(sizes["SwapPss:"]))
        except (OSError, ValueError, KeyError):
            # It ended meanwhile, or the system does not tell.
            continue
    return memory


def end_all(group: int, sign: str) -> None:
    """End the processes of a group, and those with a sign; this one, if it is among them, goes on."""
    if group != os.getpgrp():
        with suppress(OSError):
            os.killpg(group, signal.SIGKILL)
    until = time.monotonic() + _ENDING
    # One that has ended and was not waited for is a zombie (Z).
    while left := [int(place.name) for place, fields in _members(group, sign) if fields[0] not in "ZX"]:
        left = [process for process in left if process != os.getpid()]
        if not left:
            return
        for process in left:
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)
        if time.monotonic() > until:
            return
        time.sleep(0.01)


def _members(group: int, sign: str) -> Iterator[tuple[Path, list[str]]]:
    """Processes of a group or with a sign: their places in /proc, and the fields of ``stat`` from the state on."""
    try:
        processes = [place for place in Path("/proc").iterdir() if place.name.isdigit()]
    except OSError:
        return
    line = f"\0{SIGN}={sign}\0".encode()
    for process in processes:
        try:
            # The name in parentheses may hold anything; the fields after it are numbers.
            stat = (process / "stat").read_text(encoding="utf-8", errors="replace")
            fields = stat.rpartition(")")[2].split()
            if int(fields[2]) == group or line in b"\0" + (process / "environ").read_bytes():
                yield process, fields
        except (OSError, ValueError, IndexError):
            # It ended meanwhile, or is somebody else's.
            continue
