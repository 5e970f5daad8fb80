"""Rows of a stored set, read in slices from wherever they lie."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor


class Rows(Protocol):
    """Something with rows that can be read in part: a tensor, or chunks on disk."""

    @property
    def shape(self) -> Sequence[int]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> Tensor: ...


class ChunkedRows:
    """Rows that lie in consecutive chunks, each read (memory-mapped) only when a slice touches it.

    Args:
        chunks: one function per chunk that returns its tensor.
        lengths: rows in each chunk.
        row_shape: the shape of one row.
    """

    def __init__(
        self, chunks: Sequence[Callable[[], Tensor]], lengths: Sequence[int], row_shape: Sequence[int]
    ) -> None:
        self._chunks, self._lengths = list(chunks), list(lengths)
        self._starts = [0, *accumulate(lengths)]
        self.shape = (self._starts[-1], *row_shape)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError("rows are read in runs of consecutive ones")
        parts = []
        position = start
        while position < stop:
            chunk = bisect_right(self._starts, position) - 1
            first = position - self._starts[chunk]
            last = min(stop - self._starts[chunk], self._lengths[chunk])
            parts.append(self._chunks[chunk]()[first:last])
            position = self._starts[chunk] + last
        if not parts:
            return self._chunks[0]()[:0] if self._chunks else torch.empty(0, *self.shape[1:])
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class PickedRows:
    """Rows of another source in an order of their own (int64 positions); reads the run that spans what is asked for."""

    def __init__(self, rows: Rows, index: Tensor) -> None:
        self._rows, self._index = rows, index
        self.shape = (len(index), *rows.shape[1:])

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, rows: slice) -> Tensor:
        index = self._index[rows]
        if not len(index):
            return self._rows[0:0]
        low, high = int(index.min()), int(index.max())
        return self._rows[low : high + 1][index - low]
