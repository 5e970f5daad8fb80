"""Finished cells of a run directory or a cache, as tests read them, and the files that hold them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aftershock.harness.store.cells import Cells
from aftershock.harness.store.ledger import Record, dump_record
from torch import Tensor


def read_cells(folder: Path) -> Cells:
    """The cells of a folder."""
    cells = Cells(folder)
    cells.refresh()
    return cells


def ledger(folder: Path) -> dict[str, Record]:
    """The entries of a folder by key."""
    return {record.key: record for record in read_cells(folder).records()}


def tensors(folder: Path, key: str) -> Mapping[str, Tensor]:
    """The tensors of a cell."""
    cells = read_cells(folder)
    record = cells.record(key)
    assert record is not None, key
    return cells.load(record)


def artifact(folder: Path, key: str) -> Path:
    """The file that holds a cell's artifact, with others or alone."""
    cells = read_cells(folder)
    record = cells.record(key)
    assert record is not None, key
    return cells.place(record)


def lines(folder: Path, key: str) -> Path:
    """The file that holds a cell's entry, with others."""
    cells = read_cells(folder)
    assert cells.record(key) is not None, key
    return cells.lines(cells.pack_of(key))


def raw_entry(folder: Path, key: str) -> dict[str, Any]:
    """A cell's entry as it is written."""
    found = [line for line in lines(folder, key).read_bytes().splitlines() if f'"key":"{key}"'.encode() in line]
    entry: dict[str, Any] = json.loads(found[-1])
    return entry


def replace_line(folder: Path, key: str, line: bytes) -> None:
    """Write another line in the place of a cell's entry; the file's time stays."""
    path = lines(folder, key)
    state, mark = path.stat(), f'"key":"{key}"'.encode()
    held = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line if mark in old else old for old in held))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def replace_record(folder: Path, record: Record) -> None:
    """Write another entry of a cell, with a right checksum."""
    replace_line(folder, record.key, dump_record(record))
