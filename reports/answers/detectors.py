"""Two detectors of one run, compared image by image."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...harness.core.errors import UsageError
from ...harness.evaluation.radii import dearer
from ...harness.evaluation.rankability import ABLATION
from ...harness.statistics.detection import auroc
from ...harness.statistics.paired import Difference, delong
from ...harness.statistics.ranks import RowSample, pair_p
from ..read.frames import RunTables, only
from .comparison import DELONG, MCNEMAR, Comparison, Figure, paired_share
from .measured import ATTACKS, Side, distances
from .names import detector_of, model_of

_NAN = float("nan")
ROBUST_TEST = "board's paired test"


def compare_detectors(tables: RunTables, first: str, second: str, model: str | None = None) -> Comparison:
    """Compare two detectors of a run on the same images.

    Robust accuracy by the test that orders the board, the price by its sign test, AUROC by DeLong's test, and what is
    flagged of the images that an attack fools the model with by McNemar's exact test. Of the attacks that know a
    detector, each is held against its own, paired by the image that the perturbed ones are made from.

    Args:
        tables: of the run.
        first: a detector's label, or ``none``.
        second: another one's.
        model: a model's label; by default all models.

    Raises:
        UsageError: if the run has no such detector or model, or both are one.
    """
    names = [d if d == ABLATION else detector_of(tables, d) for d in (first, second)]
    if names[0] == names[1]:
        raise UsageError(f"{names[0]} was given twice: name two detectors.")
    models = list(dict.fromkeys(tables.leaderboard["model"])) if model is None else [model_of(tables, model)]
    figures: list[Figure] = []
    notes: list[str] = []
    for label in models:
        a, b = (Side(tables, label, d) for d in names)
        price, dearer_one = _price(a, b)
        figures += [f for f in (_robust(a, b), price) if f is not None]
        notes += [dearer_one] if dearer_one else []
        if ABLATION not in names:
            figures += [*_aurocs(a, b), *_flagged(a, b)]
        notes += [
            f"{side.detector} has no robust accuracy on {label}: {_why(side)}."
            for side in (a, b)
            if not np.isfinite(side.number("robust_accuracy_at_fpr_5"))
        ]
    return Comparison(names[0], names[1], tuple(figures), notes=tuple(notes))


def robust_difference(a: RowSample, b: RowSample) -> Difference:
    """Return the difference of two rows' robust accuracy; the board's test has a p-value, and no interval."""
    return Difference(float(a.robust.mean() - b.robust.mean()), _NAN, _NAN, pair_p(a, b))


def _why(side: Side) -> str:
    reason = side.row.get("not_ranked_reason") or side.row.get("flags")
    return str(reason) if isinstance(reason, str) else "it has no row" if not side.row else "it was not measured"


def _robust(a: Side, b: Side) -> Figure | None:
    if a.sample is None or b.sample is None or a.sample.robust.shape != b.sample.robust.shape:
        return None
    found = robust_difference(a.sample, b.sample)
    first, second = float(a.sample.robust.mean()), float(b.sample.robust.mean())
    images = a.sample.robust.shape[1]
    return Figure(a.model, "robust_accuracy_at_fpr_5", "", first, second, found, ROBUST_TEST, images)


def _price(a: Side, b: Side) -> tuple[Figure | None, str]:
    """Return the prices and their test, and which detector the test says is the dearer one."""
    own = distances(a.tables, a.model, [a.detector, b.detector])
    prices = a.number("price"), b.number("price")
    if own[0] is None or own[1] is None or not np.isfinite(prices).all():
        return None, ""
    p, more = dearer(own[0], own[1])
    images = len(own[0].rd)
    # The test is about the distances themselves: medians of ratios may be equal and the test significant.
    figure = Figure(a.model, "price", "", *prices, Difference(_NAN, _NAN, _NAN, p), "sign test", images)
    first, second = (a.detector, b.detector) if more > 0 else (b.detector, a.detector)
    pairs = f"for {abs(more)} pairs of image and seed more than the reverse, of {own[0].rd.size}"
    return figure, f"Price on {a.model}: {first} is passed at a larger distance than {second} {pairs}." if more else ""


def _aurocs(a: Side, b: Side) -> Iterator[Figure]:
    for about, of_a, of_b in _pairs(a, b):
        first, second = a.scored(of_a), b.scored(of_b)
        if first is None or second is None:
            continue
        found = delong(first, second)
        mean_a, mean_b = (_mean_auroc(side, label) for side, label in ((a, of_a), (b, of_b)))
        n = sum(len(s.positive) for s in first) // len(first)
        yield Figure(a.model, "auroc", about, mean_a, mean_b, found, DELONG, n)


def _mean_auroc(side: Side, perturbation: str) -> float:
    return float(np.mean([auroc(s.positive, s.negative) for s in side.scored(perturbation) or ()]))


def _flagged(a: Side, b: Side) -> Iterator[Figure]:
    for about, of_a, of_b in _pairs(a, b):
        # Attacks that know a detector fool the model with other images: what counts is what they get past it.
        what = "flagged" if of_a == of_b else "undetected"
        share_a, share_b, found, n = paired_share(a.per_image(of_a, what), b.per_image(of_b, what))
        if n:
            column = "flagged_at_fpr_5" if what == "flagged" else "undetected_success_at_fpr_5"
            yield Figure(a.model, column, about, share_a, share_b, found, MCNEMAR, n)


def _pairs(a: Side, b: Side) -> Iterator[tuple[str, str, str]]:
    """Yield what to compare: its name, and the perturbation of either side."""
    for label, kind in a.kinds.items():
        if kind not in ATTACKS:
            continue
        group, at, against = label.rpartition("@")
        if not at:
            yield label, label, label
        elif against == a.detector and f"{group}@{b.detector}" in b.kinds:
            yield f"{group}@own", label, f"{group}@{b.detector}"


def compared_rows(tables: RunTables) -> list[tuple[str, str]]:
    """Return the models and detectors of a run's leaderboard, in its order."""
    rows = only(tables.leaderboard)
    return list(dict.fromkeys(zip(rows["model"], rows["detector"], strict=True)))
