"""The protocol: measured arrays to rows of ``metrics.csv``, ``scores.csv.gz`` and ``perturbations.csv``.

Pure functions on the values of :mod:`.results`; :mod:`.leaderboard` makes the rows of ``leaderboard.csv``. Positives
are perturbed images whose clean image the model got right. AUROC's negatives are clean evaluate images that it gets
right, or the positives' controls of equal norm. Every ``…_at_fpr_…`` figure uses the threshold t of that false positive
rate, calibrated once per detector, model and seed on all calibrate images; flagged means score > t. What cannot be
measured is an empty cell and a reason, never a guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat

import numpy as np

from ...attacks.base.kinds import HOSTILE
from ..statistics.detection import (
    ALPHAS,
    MIN_IMAGES,
    auroc,
    auroc_interval,
    average_precision,
    threshold,
    threshold_reason,
)
from .consistency import majority_scores
from .leaderboard import leaderboard_rows
from .results import (
    Cell,
    DetectorResult,
    FloatArray,
    IntArray,
    PerturbationResult,
    RoundedResult,
    SeedResult,
    Sources,
    Threat,
    ThreatModel,
    check,
    shortage,
)

__all__ = [
    "ALPHAS",
    "MIN_IMAGES",
    "Cell",
    "DetectorResult",
    "PerturbationResult",
    "SeedResult",
    "Sources",
    "Threat",
    "leaderboard_rows",
    "metrics_rows",
    "perturbation_rows",
    "score_rows",
]


def metrics_rows(
    sources: Sources,
    perturbations: Sequence[PerturbationResult],
    detectors: Sequence[DetectorResult],
    threat: ThreatModel | None = None,
) -> list[dict[str, Cell]]:
    """Return the rows of ``metrics.csv`` for one data set, model and seed.

    Per detector and perturbation one row for each outcome (``success``, ``failed``, ``all``) against clean negatives,
    and for attacks one more for ``success`` against the control. Noise and corruptions have no control.

    - ``auroc``, its interval and ``average_precision``: positives of that outcome against those negatives; both sets
      need :data:`MIN_IMAGES` images.
    - ``tpr_at_fpr_1``, ``_5``, ``_10``: the share of the positives with score > t; the negatives are not used. Needs
      :data:`MIN_IMAGES` positives and 10 / alpha calibrate images.
    - ``undetected_success_at_fpr_5`` (``success`` and ``all``): the share of *all attacked* images that are
      misclassified and whose score is at most t. The row of ``all`` has it also where there are too few successes.
    - ``control_flagged_at_fpr_5`` (``success``): the share of the kept controls with score > t.

    Args:
        sources: the source images.
        perturbations: all that were applied, those against other detectors too.
        detectors: all that scored them; no row depends on another detector.
        threat: unused: these figures show perturbations whole, within the threat or not.

    Raises:
        ValueError: if the arrays do not fit each other.
    """
    check(sources, perturbations, detectors)
    rows = []
    for d in detectors:
        failure = d.failure()
        measured = None if failure else _Measured(sources, d)
        for p in perturbations:
            outcomes = [("success", "clean"), ("failed", "clean"), ("all", "clean")]
            if p.kind in HOSTILE:
                outcomes.insert(1, ("success", "control"))
            for outcome, negatives in outcomes:
                row: dict[str, Cell] = {
                    "dataset": sources.dataset,
                    "model": sources.model,
                    "seed": sources.seed,
                    "perturbation": p.label,
                    "kind": p.kind,
                    "family": p.family,
                    "norm": p.norm,
                    "eps": p.eps,
                    "outcome": outcome,
                    "detector": d.label,
                    "fit_on": " ".join(d.fit_on),
                    "seen": d.seen(p),
                    "negatives": negatives,
                    **dict.fromkeys(_FIGURES),
                    "reason": failure or p.reason,
                }
                if measured is not None and not p.reason:
                    row |= measured.figures(p, outcome, negatives)
                rows.append(row)
    return rows


_FIGURES = (
    "n_positive",
    "n_negative",
    "auroc",
    "auroc_low",
    "auroc_high",
    "average_precision",
    *(f"tpr_at_fpr_{name}" for name in ALPHAS),
    "undetected_success_at_fpr_5",
    "control_flagged_at_fpr_5",
)


class _Measured:
    """A detector whose clean scores can be used, with its thresholds."""

    def __init__(self, sources: Sources, detector: DetectorResult) -> None:
        self.detector = detector
        count = len(detector.calibrate)
        self.shortages = {name: threshold_reason(count, alpha) for name, alpha in ALPHAS.items()}
        self.thresholds = {
            name: threshold(detector.calibrate, alpha) for name, alpha in ALPHAS.items() if not self.shortages[name]
        }
        self.right = np.flatnonzero(sources.evaluate_correct)

    def figures(self, p: PerturbationResult, outcome: str, negatives: str) -> dict[str, Cell]:
        scores, reason = self.detector.scores(p)
        if scores is None:
            return {"reason": reason}
        chosen = {"success": p.success, "failed": ~p.success, "all": np.ones_like(p.success)}[outcome]
        positive, source = scores[chosen], p.index[chosen]
        control, control_reason = self.detector.control_scores(p)
        figures: dict[str, Cell] = {"n_positive": len(positive)}
        reasons = [shortage(len(positive), "positives")]
        if negatives == "clean":
            reasons += self._ranks(figures, positive, source, self.detector.clean[self.right], self.right, "negatives")
        elif control is None:
            reasons.append(control_reason)
        else:
            reasons += self._ranks(figures, positive, source, control, p.control_index, "kept controls")
        if not shortage(len(positive), "positives"):
            for name, t in self.thresholds.items():
                figures[f"tpr_at_fpr_{name}"] = float((positive > t).mean())
            reasons += [reason for reason in self.shortages.values() if reason]
            t5 = self.thresholds.get("5")
            if t5 is not None and outcome != "failed":
                figures["undetected_success_at_fpr_5"] = float((p.success & (scores <= t5)).mean())
            if t5 is not None and outcome == "success" and control is not None and len(control) >= MIN_IMAGES:
                figures["control_flagged_at_fpr_5"] = float((control > t5).mean())
        return {**figures, "reason": "; ".join(reason for reason in reasons if reason)}

    def _ranks(
        self,
        figures: dict[str, Cell],
        positive: FloatArray,
        positive_source: IntArray,
        negative: FloatArray,
        negative_source: IntArray,
        what: str,
    ) -> list[str]:
        """Add the figures that need no threshold; returns why there are none."""
        figures["n_negative"] = len(negative)
        reason = shortage(len(negative), what)
        if reason or shortage(len(positive), "positives"):
            return [reason]
        figures["auroc"] = auroc(positive, negative)
        figures["auroc_low"], figures["auroc_high"] = auroc_interval(
            positive, negative, positive_source=positive_source, negative_source=negative_source
        )
        figures["average_precision"] = average_precision(positive, negative)
        return []


NORMS = ("l0", "l1", "l2", "linf")


def score_rows(
    sources: Sources, perturbations: Sequence[PerturbationResult], detector: DetectorResult
) -> Iterator[tuple[Cell, ...]]:
    """Yield the rows of ``scores.csv.gz`` for one detector, in the order of its columns; none where the fit failed.

    First the calibrate and the clean evaluate images (perturbation ``none``), then for each perturbation the perturbed
    images, these rounded to the levels of image files (sets ``rounded-8-bit`` and ``rounded-levels``), and the kept
    controls. ``index`` is the image's position in its split (``calibrate_index``, ``evaluate_index``); a control's
    prediction is the clean one, which it was kept for. ``flagged_at_fpr_5`` is 1 or 0, and empty without a threshold or
    a finite score. ``success`` and the measured norms are those of the perturbed and rounded images. Of a detector that
    declares itself randomised, the scores of attacked images are those that decide
    (:func:`~.consistency.majority_scores`).
    """
    if detector.reason:
        return
    usable = not detector.failure() and not threshold_reason(len(detector.calibrate), ALPHAS["5"])
    t = threshold(detector.calibrate, ALPHAS["5"]) if usable else None

    def rows(
        perturbation: str,
        name: str,
        scores: FloatArray,
        columns: tuple[IntArray, IntArray, IntArray],
        prediction: IntArray,
        measured: PerturbationResult | RoundedResult | None = None,
    ) -> Iterator[tuple[Cell, ...]]:
        head = (sources.dataset, sources.model, sources.seed, perturbation, detector.label)
        facts: Iterator[tuple[Cell, ...]] = repeat((None,) * (1 + len(NORMS)), len(scores))
        if measured is not None:
            norms = [np.asarray(measured.norms[n], np.float64).tolist() if n in measured.norms else None for n in NORMS]
            empty = [None] * len(scores)
            facts = zip(measured.success.astype(int).tolist(), *(n or empty for n in norms), strict=True)
        columns_of = (c.tolist() for c in columns)
        for score, predicted, fact, *rest in zip(scores.tolist(), prediction.tolist(), facts, *columns_of, strict=True):
            known = np.isfinite(score)
            flagged = None if t is None or not known else int(score > t)
            yield (*head, *rest, predicted, name, score if known else None, flagged, *fact)

    calibrate = (sources.calibrate_index, sources.calibrate_label, sources.calibrate_prediction)
    yield from rows("none", "calibrate", detector.calibrate, calibrate, sources.calibrate_prediction)
    evaluate = (sources.evaluate_index, sources.evaluate_label, sources.evaluate_prediction)
    yield from rows("none", "clean", detector.clean, evaluate, sources.evaluate_prediction)
    for p in perturbations:
        at = (evaluate[0][p.index], evaluate[1][p.index], evaluate[2][p.index])
        if p.label in detector.perturbed:
            scores = majority_scores(detector, p.label, np.asarray(detector.perturbed[p.label], np.float64))
            yield from rows(p.label, "perturbed", scores, at, p.prediction, p)
        for r in p.rounded:
            if (p.label, r.how) in detector.rounded and not r.reason:
                found = np.asarray(detector.rounded[p.label, r.how], np.float64)
                scores = majority_scores(detector, f"{r.how}:{p.label}", found)
                yield from rows(p.label, f"rounded-{r.how}", scores, at, r.prediction, r)
        if p.label in detector.control:
            index, label, clean = (column[p.control_index] for column in evaluate)
            yield from rows(p.label, "control", detector.control[p.label], (index, label, clean), clean)


def perturbation_rows(sources: Sources, perturbations: Sequence[PerturbationResult]) -> list[dict[str, Cell]]:
    """Return the rows of ``perturbations.csv`` for one data set, model and seed.

    ``n`` counts the attacked images, ``success_rate`` is the share of them that are misclassified, and the norms are
    measured over all of them, also those that the attack gave back as they were.
    """
    rows = []
    for p in perturbations:
        attacked = len(p.index)

        def norm(name: str, of: str, p: PerturbationResult = p) -> float | None:
            values = np.asarray(p.norms.get(name, ()), dtype=np.float64)
            if not len(values):
                return None
            return float(values.max() if of == "max" else values.mean())

        row: dict[str, Cell] = {
            "dataset": sources.dataset,
            "model": sources.model,
            "seed": sources.seed,
            "perturbation": p.label,
            "kind": p.kind,
            "family": p.family,
            "library": p.library,
            "norm": p.norm,
            "eps": p.eps,
            "n": attacked,
            "success_rate": float(p.success.mean()) if attacked else None,
            "mean_l0": norm("l0", "mean"),
            "mean_l2": norm("l2", "mean"),
            "mean_linf": norm("linf", "mean"),
            "max_linf": norm("linf", "max"),
            "forwards_per_image": p.forwards,
            "backwards_per_image": p.backwards,
            "flags": "; ".join(p.flags),
            "reason": p.reason or ("" if attacked else "no image to attack: the model gets none right"),
        }
        rows.append(row)
    return rows
