"""Stored traces, put together again: from the keys of cells to :class:`~aftershock.harness.tracing.traces.Traces`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import safetensors
import torch
from torch import Tensor

from ..core.errors import AftershockError
from ..plan.cells import TraceKeys
from ..tracing.rows import ChunkedRows, Rows
from ..tracing.traces import Need, TapInfo, Traces
from .ledger import SUFFIX, Record, checked_key, read_record


class Reader(Protocol):
    """Finished cells, read by key."""

    def tensor(self, key: str, name: str) -> Tensor: ...
    def load(self, key: str) -> dict[str, Tensor]: ...
    def values(self, key: str) -> Mapping[str, Any]: ...


class StoredCells:
    """The finished cells of a run directory that another process writes.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._records: dict[str, Record] = {}

    def values(self, key: str) -> Mapping[str, Any]:
        """Return the small results of a finished cell."""
        return self._record(key).values

    def load(self, key: str) -> dict[str, Tensor]:
        """Return the tensors of a finished cell, memory-mapped."""
        if not self._record(key).digest:
            return {}
        with safetensors.safe_open(self._artifact(key), framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)

    def tensor(self, key: str, name: str) -> Tensor:
        """Return one tensor of a finished cell, memory-mapped."""
        with safetensors.safe_open(self._artifact(key), framework="pt") as opened:
            found: Tensor = opened.get_tensor(name)
            return found

    def _artifact(self, key: str) -> Path:
        return self._folder / "artifacts" / f"{checked_key(key)}{SUFFIX}"

    def _record(self, key: str) -> Record:
        if key not in self._records:
            record = read_record(self._folder / "cells" / f"{checked_key(key)}.json")
            if record is None or record.status != "done":
                raise AftershockError(f"{self._folder} has no finished cell {key}")
            self._records[key] = record
        return self._records[key]


def tap_infos(values: Mapping[str, Any]) -> tuple[TapInfo, ...]:
    """Return the taps that a ``model`` cell lists; cells of earlier versions say nothing of channels."""
    return tuple(TapInfo(name, kind, tuple(shape), *axis) for name, kind, shape, *axis in values["taps"])


def open_traces(
    reader: Reader,
    chunks: Sequence[TraceKeys],
    taps: tuple[TapInfo, ...],
    needs: Sequence[Need],
    stored: Callable[[Need], Need],
) -> Traces:
    """Return the traces of consecutive chunks, as an owner with these needs sees them; nothing is read yet.

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


def cat_column(reader: Reader, keys: Sequence[str], name: str) -> Tensor:
    """Return one small tensor of several cells, end to end."""
    parts = [reader.tensor(key, name) for key in keys]
    return torch.cat(parts) if parts else torch.empty(0)
