"""What the processes of a group use, as far as the system tells it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """CPU seconds so far and private memory in bytes of a process and everything that it started."""

    cpu: float
    memory: int


def usage_of(group: int) -> Usage | None:
    """Return what a process group uses; ``None`` where the system does not tell (it is read from /proc)."""
    try:
        processes = [place for place in Path("/proc").iterdir() if place.name.isdigit()]
        ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None
    cpu, memory, found = 0.0, 0, False
    for process in processes:
        try:
            # The name in parentheses may hold anything; the fields after it are numbers.
            stat = (process / "stat").read_text(encoding="utf-8", errors="replace")
            fields = stat.rpartition(")")[2].split()
            if int(fields[2]) != group:
                continue
            resident, shared = (int(n) for n in (process / "statm").read_text(encoding="ascii").split()[1:3])
        except (OSError, ValueError, IndexError):
            # It ended meanwhile.
            continue
        found = True
        cpu += (int(fields[11]) + int(fields[12])) / ticks
        memory += (resident - shared) * page
    return Usage(cpu, memory) if found else None
