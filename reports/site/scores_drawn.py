"""What the scores of one detector look like: ROC curves with the threshold, histograms, and shares by class.

Everything is of one seed, the first: thresholds differ between seeds, and so scores of two seeds do not mix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...harness.core.errors import UsageError
from ...harness.statistics.detection import ALPHAS, threshold, threshold_reason
from ...harness.statistics.intervals import wilson
from ..read.scores import read_all_scores
from .drawing import Chart, Line, percent_ticks, round_ticks
from .leaderboard import Cell, Column, Table, percent

if TYPE_CHECKING:
    import pandas

# Perturbations in one figure: more lines hide each other.
CURVES = 6
# Positives that a curve needs, as everywhere in the protocol.
POSITIVES = 30
# A table of scores of more bytes, packed, is not read for figures.
_LARGEST = 48 * 2**20
_BINS = 36
_STEPS = 100
_CLASSES = 100

CLASSES = (
    Column("label", "Class", "The true class of the image.", kind="text", first="asc"),
    Column("n_clean", "Clean", "Clean evaluate images that the model gets right.", "images"),
    Column("clean_flagged", "Clean", "The share of them that is flagged.", "flagged", first="asc"),
    Column("n_fooling", "Fooling", "Perturbed images that fool the model, of all attacks that do not know a detector.",
           "images"),
    Column("fooling_flagged", "Fooling", "The share of them that is flagged.", "flagged"),
    Column("n_adaptive", "Adaptive", "Images of attacks that know this detector, and that fool the model.", "images"),
    Column("adaptive_flagged", "Adaptive", "The share of them that is flagged.", "flagged"),
)  # fmt: skip


@dataclass(frozen=True)
class Scores:
    """The scores of one detector, model and seed.

    Attributes:
        seed: whose.
        threshold: at FPR 5 %; ``None`` where there are too few calibrate images.
        clean: of clean evaluate images that the model gets right.
        perturbed: by perturbation, of images that fool the model.
        control: by perturbation, of noise of the same norm.
        rows: all rows, for shares by class.
    """

    seed: str
    threshold: float | None
    clean: np.ndarray[Any, Any]
    perturbed: Mapping[str, np.ndarray[Any, Any]]
    control: Mapping[str, np.ndarray[Any, Any]]
    rows: pandas.DataFrame


class ScoreTables:
    """The tables of scores of some runs, each read once."""

    def __init__(self) -> None:
        self._read: dict[Path, Mapping[tuple[str, str, str], pandas.DataFrame]] = {}

    def of(self, run: Path, dataset: str, model: str, detector: str) -> Scores | None:
        """Return a detector's scores; ``None`` where its run publishes none, or more than a site reads."""
        if run not in self._read:
            self._read[run] = _by_detector(run)
        rows = self._read[run].get((dataset, model, detector))
        return None if rows is None or not len(rows) else _scores(rows)


def _by_detector(run: Path) -> Mapping[tuple[str, str, str], pandas.DataFrame]:
    try:
        if (run / "tables" / "scores.csv.gz").stat().st_size > _LARGEST:
            return {}
    except OSError:
        return {}
    try:
        frame = read_all_scores(run)
    except UsageError:
        # Figures are no reason to show nothing of a run: what is ranked is read with the error that it deserves.
        return {}
    if frame is None:
        return {}
    return dict(iter(frame.groupby(["dataset", "model", "detector"], sort=False)))


def _scores(rows: pandas.DataFrame) -> Scores | None:
    seed = rows["seed"].iloc[0]
    own = rows[(rows["seed"] == seed) & np.isfinite(rows["score"])]
    calibrate = own.loc[own["set"] == "calibrate", "score"].to_numpy()
    clean = own[(own["set"] == "clean") & (own["label"] == own["prediction"])]
    level = None if threshold_reason(len(calibrate), ALPHAS["5"]) else float(threshold(calibrate, ALPHAS["5"]))
    fooling = own[(own["set"] == "perturbed") & (own["success"] == 1)]
    control = own[own["set"] == "control"]
    return Scores(
        str(seed), level, clean["score"].to_numpy(),
        {str(p): part["score"].to_numpy() for p, part in fooling.groupby("perturbation", sort=False)},
        {str(p): part["score"].to_numpy() for p, part in control.groupby("perturbation", sort=False)}, own,
    )  # fmt: skip


def chosen(scores: Scores, label: str, order: Sequence[str]) -> list[str]:
    """Return the perturbations that figures show: those that know the detector, then the others, with enough images.

    Args:
        scores: the detector's.
        label: the detector in its run.
        order: perturbations from the one that is noticed least.
    """
    known = [p for p in scores.perturbed if "@" not in p or p.endswith(f"@{label}")]
    enough = [p for p in known if len(scores.perturbed[p]) >= POSITIVES]
    place = {p: i for i, p in enumerate(order)}
    return sorted(enough, key=lambda p: ("@" not in p, place.get(p, len(place))))[:CURVES]


def roc_chart(scores: Scores, shown: Sequence[str], intervals: Mapping[str, str]) -> Chart | None:
    """Return ROC curves; a mark is at the calibrated threshold, with the 95 % interval of its TPR."""
    if not shown or not len(scores.clean):
        return None
    lines = []
    for tone, name in enumerate(shown):
        positive = scores.perturbed[name]
        levels = np.unique(np.concatenate([scores.clean, positive]))
        levels = levels[np.linspace(0, len(levels) - 1, min(_STEPS, len(levels))).astype(int)][::-1]
        points = [(0.0, 0.0), *((_above(scores.clean, t), _above(positive, t)) for t in levels), (1.0, 1.0)]
        marks = []
        if scores.threshold is not None:
            rate = _above(positive, scores.threshold)
            marks = [(_above(scores.clean, scores.threshold), rate, *wilson(rate, len(positive)))]
        note = f"{name}: {intervals[name]}" if name in intervals else name
        lines.append(Line(name, points, tone, "@" in name, marks, note))
    return Chart(
        f"ROC curves, seed {scores.seed}", "clean images flagged", "fooling images flagged", percent_ticks(),
        percent_ticks(), (0.0, 1.0), (0.0, 1.0), lines, diagonal=True,
    )  # fmt: skip


def histogram_charts(scores: Scores, shown: Sequence[str]) -> list[Chart]:
    """Return one histogram for each perturbation: clean images, the control, and images that fool the model."""
    charts = []
    for name in shown:
        sets = [("clean", scores.clean, 0), ("control", scores.control.get(name, scores.clean[:0]), 6),
                ("fooling", scores.perturbed[name], 1)]  # fmt: skip
        known = np.concatenate([values for _, values, _ in sets])
        low, high = (float(v) for v in np.quantile(known, [0.005, 0.995]))
        if scores.threshold is not None:
            low, high = min(low, scores.threshold), max(high, scores.threshold)
        if not high > low:
            continue
        edges = np.linspace(low, high, _BINS + 1)
        lines, most = [], 0.0
        for kind, values, tone in sets:
            if not len(values):
                continue
            counts = np.histogram(np.clip(values, low, high), edges)[0] / len(values)
            most = max(most, float(counts.max()))
            steps = [(float(e), float(c)) for c, ends in zip(counts, pairwise(edges), strict=True) for e in ends]
            lines.append(Line(kind, steps, tone, kind == "control", note=f"{kind}: {len(values)} images", filled=True))
        ticks = [(y, f"{100 * y:.0f}%") for y, _ in round_ticks(0.0, most, 3)]
        guides = [] if scores.threshold is None else [(scores.threshold, f"threshold {scores.threshold:.4g}")]
        charts.append(Chart(
            f"Scores of clean, control and fooling images of {name}, seed {scores.seed}", "score", "share of images",
            round_ticks(low, high, 4), ticks, (low, high), (0.0, most * 1.05), lines, guides, heading=name,
        ))  # fmt: skip
    return charts


def class_table(scores: Scores, label: str, names: Sequence[str]) -> Table | None:
    """Return what is flagged of each true class; ``None`` without a threshold, or where there are too many classes."""
    if scores.threshold is None:
        return None
    rows = scores.rows.assign(flagged=scores.rows["score"] > scores.threshold)
    fooling = rows[(rows["set"] == "perturbed") & (rows["success"] == 1)]
    adaptive = fooling["perturbation"].str.contains("@", regex=False)
    own = fooling["perturbation"].str.endswith(f"@{label}")
    sets = (
        rows[(rows["set"] == "clean") & (rows["label"] == rows["prediction"])],
        fooling[~adaptive],
        fooling[adaptive & own],
    )
    found = [part.groupby("label")["flagged"].agg(["size", "mean"]) for part in sets]
    labels = sorted({int(label) for part in found for label in part.index})
    if not labels or len(labels) > _CLASSES:
        return None
    made = []
    for number in labels:
        name = names[number] if 0 <= number < len(names) else ""
        cells = [Cell(str(number) if not name or name == str(number) else f"{number} {name}", str(number))]
        for part in found:
            size = int(part["size"].get(number, 0))
            share = float(part["mean"].get(number, 0.0))
            cells.append(Cell(str(size), str(size)))
            cells.append(Cell(percent(share), repr(share)) if size else Cell(title="no such image"))
        made.append(("", cells))
    return Table(CLASSES, made)


def _above(values: np.ndarray[Any, Any], level: float) -> float:
    return float((values > level).mean())
