"""Stored traces, put together again: from the keys of cells to :class:`~aftershock.harness.trace.Traces`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .cells import TraceKeys
from .trace import ChunkedRows, Need, Rows, TapInfo, Traces


class Reader(Protocol):
    """Finished cells, read by key."""

    def tensor(self, key: str, name: str) -> Tensor: ...
    def load(self, key: str) -> dict[str, Tensor]: ...
    def values(self, key: str) -> Mapping[str, Any]: ...


class PickedRows:
    """Rows of another source in an order of their own; reads the run that spans what is asked for."""

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


def tap_infos(values: Mapping[str, Any]) -> tuple[TapInfo, ...]:
    """The taps that a ``model`` cell lists."""
    return tuple(TapInfo(name, kind, tuple(shape)) for name, kind, shape in values["taps"])


def open_traces(
    reader: Reader,
    chunks: Sequence[TraceKeys],
    taps: tuple[TapInfo, ...],
    needs: Sequence[Need],
    stored: Callable[[Need], Need],
) -> Traces:
    """The traces of consecutive chunks, as an owner with these needs sees them; nothing is read yet.

    Args:
        reader: where finished cells are read.
        chunks: the cells of each chunk; chunks without rows are left out.
        taps: the model's taps.
        needs: what the owner asked for, and
        stored: how such a need is stored (``plan.stored_need``).
    """
    used = [c for c in chunks if reader.values(c.logits)["rows"]] or list(chunks[:1])
    lengths = [int(reader.values(c.logits)["rows"]) for c in used]

    def rows(keys: Sequence[str], name: str, shape: Sequence[int]) -> ChunkedRows:
        def chunk(key: str) -> Callable[[], Tensor]:
            return lambda: reader.tensor(key, name)

        return ChunkedRows([chunk(key) for key in keys], lengths, shape)

    held = tuple(replace(need, units=stored(need).units) for need in needs)
    codes: dict[str, dict[str, Rows]] = {}
    for need in held:
        keys = [c.codes[stored(need)] for c in used]
        shapes = reader.values(keys[0])["shapes"]
        wanted = {t.name for t in need.select(taps)}
        found = {t.name: rows(keys, str(i), shapes[str(i)]) for i, t in enumerate(taps) if t.name in wanted}
        codes.setdefault(need.code, {}).update(found)
    logits = rows([c.logits for c in used], "logits", reader.values(used[0].logits)["shape"])
    views: dict[str, Traces] = {}
    gradients: dict[str, Rows] = {}
    for name in used[0].extras:
        keys = [c.extras[name] for c in used]
        values = reader.values(keys[0])
        if values["gradient"]:
            gradients[name] = rows(keys, "gradient", values["shape"])
        else:
            seen: dict[str, dict[str, Rows]] = {}
            for label, shape in values["shapes"].items():
                code, _, index = label.partition("|")
                seen.setdefault(code, {})[taps[int(index)].name] = rows(keys, label, shape)
            views[name] = Traces(rows(keys, "logits", values["shape"]), taps, seen, held)
    return Traces(logits, taps, codes, held, views, gradients)


def pick(traces: Traces, index: Tensor) -> Traces:
    """Some images of whole traces, in the order of ``index`` (int64)."""
    return replace(
        traces,
        logits_rows=PickedRows(traces.logits_rows, index),
        codes={c: {t: PickedRows(r, index) for t, r in taps.items()} for c, taps in traces.codes.items()},
        view_traces={name: pick(view, index) for name, view in traces.view_traces.items()},
        gradient_rows={name: PickedRows(r, index) for name, r in traces.gradient_rows.items()},
        label_rows=None if traces.label_rows is None else PickedRows(traces.label_rows, index),
    )


def cat_column(reader: Reader, keys: Sequence[str], name: str) -> Tensor:
    """One small tensor of several cells, end to end."""
    parts = [reader.tensor(key, name) for key in keys]
    return torch.cat(parts) if parts else torch.empty(0)
