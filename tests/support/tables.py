"""Tables of a run directory, read back."""

from __future__ import annotations

import csv
import gzip
import io
import shutil
from pathlib import Path

# Columns of the leaderboard that are about the shadow images of one run.
SECRET_COLUMNS = ("shadow_flagged_at_fpr_5", "shadow_robust", "shadow_source_robust", "n_shadow")


def whole_tables(run: Path) -> dict[str, bytes]:
    """The bytes of every table but the timings; the compressed one unpacked, so that a difference can be read.

    Without what the secret of a run decides, which is all that two runs of one suite may differ in.
    """
    found = {}
    for path in sorted((run / "tables").iterdir()):
        if path.name != "timings.csv":
            data = path.read_bytes()
            found[path.name] = gzip.decompress(data) if path.suffix == ".gz" else data
    if "leaderboard.csv" in found:
        found["leaderboard.csv"] = _without(found["leaderboard.csv"], SECRET_COLUMNS)
    return found


def _without(table: bytes, columns: tuple[str, ...]) -> bytes:
    head, *rows = csv.reader(io.StringIO(table.decode(), newline=""))
    kept, out = [i for i, name in enumerate(head) if name not in columns], io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows([row[i] for i in kept] for row in (head, *rows))
    return out.getvalue().encode()


def share_secret(run: Path, other: Path) -> None:
    """Give a run directory that is not there yet the secret of another, so that they have all cells in common."""
    other.mkdir()
    shutil.copy(run / ".secret", other / ".secret")


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, which may be compressed."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def read_table(run: Path, name: str) -> list[dict[str, str]]:
    """The rows of a table of a run directory, by the name of its file."""
    return read_csv(run / "tables" / name)
