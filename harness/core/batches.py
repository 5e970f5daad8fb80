"""How many images go through a model at once, and what happens where a device has no room for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch

# Images of a batch on a CPU. Fixed, so that results never depend on how work is cut; small enough for the caches.
BATCH = 128
# On other devices, which idle with less: so many small images, or as many as take so many bytes.
_MOST, _BYTES = 2048, 32 << 20

# Before torch 2.5 it had no name of its own.
OutOfMemoryError: type[RuntimeError] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)


# How often batches are halved in the present block.
_HALVINGS: ContextVar[int] = ContextVar("halvings", default=0)


def batch_for(device: torch.device | str, shape: Sequence[int]) -> int:
    """Return how many images of a shape (channels, height, width) are computed at once on a device."""
    usual = BATCH
    if torch.device(device).type != "cpu":
        usual = max(BATCH, min(_MOST, _BYTES // (4 * max(1, math.prod(shape)))))
    return max(1, usual >> _HALVINGS.get())


@contextmanager
def smaller_batches(halvings: int) -> Iterator[None]:
    """Halve the batches of :func:`batch_for` inside the block, so many times: a process that was ended for the memory
    that it took could not do so itself.
    """
    before = _HALVINGS.set(halvings)
    try:
        yield
    finally:
        _HALVINGS.reset(before)


def steps_between_looks(device: torch.device | str) -> int:
    """Return after how many steps a loop looks which of its images are done, to go on without them.

    On a CPU after each. Elsewhere a look waits for all that the device was asked to do, and a few more passes of images
    that are done cost less: they change nothing any more.
    """
    return 1 if torch.device(device).type == "cpu" else 8


def in_batches(count: int, size: int, work: Callable[[slice], None]) -> None:
    """Call ``work`` with consecutive slices of at most ``size`` of ``count`` rows.

    Where a device runs out of memory, the same rows are done again in halves, and so is the rest: what ``work`` leaves
    of a slice must not count before it returns.

    Raises:
        torch.OutOfMemoryError: if there is no room for a single row.
    """
    start = 0
    while start < count:
        rows = slice(start, min(start + size, count))
        if _fits(work, rows):
            start = rows.stop
        elif (size := min(size, rows.stop - rows.start)) == 1:
            # Once more, for its message.
            work(rows)
        else:
            size //= 2


def _fits(work: Callable[[slice], None], rows: slice) -> bool:
    try:
        work(rows)
    except OutOfMemoryError:
        # The error holds on to what was computed until this returns.
        return False
    return True
