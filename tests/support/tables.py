"""Tables of a run directory, read back."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path


def whole_tables(run: Path) -> dict[str, bytes]:
    """The bytes of every table but the timings; the compressed one unpacked, so that a difference can be read."""
    found = {}
    for path in sorted((run / "tables").iterdir()):
        if path.name != "timings.csv":
            data = path.read_bytes()
            found[path.name] = gzip.decompress(data) if path.suffix == ".gz" else data
    return found


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, which may be compressed."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def read_table(run: Path, name: str) -> list[dict[str, str]]:
    """The rows of a table of a run directory, by the name of its file."""
    return read_csv(run / "tables" / name)
