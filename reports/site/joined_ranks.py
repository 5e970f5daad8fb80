"""Ranks of rows from several runs: tested image by image on the scores that the runs published.

A rank compares rows, so it cannot be taken from the table of one run. Rows of one protocol digest are about the same
images, and ``scores.csv.gz`` holds all that the ranking needs of each.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from ...harness.core.errors import UsageError
from ...harness.core.files import open_file
from ...harness.evaluation.radii import ACCURACY_LEVEL, Distances, price_ranks
from ...harness.statistics.detection import ALPHAS, threshold_reason
from ...harness.statistics.ranks import RowSample, ranks
from ...harness.statistics.samples import WorstCase, row_sample
from ..read.run_directory import Row
from .leaderboard import ABLATION, NORMS
from .matrices_and_curves import grouped

if TYPE_CHECKING:
    import pandas

_COLUMNS = {
    "dataset": "str", "model": "str", "seed": "str", "perturbation": "str", "detector": "str", "index": "int64",
    "label": "str", "prediction": "str", "set": "str", "score": "float64", "success": "float64",
}  # fmt: skip
# More than any table that a report can show was made from; an untrusted file may unpack to anything.
_MOST_BYTES = 4 * 2**30
_MOST_PACKED = 2**30
_LONGEST_LINE = 2**20
_ROWS = 500_000
# Distances of all rows that are compared: images, times seeds, times detectors.
_MOST_DISTANCES = 10**7
_CANDIDATES = ("perturbed", "rounded-8-bit", "rounded-levels")
# Robust accuracy from published scores may differ by one image: these are rounded to nine digits, and may tie.
_IMAGES_APART = 1.5

NO_SCORES = "its run holds no scores to compare it with rows of other runs"
OTHER_IMAGES = "it is about other images than most rows here"
OTHER_ACCURACY = "the scores of its run do not give its robust accuracy"


def read_scores(run: Path, norm: str) -> pandas.DataFrame | None:
    """Return the columns of a run's ``scores.csv.gz`` that the ranking reads; ``None`` where it has none of them.

    Args:
        run: the run directory; it may come from an untrusted source.
        norm: the threat's, whose measured value is read besides.

    Raises:
        UsageError: if the file leads out of the run, is not a regular file, is too large or malformed.
    """
    import pandas as pd

    if norm not in NORMS:
        return None
    file = run / "tables" / "scores.csv.gz"
    if not os.path.lexists(file):
        return None
    kinds = {**_COLUMNS, norm: "float64"}
    try:
        with _bounded(file, run) as stream:
            header = pd.read_csv(stream, nrows=0)
            if not set(kinds) <= set(header.columns):
                return None
        with _bounded(file, run) as stream:
            # Without index_col, rows that are longer than the header would move every column.
            parts = pd.read_csv(stream, usecols=list(kinds), dtype=kinds, keep_default_na=False, na_values=[""],
                                index_col=False, chunksize=_ROWS)  # fmt: skip
            # Controls are not used for the ranking.
            kept = [part[part["set"] != "control"] for part in parts]
    except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        why = " ".join(str(error).split())[:200]
        raise UsageError(f"{file} is not a table that can be read ({why}): run the suite again.") from error
    return pd.concat(kept) if kept else None


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


def common_ranks(
    rows: Sequence[Row],
    origins: Mapping[str, tuple[Path, str]],
    perturbations: Sequence[Row],
    radii: Sequence[Row] = (),
) -> list[Row]:
    """Return the rows of one data set, model and digest from several runs, ranked by tests over all of them.

    A row has no rank if it had none in its run, or with the reason :data:`NO_SCORES`, :data:`OTHER_ACCURACY` or
    :data:`OTHER_IMAGES` where it cannot be compared image by image.

    Args:
        rows: of ``leaderboard.csv``, of one or several threats.
        origins: by a row's label, the run's directory and the label there.
        perturbations: of ``perturbations.csv``.
        radii: of ``radii.csv``, whose distances order rows that robust accuracy leaves together.
    """
    kinds = {p.text("perturbation"): p.text("kind") for p in perturbations}
    read: dict[tuple[Path, str], pandas.DataFrame | None] = {}
    found: dict[int, float] = {}
    reasons: dict[int, str] = {}
    for (norm, _), group in grouped(rows, "norm", "eps").items():
        able: list[Row] = []
        samples: list[RowSample] = []
        for row in (r for r in group if r.number("rank") is not None):
            path, label = origins.get(row.text("detector"), (Path(), ""))
            if (path, norm) not in read:
                read[path, norm] = read_scores(path, norm)
            sample = _sample(read[path, norm], row, label, kinds)
            if sample is None:
                reasons[id(row)] = NO_SCORES
            elif not _agrees(sample, row):
                reasons[id(row)] = OTHER_ACCURACY
            else:
                able.append(row)
                samples.append(sample)
        # Rows of other numbers of images cannot be compared image by image: the most common shape is kept.
        shapes = Counter(s.robust.shape for s in samples)
        usual = shapes.most_common(1)[0][0] if shapes else ()
        kept = [(r, s) for r, s in zip(able, samples, strict=True) if s.robust.shape == usual]
        reasons |= {id(r): OTHER_IMAGES for r, s in zip(able, samples, strict=True) if s.robust.shape != usual}
        if kept:
            first = ranks([float(s.robust.mean()) for _, s in kept], [s for _, s in kept], ACCURACY_LEVEL)
            places = price_ranks([int(p) for p in first], _distances(radii, [r.text("detector") for r, _ in kept]))
            found |= {id(r): float(p) for (r, _), p in zip(kept, places, strict=True)}
    return [_ranked(row, found.get(id(row)), reasons.get(id(row), "")) for row in rows]


def _distances(radii: Sequence[Row], detectors: Sequence[str]) -> list[Distances | None]:
    """Return the published distances of each detector, of the same images and seeds in the same order.

    None where a file holds more than a run can have measured.
    """
    own = {label: rows for (label,), rows in grouped(radii, "detector").items()}
    wanted = [r for label in dict.fromkeys(detectors) for r in own.get(label, ()) if r.number("index") is not None]
    images = {image: i for i, image in enumerate(dict.fromkeys(r.number("index") for r in wanted))}
    seeds = {seed: i for i, seed in enumerate(dict.fromkeys(r.text("seed") for r in wanted))}
    if len(detectors) * len(images) * len(seeds) > _MOST_DISTANCES:
        return [None] * len(detectors)
    found: list[Distances | None] = []
    for detector in detectors:
        r0, rd = (np.full((len(images), len(seeds)), np.nan) for _ in range(2))
        for row in own.get(detector, ()):
            if row.number("index") is None:
                continue
            at = images[row.number("index")], seeds[row.text("seed")]
            for values, name in ((r0, "r0"), (rd, "rd")):
                distance = row.number(name)
                values[at] = np.inf if distance is None else distance
        reach = next((value for r in own.get(detector, ()) if (value := r.number("reach")) is not None), None)
        found.append(None if reach is None else Distances(r0, rd, reach))
    return found


def _agrees(sample: RowSample, row: Row) -> bool:
    """Return whether a row's robust accuracy is that of its scores, which the ranks are tested on."""
    stated = row.number("robust_accuracy_at_fpr_5")
    return stated is not None and abs(sample.robust.mean() - stated) * sample.robust.shape[1] < _IMAGES_APART


def _ranked(row: Row, rank: float | None, reason: str) -> Row:
    texts = {**row.texts, "not_ranked_reason": reason} if reason else row.texts
    return Row(texts, {**row.numbers, "rank": rank}, row.tallies)


def _sample(scores: pandas.DataFrame | None, row: Row, label: str, kinds: Mapping[str, str]) -> RowSample | None:
    images, norm = row.number("n_images"), row.text("norm")
    try:
        eps = float(row.text("eps"))
    except ValueError:
        return None
    if scores is None or images is None:
        return None
    images = min(images, len(scores))
    own = scores[(scores["dataset"] == row.text("dataset")) & (scores["model"] == row.text("model"))]
    return sample_of(own, label, kinds, norm, eps, int(images))
