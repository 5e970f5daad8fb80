"""The stratified rejection curve: what is left of robust accuracy where small changes may not be rejected either.

Chen, Raghuram, Choi, Wu, Liang, Jha 2023 (arXiv 2305.01139): a detector that flags everything near the boundary stands
every attack, and rejects images that hardly changed. R(alpha) is the share of images for which there is neither an
undetected success within eps nor a rejection within alpha times eps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..statistics.detection import ALPHAS, threshold, threshold_reason
from ..statistics.intervals import proportion
from .alarms import within_reach
from .consistency import majority_scores
from .rankability import ABLATION
from .results import BoolArray, Cell, DetectorResult, FloatArray, IntArray, SeedResult, ThreatModel
from .seed_scores import SeedScores, ablation

# The shares of the budget within which nothing may be rejected.
SHARES = (0.0, 0.125, 0.25, 0.5, 1.0)


def rejection_rows(result: SeedResult, threat: ThreatModel, images: int) -> list[dict[str, Cell]]:
    """Return the rows of ``rejection_curve.csv`` for one data set, model and seed: every detector and ``none``.

    ``share`` is R(``alpha``) on the first ``images`` evaluate images, with Wilson's interval at the threshold as it is.
    Images that are rejected clean count for no alpha, as in robust accuracy, which R(0) is on these images. A rejection
    is what a search found flagged although the model is right, or what the attacks that count for the row made that is
    flagged although it fools the model, by measured size. A size that was found is an upper bound of the smallest
    there is, so the share is one too.
    """
    if not images:
        return []
    head: dict[str, Cell] = {
        "dataset": result.sources.dataset, "model": result.sources.model, "seed": result.sources.seed,
        "norm": threat.norm, "eps": threat.eps,
    }  # fmt: skip
    rows: list[dict[str, Cell]] = []
    for detector in (*result.detectors, ablation(result)):
        left, reason = _left(result, detector, threat, images)
        for alpha, stands in zip(SHARES, left, strict=True):
            value, low, high = proportion(int(stands.sum()), len(stands)).ends if not reason else (None, None, None)
            rows.append(
                {**head, "detector": detector.label, "alpha": alpha, "share": value, "low": low, "high": high,
                 "n": None if reason else len(stands), "reason": reason}
            )  # fmt: skip
    return rows


def _left(
    result: SeedResult, detector: DetectorResult, threat: ThreatModel, images: int
) -> tuple[Sequence[BoolArray], str]:
    """Return which images are left at each share of the budget, bool (images,) each, or why that is not known."""
    none, nothing = detector.label == ABLATION, [np.zeros(0, np.bool_)] * len(SHARES)
    short = "" if none else threshold_reason(len(detector.calibrate), ALPHAS["5"]) or ""
    reason = detector.failure() or short or detector.alarms.reason
    if reason:
        return nothing, reason
    t = 0.0 if none else threshold(detector.calibrate, ALPHAS["5"])
    scores = SeedScores.of(result.sources, detector, t, result.perturbations, threat, images)
    if not scores.complete:
        return nothing, "scores of an attack that counts are missing"
    robust = (scores.lower <= t) & (t < scores.upper)
    radius = _smallest(scores, threat, images)
    return [robust & ~(within_reach(radius, share * threat.eps) & (share > 0)) for share in SHARES], ""


def _smallest(scores: SeedScores, threat: ThreatModel, images: int) -> FloatArray:
    """Return the size of the smallest change of each image that was found rejected, float (images,)."""
    radius = np.full(len(scores.sources.evaluate_index), np.inf)
    radius[scores.detector.alarms.rows] = scores.detector.alarms.radius
    for index, norms in _flagged(scores, threat):
        radius[index] = np.minimum(radius[index], norms)
    return radius[:images]


def _flagged(scores: SeedScores, threat: ThreatModel) -> Iterator[tuple[IntArray, FloatArray]]:
    """Yield what attacks that count fooled the model with and the detector flags: positions and sizes."""
    for p in scores.perturbations:
        found = None if p.reason or not p.threatens(scores.detector.label) else scores.detector.scores(p)[0]
        if found is not None and threat.norm in p.norms:
            flagged = p.success & (majority_scores(scores.detector, p.label, found) > scores.threshold)
            yield p.index[flagged], np.asarray(p.norms[threat.norm], dtype=np.float64)[flagged]
