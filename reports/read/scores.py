"""Published scores: ``scores.csv.gz`` of a run, read with care, and what comparisons of rows need of it.

The file may come from an untrusted source: it is read in slices, and no further than a table can reach.
"""

from __future__ import annotations

import math
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...harness.core.errors import UsageError
from ...harness.evaluation.alarms import within_reach
from ...harness.evaluation.rankability import ABLATION
from ...harness.evaluation.tables import NORMS
from ...harness.statistics.detection import ALPHAS, threshold_reason
from ...harness.statistics.ranks import RowSample
from ...harness.statistics.samples import WorstCase, row_sample
from .bounded_gzip import open_gzip
from .run_directory import SCORES_LIMIT

if TYPE_CHECKING:
    import pandas

DECIDES_NO_NUMBER = True

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
# Robust accuracy from published scores may differ by one image: these are rounded to nine digits, and may tie.
_IMAGES_APART = 1.5
OTHER_ACCURACY = "the scores of its run do not give its robust accuracy"
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
        with open_gzip(file, run, _MOST_PACKED, _MOST_BYTES, _LONGEST_LINE) as (stream, _):
            header = pd.read_csv(stream, nrows=0)
            if not set(kinds) <= set(header.columns):
                return None
        with open_gzip(file, run, _MOST_PACKED, _MOST_BYTES, _LONGEST_LINE) as (stream, _):
            # Without index_col, rows that are longer than the header would move every column.
            parts = pd.read_csv(stream, usecols=list(kinds), dtype=dict(kinds), keep_default_na=False, na_values=[""],
                                index_col=False, chunksize=_ROWS)  # fmt: skip
            kept = [keep(part) for part in parts]
    except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        why = " ".join(str(error).split())[:200]
        raise UsageError(f"{file} is not a table that can be read ({why}): run the suite again.") from error
    return pd.concat(kept, ignore_index=True) if kept else None


@dataclass(frozen=True, eq=False)
class PublishedSeed:
    """One seed's scores of one row.

    Attributes:
        seed: as the table writes it.
        calibrate_index: int64 (m,), positions in the split.
        calibrate: float64 (m,), scores; 0 for the row without a detector.
        index: int64 (n,), positions of the evaluate images in their split, in the order of the run.
        right: bool (n,), whether the model gets the clean image right.
        clean: float64 (n,), scores of the clean images.
        lowest: float64 (n,), the lowest score of what fools the model within the threat; infinite where nothing does.
    """

    seed: str
    calibrate_index: NDArray[np.int64]
    calibrate: NDArray[np.float64]
    index: NDArray[np.int64]
    right: NDArray[np.bool_]
    clean: NDArray[np.float64]
    lowest: NDArray[np.float64]


def published_seeds(
    scores: pandas.DataFrame, detector: str, kinds: Mapping[str, str], norm: str, eps: float
) -> list[PublishedSeed] | None:
    """Return a row's scores by seed; ``None`` where one is not finite.

    Args:
        scores: as :func:`read_scores` gives them, of one data set and model.
        detector: the row's label; ``none`` for the row without a detector.
        kinds: the kind of every perturbation, by label.
        norm: the threat's.
        eps: its largest measured norm.
    """
    wanted = [p for p, kind in kinds.items() if kind == "attack" or (kind == "adaptive" and p.endswith(f"@{detector}"))]
    seeds: list[PublishedSeed] = []
    for name, of_seed in scores.groupby("seed", sort=True):
        if detector == ABLATION:
            # It gives every image the score 0, and its threshold is 0. What fools the model does so with every
            # detector.
            attacked = of_seed.assign(score=0.0)
            own = attacked[attacked["detector"] == attacked["detector"].iloc[0]]
        else:
            attacked = own = of_seed[of_seed["detector"] == detector]
        calibrate, clean = own[own["set"] == "calibrate"], own[own["set"] == "clean"]
        candidates = attacked[attacked["set"].isin(_CANDIDATES) & attacked["perturbation"].isin(wanted)]
        fooling = candidates[(candidates["success"] == 1) & within_reach(candidates[norm].to_numpy(np.float64), eps)]
        if not all(np.isfinite(of["score"]).all() for of in (calibrate, clean, fooling)):
            return None
        lowest = fooling.groupby("index")["score"].min().reindex(clean["index"]).fillna(math.inf)
        seeds.append(PublishedSeed(
            str(name), calibrate["index"].to_numpy(np.int64), calibrate["score"].to_numpy(np.float64),
            clean["index"].to_numpy(np.int64), (clean["label"] == clean["prediction"]).to_numpy(np.bool_),
            clean["score"].to_numpy(np.float64), lowest.to_numpy(np.float64),
        ))  # fmt: skip
    return seeds


def sample_of_seeds(seeds: Sequence[PublishedSeed], images: int, ablation: bool = False) -> RowSample | None:
    """Return what the ranking compares; ``None`` where the seeds are of different shapes or too few for a threshold.

    Args:
        seeds: of one row, at least one.
        images: how many evaluate images, from the first on, the row's figures are about.
        ablation: whether it is the row without a detector, which needs no threshold.
    """
    shapes = {(len(s.index), len(s.calibrate)) for s in seeds}
    if len(shapes) != 1 or not len(seeds[0].index[:images]):
        return None
    calibrated = len(seeds[0].calibrate)
    if not ablation and threshold_reason(calibrated, ALPHAS["5"]):
        return None
    return row_sample([worst_case(s, images, ablation) for s in seeds], calibrated)


def gives(sample: RowSample, robust_accuracy: float | None) -> bool:
    """Return whether a stated robust accuracy is that of published scores, which ranks are tested on."""
    if robust_accuracy is None:
        return False
    images = sample.robust.shape[1]
    return bool(abs(float(sample.robust.mean()) - robust_accuracy) * images < _IMAGES_APART)


def usual_shape(arrays: Iterable[NDArray[Any]]) -> tuple[int, ...]:
    """Return the most common shape: rows of others cannot be compared image by image."""
    most = Counter(array.shape for array in arrays).most_common(1)
    return most[0][0] if most else ()


def worst_case(seed: PublishedSeed, images: int, ablation: bool = False) -> WorstCase:
    """Return for which thresholds each of the first images is robust."""
    lower = np.where(seed.right, seed.clean, math.inf)
    return WorstCase(np.zeros(0) if ablation else seed.calibrate, lower[:images], seed.lowest[:images])


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
    seeds = published_seeds(scores, detector, kinds, norm, eps) if math.isfinite(eps) and images > 0 else None
    return sample_of_seeds(seeds, images, detector == ABLATION) if seeds else None
