"""The clean fit set cut in two: what a detector is fitted on, and held-out images on which it is calibrated.

A detector's scores of the images that it was fitted on are smaller than those of fresh ones; whatever is learned from
scores (p-values, weights, scales) needs fresh ones.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..harness.trace import Rows, Traces


class ChosenRows:
    """Some rows of another source, ascending; reads the run that spans what is asked for.

    Args:
        rows: the source.
        index: positions in it, int64, ascending.
    """

    def __init__(self, rows: Rows, index: Tensor) -> None:
        self._rows, self._index = rows, index
        self.shape = (len(index), *rows.shape[1:])

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, rows: slice) -> Tensor:
        index = self._index[rows]
        if not len(index):
            return self._rows[0:0]
        low, high = int(index[0]), int(index[-1])
        return self._rows[low : high + 1][index - low]


def split_rows(eligible: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw ``count`` of the eligible rows (int64); the drawn ones and the others, both ascending.

    Neither part is ever empty while there is a row: one that nothing is left for gets a copy of the other.
    """
    order = eligible[torch.randperm(len(eligible), generator=generator)]
    count = max(1, min(count, len(eligible)))
    drawn, others = order[:count].sort().values, order[count:].sort().values
    return drawn, others if len(others) else drawn


def chosen(traces: Traces, index: Tensor) -> Traces:
    """The images of ``traces`` at ``index`` (int64, ascending); nothing is read."""
    start = traces.window.indices(len(traces.logits_rows))[0]
    absolute = index + start

    def cut(rows: Rows) -> Rows:
        return ChosenRows(rows, absolute)

    return replace(
        traces,
        logits_rows=cut(traces.logits_rows),
        codes={code: {tap: cut(rows) for tap, rows in taps.items()} for code, taps in traces.codes.items()},
        view_traces={name: chosen(view, index) for name, view in traces.view_traces.items()},
        gradient_rows={name: cut(rows) for name, rows in traces.gradient_rows.items()},
        label_rows=None if traces.label_rows is None else cut(traces.label_rows),
        window=slice(None),
    )
