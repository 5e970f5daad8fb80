"""The table beside an entry: for each image what ranks, intervals and checks need, one file of some 30 KB.

Columns: ``seed``; ``set``, ``calibrate`` or ``evaluate``; ``index``, the image's position in its split, in the run's
order; ``right``, whether the model gets the clean image right (evaluate only); ``score`` of the clean image;
``lowest``, the lowest score of what fools the model within the threat, empty where nothing does; ``r0`` and ``rd``,
the distances that the price is about, empty beyond ``reach``; ``censored``: ``no``, ``rd`` or ``r0``, empty where the
image is not among those of the price.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...harness.core.errors import UsageError
from ...harness.core.files import MIB
from ...harness.evaluation.radii import Distances
from ..read.bounded_gzip import open_gzip
from ..read.scores import PublishedSeed

DECIDES_NO_NUMBER = True

HEADER = ("seed", "set", "index", "right", "score", "lowest", "r0", "rd", "censored")
_SETS = ("calibrate", "evaluate")
_FLAGS = {"0": False, "1": True}
_CENSORED = ("", "no", "rd", "r0")
# Ten seeds of 50,000 images take 30 MiB.
_MOST_PACKED, _MOST_BYTES, _LONGEST_LINE, _MOST_ROWS = 32 * MIB, 256 * MIB, 1000, 2_000_000


@dataclass(frozen=True, eq=False)
class SeedImages:
    """One seed of a table.

    Attributes:
        scores: of all images.
        r0, rd: float64 (n,) for the evaluate images; infinite beyond the reach, NaN where not among the price's.
    """

    scores: PublishedSeed
    r0: NDArray[np.float64]
    rd: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ImageTable:
    """All seeds of a table, in the order of the file; ``reach`` is the largest distance that counts, if any does."""

    seeds: Sequence[SeedImages]
    reach: float | None = None

    def distances(self) -> Distances | None:
        """Return r0 and rd over seeds; ``None`` where a seed has none."""
        if self.reach is None or any(np.isnan(s.r0).all() for s in self.seeds):
            return None
        known = ~np.isnan(np.stack([s.r0 for s in self.seeds], 1)).all(1)
        r0, rd = (np.stack([getattr(s, name) for s in self.seeds], 1)[known] for name in ("r0", "rd"))
        return Distances(r0, rd, self.reach)

    @cached_property
    def content(self) -> bytes:
        """The content of its file, the same bytes for the same table."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(HEADER)
        for one in self.seeds:
            s = one.scores
            for index, score in zip(s.calibrate_index.tolist(), s.calibrate.tolist(), strict=True):
                writer.writerow((s.seed, "calibrate", index, "", _written(score), "", "", "", ""))
            for row in zip(s.index, s.right, s.clean, s.lowest, one.r0, one.rd, strict=True):
                index, right, clean, lowest, r0, rd = row
                writer.writerow((
                    s.seed, "evaluate", int(index), int(right), _written(clean), _written(lowest), _written(r0),
                    _written(rd), _censored(r0, rd),
                ))  # fmt: skip
        return gzip.compress(text.getvalue().encode(), mtime=0)


def written_number(value: float) -> float:
    """Return a finite number as a table holds it, with nine digits."""
    return float(_written(value))


def _written(value: float) -> str:
    return f"{value:.9g}" if math.isfinite(value) else ""


def _censored(r0: float, rd: float) -> str:
    if math.isnan(r0):
        return ""
    return "r0" if math.isinf(r0) else "rd" if math.isinf(rd) else "no"


def digest_of(content: bytes) -> str:
    """Return the sha256 of a table's file, in hex."""
    return hashlib.sha256(content).hexdigest()


def read_images(path: Path, within: Path | None = None, reach: float | None = None) -> tuple[ImageTable, str]:
    """Return a table and the sha256 of its file, which may come from anybody.

    Raises:
        UsageError: naming the file, and line and column where there are any.
    """
    try:
        with open_gzip(path, within, _MOST_PACKED, _MOST_BYTES, _LONGEST_LINE, follow=False) as (stream, packed):
            table = _parsed(io.TextIOWrapper(stream, encoding="utf-8", newline=""), path, reach)
            return table, packed.hexdigest()
    except FileNotFoundError as error:
        raise UsageError(f"There is no table {path}, which its entry names.") from error
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        why = " ".join(str(error).split())[:200]
        raise UsageError(f"{path} is no table of images ({why}).") from error


def _parsed(stream: io.TextIOWrapper, path: Path, reach: float | None) -> ImageTable:
    lines = csv.reader(stream, strict=True)
    header = next(lines, [])
    if tuple(header) != HEADER:
        raise ValueError(f"its columns are not {', '.join(HEADER)}")
    rows: dict[tuple[str, str], list[list[float]]] = {}
    for number, cells in enumerate(lines, 2):
        if number > _MOST_ROWS:
            raise ValueError("it has more rows than a table of images has")
        if len(cells) != len(HEADER):
            raise ValueError(f"line {number} has {len(cells)} cells")
        row = dict(zip(HEADER, cells, strict=True))
        try:
            rows.setdefault((_seed(row["seed"]), _one_of(row, "set", _SETS)), []).append(_values(row))
        except ValueError as error:
            raise ValueError(f"line {number}, {error}") from error
    names = list(dict.fromkeys(seed for seed, _ in rows))
    return ImageTable([_seed_images(name, rows) for name in names], reach)


def _seed_images(name: str, rows: Mapping[tuple[str, str], list[list[float]]]) -> SeedImages:
    calibrate = np.array(rows.get((name, "calibrate"), []), dtype=np.float64).reshape(-1, 6)
    evaluate = np.array(rows.get((name, "evaluate"), []), dtype=np.float64).reshape(-1, 6)
    index, right, clean, lowest, r0, rd = evaluate.T
    scores = PublishedSeed(
        name, calibrate[:, 0].astype(np.int64), calibrate[:, 2], index.astype(np.int64), right == 1, clean, lowest
    )
    return SeedImages(scores, r0, rd)


def _values(row: Mapping[str, str]) -> list[float]:
    """Return index, right, score, lowest, r0 and rd of a line."""
    index = float(_whole(row["index"], "index"))
    if row["set"] == "calibrate":
        filled = [name for name in ("right", "lowest", "r0", "rd", "censored") if row[name]]
        if filled:
            raise ValueError(f"column {filled[0]}: a calibrate image has none")
        return [index, 0.0, _number(row, "score"), math.inf, math.nan, math.nan]
    right = _FLAGS[_one_of(row, "right", tuple(_FLAGS))]
    censored = _one_of(row, "censored", _CENSORED)
    wanted = {"": (), "no": ("r0", "rd"), "rd": ("r0",), "r0": ()}[censored]
    for name in ("r0", "rd"):
        if bool(row[name]) != (name in wanted):
            raise ValueError(f"column {name} does not agree with column censored")
    if not right and (row["lowest"] or censored):
        raise ValueError("column right: what the model gets wrong is not attacked")
    beyond = math.nan if not censored else math.inf
    r0, rd = (_number(row, name, low=0.0) if row[name] else beyond for name in ("r0", "rd"))
    lowest = _number(row, "lowest") if row["lowest"] else math.inf
    return [index, float(right), _number(row, "score"), lowest, r0, rd]


def _seed(text: str) -> str:
    return str(_whole(text, "seed"))


def _whole(text: str, column: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError(f"column {column}: {text[:20]!r} is no whole number")
    return int(text)


def _one_of(row: Mapping[str, str], column: str, known: tuple[str, ...]) -> str:
    if row[column] not in known:
        raise ValueError(f"column {column}: {row[column][:20]!r} is none of {', '.join(map(repr, known))}")
    return row[column]


def _number(row: Mapping[str, str], column: str, low: float = -math.inf) -> float:
    text = row[column]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # float() also takes "1_0", " 1", "infinity" and digits of other scripts.
    if not math.isfinite(value) or value < low or text.strip() != text or "_" in text or not text.isascii():
        raise ValueError(f"column {column}: {text[:20]!r} is no number that belongs there")
    return value
