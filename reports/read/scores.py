"""Published scores: ``scores.csv.gz`` of a run, read with care, and what comparisons of rows need of it.

The file may come from an untrusted source: it is read in slices, and no further than a table can reach.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from ...harness.core.errors import UsageError
from ...harness.core.files import open_file
from ...harness.evaluation.rankability import ABLATION
from ...harness.statistics.detection import ALPHAS, threshold_reason
from ...harness.statistics.ranks import RowSample
from ...harness.statistics.samples import WorstCase, row_sample
from .run_directory import SCORES_LIMIT

if TYPE_CHECKING:
    import pandas

NORMS = ("linf", "l2", "l1", "l0")
_COLUMNS = {
    "dataset": "str", "model": "str", "seed": "str", "perturbation": "str", "detector": "str", "index": "int64",
    "label": "str", "prediction": "str", "set": "str", "score": "float64", "success": "float64",
}  # fmt: skip
_WHOLE = ("seed", "label", "clean_prediction", "prediction")
_MORE = {**dict.fromkeys(_WHOLE, "int64"), "flagged_at_fpr_5": "float64", **dict.fromkeys(NORMS, "float64")}
# More than any table that a report can show was made from; an untrusted file may unpack to anything.
_MOST_BYTES = 4 * 2**30
_MOST_PACKED = SCORES_LIMIT
_LONGEST_LINE = 2**20
_ROWS = 500_000
_CANDIDATES = ("perturbed", "rounded-8-bit", "rounded-levels")


def read_scores(run: Path, norm: str) -> pandas.DataFrame | None:
    """Return the columns of a run's ``scores.csv.gz`` that the ranking reads; ``None`` where it has none of them.

    Args:
        run: the run directory; it may come from an untrusted source.
        norm: the threat's, whose measured value is read besides.

    Raises:
        UsageError: if the file leads out of the run, is not a regular file, is too large or malformed.
    """
    kinds = {**_COLUMNS, norm: "float64"}
    # Controls are not used for the ranking.
    return _read(run, kinds, lambda part: part[part["set"] != "control"]) if norm in NORMS else None


def read_all_scores(run: Path) -> pandas.DataFrame | None:
    """Return all rows and columns of a run's ``scores.csv.gz``; ``None`` where it lacks one. Errors as above."""
    return _read(run, {**_COLUMNS, **_MORE}, lambda part: part)


def _read(
    run: Path, kinds: Mapping[str, str], keep: Callable[[pandas.DataFrame], pandas.DataFrame]
) -> pandas.DataFrame | None:
    import pandas as pd

    file = run / "tables" / "scores.csv.gz"
    if not os.path.lexists(file):
        return None
    try:
        with _bounded(file, run) as stream:
            header = pd.read_csv(stream, nrows=0)
            if not set(kinds) <= set(header.columns):
                return None
        with _bounded(file, run) as stream:
            # Without index_col, rows that are longer than the header would move every column.
            parts = pd.read_csv(stream, usecols=list(kinds), dtype=dict(kinds), keep_default_na=False, na_values=[""],
                                index_col=False, chunksize=_ROWS)  # fmt: skip
            kept = [keep(part) for part in parts]
    except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        why = " ".join(str(error).split())[:200]
        raise UsageError(f"{file} is not a table that can be read ({why}): run the suite again.") from error
    return pd.concat(kept, ignore_index=True) if kept else None


@contextmanager
def _bounded(file: Path, run: Path) -> Iterator[IO[bytes]]:
    with open_file(file, _MOST_PACKED, within=run) as raw, gzip.GzipFile(fileobj=raw) as packed:
        yield io.BufferedReader(_Bounded(packed))


class _Bounded(io.RawIOBase):
    """A stream that ends with an error where it holds more than is sensible."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream, self._left, self._line = stream, _MOST_BYTES, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("it unpacks to more than a report reads")
        end = data.rfind(b"\n")
        self._line = self._line + len(data) if end < 0 else len(data) - end - 1
        if self._line > _LONGEST_LINE:
            raise ValueError("it holds a line that is longer than a report reads")
        buffer[: len(data)] = data
        return len(data)


def sample_of(
    scores: pandas.DataFrame, detector: str, kinds: Mapping[str, str], norm: str, eps: float, images: int
) -> RowSample | None:
    """Return what the ranking compares of one row, from the scores of its data set and model.

    Args:
        scores: as :func:`read_scores` gives them, of one data set and model.
        detector: the row's label; ``none`` for the row without a detector.
        kinds: the kind of every perturbation, by label.
        norm: the threat's.
        eps: its largest measured norm.
        images: how many evaluate images, from the first on, the row's figures are about.
    """
    if not math.isfinite(eps) or images < 1:
        return None
    wanted = [p for p, kind in kinds.items() if kind == "attack" or (kind == "adaptive" and p.endswith(f"@{detector}"))]
    seeds: list[WorstCase] = []
    for _, of_seed in scores.groupby("seed", sort=True):
        if detector == ABLATION:
            # It gives every image the score 0, and its threshold is 0. What fools the model does so with every
            # detector.
            attacked = of_seed.assign(score=0.0)
            own = attacked[attacked["detector"] == attacked["detector"].iloc[0]]
        else:
            attacked = own = of_seed[of_seed["detector"] == detector]
        calibrate = own.loc[own["set"] == "calibrate", "score"].to_numpy(dtype=np.float64)
        clean = own[own["set"] == "clean"].head(images)
        candidates = attacked[attacked["set"].isin(_CANDIDATES) & attacked["perturbation"].isin(wanted)]
        fooling = candidates[(candidates["success"] == 1) & (candidates[norm] <= eps * (1 + 1e-4) + 1e-6)]
        known = (calibrate, clean["score"], fooling["score"])
        short = detector != ABLATION and threshold_reason(len(calibrate), ALPHAS["5"])
        if short or not all(np.isfinite(of).all() for of in known):
            return None
        lowest = fooling.groupby("index")["score"].min().reindex(clean["index"])
        right = (clean["label"] == clean["prediction"]).to_numpy()
        lower = np.where(right, clean["score"].to_numpy(), math.inf)
        seeds.append(WorstCase(calibrate, lower, lowest.fillna(math.inf).to_numpy(dtype=np.float64)))
    if not seeds or not len(seeds[0].lower):
        return None
    calibrated = len(seeds[0].calibrate)
    if any((len(s.lower), len(s.calibrate)) != (len(seeds[0].lower), calibrated) for s in seeds):
        return None
    if detector == ABLATION:
        seeds = [WorstCase(np.zeros(0), s.lower, s.upper) for s in seeds]
    return row_sample(seeds, calibrated)
