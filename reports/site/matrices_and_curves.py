"""The figures of the site: the detector by perturbation matrices and the curves through the layers.

Both are plain data: matrices become HTML tables (colour is a number between 0 and 1, the style sheet maps it to a
colour of the reader's theme), curves become a JSON block that the page's script hands to plotly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...harness.statistics.detection import MIN_IMAGES
from ..read.run_directory import Row

DASH = "–"
NOTHING_SEEN = {"exact": "seen", "family": "family seen"}


@dataclass(frozen=True)
class Measure:
    """One face of the matrix.

    Attributes:
        key: its name in the page's address and switch.
        title: the switch's words.
        help: what it says, in one sentence.
        column: the column of ``metrics.csv``.
        negatives: which rows of ``metrics.csv`` it reads.
        scale: ``diverging`` (centre 0.5), ``good`` or ``bad`` (0 to 1).
    """

    key: str
    title: str
    help: str
    column: str
    negatives: str
    scale: str


MEASURES = (
    Measure(
        "auroc", "AUROC against clean",
        "How well the score separates perturbed images that fool the model from clean images that it gets right: "
        "1 is perfect, 0.5 is chance, below 0.5 the detector finds clean images more suspicious.",
        "auroc", "clean", "diverging",
    ),
    Measure(
        "control", "AUROC against control",
        "The same positives against random noise of the same norm that changes no prediction: a detector that only "
        "notices noise stays at 0.5 here.",
        "auroc", "control", "diverging",
    ),
    Measure(
        "tpr", "TPR at FPR 5 %",
        "The share of fooling images that are flagged at the threshold at which 5 % of clean images are flagged.",
        "tpr_at_fpr_5", "clean", "good",
    ),
    Measure(
        "undetected", "Undetected success",
        "The share of attacked images that both fool the model and evade the detector at FPR 5 %: less is better.",
        "undetected_success_at_fpr_5", "clean", "bad",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class MatrixCell:
    """One cell: its text, or a dash and the reason; ``tone`` and ``strength`` (0 to 1) give its colour."""

    text: str
    interval: str = ""
    reason: str = ""
    title: str = ""
    seen: str = "no"
    tone: str = ""
    strength: float = 0.0


@dataclass(frozen=True)
class Matrix:
    """One measure for every detector (rows) and perturbation (columns: label, kind)."""

    measure: Measure
    columns: Sequence[tuple[str, str]]
    rows: Sequence[tuple[str, Sequence[MatrixCell]]]

    @property
    def empty(self) -> bool:
        """Whether no cell holds a number."""
        return all(cell.text == DASH for _, cells in self.rows for cell in cells)


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the numbers that are there, ``None`` if there are none."""
    present = [v for v in values if v is not None]
    return sum(present) / len(present) if present else None


def grouped(rows: Iterable[Row], *columns: str) -> dict[tuple[str, ...], list[Row]]:
    """Return rows by their texts in some columns, in order of first appearance."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        texts = row.texts
        key = (texts[columns[0]],) if len(columns) == 1 else tuple([texts[c] for c in columns])
        if key in groups:
            groups[key].append(row)
        else:
            groups[key] = [row]
    return groups


def matrices(
    metrics: Sequence[Row], detectors: Sequence[str], wanted: Callable[[str], bool], against: Sequence[str] = ()
) -> list[Matrix]:
    """Return the matrices of all measures over the perturbations whose kind is ``wanted``; none without such a row.

    Args:
        metrics: rows of ``metrics.csv``.
        detectors: their order.
        wanted: whether a kind of perturbation is a column.
        against: detectors; an attack that knows another one is no column. Empty: all are.
    """
    columns = list(dict.fromkeys((r.text("perturbation"), r.text("kind")) for r in metrics if wanted(r.text("kind"))))
    known_to = set(against)
    columns = [c for c in columns if c[0] and (not known_to or c[0].partition("@")[2] in known_to)]
    cells = grouped(metrics, "detector", "perturbation", "negatives", "outcome")
    known = {r.text("detector") for r in metrics}
    names = [d for d in detectors if d in known] + sorted(known - set(detectors) - {""})
    if not columns or not names:
        return []
    return [Matrix(m, columns, [(d, [_cell(m, cells, d, p) for p, _ in columns]) for d in names]) for m in MEASURES]


def _cell(
    measure: Measure, cells: Mapping[tuple[str, ...], Sequence[Row]], detector: str, perturbation: str
) -> MatrixCell:
    outcomes = ("success", "all") if measure.key == "undetected" else ("success",)
    found: Sequence[Row] = ()
    for outcome in outcomes:
        found = cells.get((detector, perturbation, measure.negatives, outcome), ())
        if any(r.number(measure.column) is not None for r in found):
            break
    value = mean(r.number(measure.column) for r in found)
    seen = next((r.text("seen") for r in found), "no")
    if value is None:
        reason = next((r.text("reason") for r in found if r.text("reason")), "")
        return MatrixCell(DASH, reason=reason or ("not computed" if found else "no such row in metrics.csv"), seen=seen)
    interval = ""
    if measure.column == "auroc":
        low, high = mean(r.number("auroc_low") for r in found), mean(r.number("auroc_high") for r in found)
        interval = f"{low:.2f}–{high:.2f}" if low is not None and high is not None else ""
    seeds = [r for r in found if r.number(measure.column) is not None]
    positives = mean(r.number("n_positive") for r in seeds)
    title = f"{detector} on {perturbation}: {value:.4f}"
    title += f", 95 % interval {interval}" if interval else ""
    title += f", {positives:.0f} positives" if positives is not None else ""
    title += f" (mean of {len(seeds)} seeds)" if len(seeds) > 1 else ""
    title += f"; {NOTHING_SEEN[seen]} in fitting" if seen in NOTHING_SEEN else ""
    if measure.scale == "diverging":
        tone, strength = ("good" if value >= 0.5 else "bad"), abs(value - 0.5) * 2
    else:
        tone, strength = measure.scale, value
    return MatrixCell(f"{value:.2f}", interval, "", title, seen, tone, round(min(max(strength, 0.0), 1.0), 3))


METRICS: Mapping[str, tuple[str, str]] = {
    "relative_l2": ("Relative L2 shift", "How far the activation moved, relative to its own length."),
    "cosine_distance": ("Cosine distance", "How far the activation's direction changed: 0 is the same direction."),
    "bit_flip_rate": ("ReLU bits flipped", "The share of units that switched on or off."),
    "som_unit_change": ("SOM unit changed", "The share of images whose unit on the layer's map is another one."),
    "som_map_distance": ("SOM map distance", "How far the image moved on the layer's self-organising map."),
    "latent_distance": ("Latent distance", "How far the activation moved in the layer's principal components."),
    "centroid_change": ("Nearest class changed", "The share of images whose nearest class centroid is another one."),
    "cka": ("CKA with clean", "Similarity of the whole set's geometry to the clean one: 1 is the same."),
}
POPULATIONS: Mapping[str, str] = {
    "success": "images that fool the model",
    "failed": "images that do not fool the model",
    "target-class": "clean images of the class that was reached",
    "control": "random noise of the same norm",
}


def propagation(title: str, rows: Sequence[Row]) -> dict[str, object]:
    """Return the curves of the rows of ``propagation.csv`` of a model, as plain JSON data, the mean over seeds.

    Series are lists ``[metric, population, perturbation, mean, q05, q95]``: three indices and three lists with one
    number (or ``None``) per tap. Names stay as they are; they are escaped when drawn. A series of fewer than 30 images
    is left out, and listed in ``few``.
    """
    depths: dict[str, float] = {}
    for row in rows:
        depths.setdefault(row.text("tap"), row.number("depth") or 0.0)
    taps = sorted(depths, key=lambda tap: depths[tap])
    position = {tap: i for i, tap in enumerate(taps)}
    known = list(METRICS)
    metrics = sorted({r.text("metric") for r in rows}, key=lambda m: (known.index(m) if m in known else 99, m))
    order = list(POPULATIONS)
    populations = sorted({r.text("population") for r in rows}, key=lambda p: (order.index(p) if p in order else 99, p))
    perturbations: list[str] = []
    series: list[list[object]] = []
    few: dict[str, None] = {}
    for (metric, population, perturbation), own in grouped(rows, "metric", "population", "perturbation").items():
        images = max((r.number("n") or 0 for r in own), default=0)
        if images < MIN_IMAGES:
            count = f"{images:.0f} image{'' if images == 1 else 's'}"
            few[f"{perturbation}, {POPULATIONS.get(population, population)}: {count}"] = None
            continue
        if perturbation not in perturbations:
            perturbations.append(perturbation)
        by_tap = grouped(own, "tap")
        curve: list[list[float | None]] = [[None] * len(taps) for _ in range(3)]
        for (tap,), cell in by_tap.items():
            for line, column in zip(curve, ("mean", "q05", "q95"), strict=True):
                value = mean(r.number(column) for r in cell)
                line[position[tap]] = None if value is None else float(f"{value:.5g}")
        where = (metrics.index(metric), populations.index(population), perturbations.index(perturbation))
        series.append([*where, *curve])
    return {
        "title": title,
        "taps": taps,
        "metrics": [[m, *METRICS.get(m, (m.replace("_", " "), ""))] for m in metrics],
        "populations": [[p, POPULATIONS.get(p, p)] for p in populations],
        "perturbations": perturbations,
        "seeds": len({r.text("seed") for r in rows}),
        "series": series,
        "few": list(few),
    }
