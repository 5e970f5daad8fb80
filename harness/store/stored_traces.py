"""Stored traces, put together again: from the keys of cells to :class:`~aftershock.harness.tracing.traces.Traces`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ..core.errors import AftershockError, UsageError
from ..plan.cells import TraceKeys
from ..tracing.rows import ChunkedRows, Rows
from ..tracing.traces import Need, TapInfo, Traces
from .cells import Cells
from .ledger import Record

T = TypeVar("T")
# Seconds after which an entry that is not seen is looked for again: on another machine it may come late.
_PAUSES = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 0.0)


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
        self._cells = Cells(folder)

    def values(self, key: str) -> Mapping[str, Any]:
        """Return the small results of a finished cell."""
        return self._record(key).values

    def load(self, key: str) -> dict[str, Tensor]:
        """Return the tensors of a finished cell; large ones are memory-mapped."""
        return self._read(key, self._cells.load)

    def tensor(self, key: str, name: str) -> Tensor:
        """Return one tensor of a finished cell, like :meth:`load`."""
        return self._read(key, lambda record: self._cells.tensor(record, name))

    def _read(self, key: str, read: Callable[[Record], T]) -> T:
        try:
            return read(self._record(key))
        except (FileNotFoundError, UsageError):
            # It may have been computed again, since the one that was known is damaged or gone.
            self._cells.drop(key)
        except OSError:
            # Another file system may have moved it, or there are too many files open: asked once more.
            time.sleep(_PAUSES[1])
        try:
            return read(self._record(key))
        except OSError as error:
            raise AftershockError(f"cell {key} cannot be read ({error})") from error

    def _record(self, key: str) -> Record:
        for pause in _PAUSES:
            with suppress(OSError):
                record = self._cells.record(key)
                if record is not None and record.status == "done":
                    return record
            time.sleep(pause)
            self._cells.refresh(again=True)
        raise AftershockError(f"{self._cells.root} has no finished cell {key}")


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
