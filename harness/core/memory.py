"""How much memory a piece of work takes at its peak."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


@dataclass
class Peak:
    """What a block of work took.

    Attributes:
        rise: bytes by which the process's resident memory rose at its peak, memory-mapped files that were read
            included, tensors on an accelerator not; ``None`` where the system does not tell (only Linux does), and
            while the block runs.
    """

    rise: int | None = None


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure a block; nothing else may run in the process meanwhile.

    What the allocator holds back from earlier work is returned to the system first, else work that finds room there
    would seem to need none.
    """
    peak = Peak()
    before = _reset()
    yield peak
    after = _kibibytes("VmHWM")
    if before is not None and after is not None:
        peak.rise = max(0, after - before) * 1024


def _reset() -> int | None:
    """Start a new peak; the resident KiB from which it rises."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _RESET.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return None
    return _kibibytes("VmRSS")


def _kibibytes(field: str) -> int | None:
    try:
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0])
    except (OSError, ValueError, IndexError):
        pass
    return None
