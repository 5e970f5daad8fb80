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
# Of glibc's malloc.h. Bytes of a large block: smaller ones cost more to ask the system for than they are worth.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_LARGE = 8 * 2**20


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


def return_large_blocks() -> None:
    """Have the allocator of this process return large blocks to the system when they are freed (glibc).

    By itself it keeps blocks of up to 32 MiB in the heap, once some were freed: batches of varying sizes leave holes
    there, and the heap grows with the number of batches.
    """
    with suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _LARGE)
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGE)


def trim_heap() -> None:
    """Return to the system what the allocator holds back of memory that was freed, where it can be asked to (glibc).

    Batches of varying sizes, and what is held beside them, leave holes in the heap, which grows as long as none fits.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _reset() -> int | None:
    """Start a new peak; the resident KiB from which it rises."""
    trim_heap()
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
