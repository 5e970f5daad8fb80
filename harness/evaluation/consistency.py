"""Whether a detector's score is a function of the image: scores asked for again are compared with the stored ones.

A detector that gives an attack other scores than the harness, or that looks at the order, the batch or the process in
which it is asked, gets a robust accuracy that means nothing. Each difference is a flag, and such a row is not ranked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..statistics.detection import ALPHAS, MIN_IMAGES, threshold, threshold_reason
from ..statistics.multiple_testing import holm
from ..statistics.pass_rates import squares_p, sum_p
from .results import DetectorResult, FloatArray, PerturbationResult

# Rows of a set that are scored again; sets of an adaptive attack are scored again whole.
SAMPLE = 64
# Evaluations of a detector that declares itself randomised.
EVALUATIONS = 20

RANDOMISED = "randomised"
DEPENDS = "score-depends-on-"
UNCHECKED_PROCESS = "unchecked-in-another-process"
# By context of an evaluation: what the score then depends on.
_ABOUT = {
    "order": "order",
    "batch": "batch",
    "process": "process",
    "gradients": "caller",
    "attack": "caller",
    "told": "caller",
}
# Scores that lie this far apart among the calibrate scores, as a share of these, differ.
_PLACES = 0.02
# Fewest evaluations with which the pass rate of one image is tested.
_FEWEST = 5
# Rows of a set that may differ: a bit or a unit may change where an activation lies on its boundary.
_SHARE, _ROWS = 0.02, 2
# An honest detector that declares drawn scores is flagged in at most one of a thousand suites.
_LEVEL = 0.001


@dataclass
class _Evidence:
    """Rows of one context that were compared, and what differed beyond the excuses."""

    rows: int = 0
    differs: bool = False
    p_values: list[float] = field(default_factory=list)


def consistency_flags(detector: DetectorResult, perturbations: Sequence[PerturbationResult]) -> tuple[str, ...]:
    """Return the flags of a detector whose scores do not agree with themselves.

    - ``randomised``: the same question twice gives two answers, and the detector does not declare it.
    - ``score-depends-on-caller``: an attack received other scores than those that count, or gradient mode matters.
    - ``score-depends-on-order``, ``-on-batch``, ``-on-process``: the same images in another order, in other batches, in
      a process that has done nothing else.
    - ``unchecked-in-another-process``: the detector was registered in a session, so no other process has it.

    Scores that are not declared as randomised must agree image by image. Of a detector that declares it, the pass rates
    over :data:`EVALUATIONS` evaluations must agree: exact two-sample tests for each set and context, Holm's correction
    over them, at .001. Nothing is flagged from fewer than 30 images.
    """
    if detector.failure() or threshold_reason(len(detector.calibrate), ALPHAS["5"]):
        return ()
    t = threshold(detector.calibrate, ALPHAS["5"])
    found: dict[str, _Evidence] = {}
    compare = _rates if detector.randomised else _values
    for context, first, second in _comparisons(detector, perturbations):
        evidence = found.setdefault(context, _Evidence())
        evidence.rows += second.shape[1]
        compare(evidence, detector, t, first, second)
    if detector.randomised:
        contexts = [(context, p) for context, e in found.items() for p in e.p_values]
        for (context, _), p in zip(contexts, holm([p for _, p in contexts]), strict=True):
            found[context].differs |= p is not None and p < _LEVEL
    differing = {context for context, e in found.items() if e.differs and e.rows >= MIN_IMAGES}
    if "same" in differing and not detector.randomised:
        # Nothing else can be told of scores that differ anyway.
        return (RANDOMISED,)
    flags = [DEPENDS + _ABOUT[context] for context in _ABOUT if context in differing]
    for rescored in detector.rescored.values():
        for context, reason in rescored.reasons.items():
            flags.append(f"{DEPENDS}{_ABOUT.get(context, context)}: {reason}" if reason else UNCHECKED_PROCESS)
    unasked = (p.questions_reason for p in perturbations if p.against == detector.label and p.questions_reason)
    flags += [f"{DEPENDS}process: {reason}" for reason in unasked]
    return tuple(dict.fromkeys(flags))


def majority_scores(detector: DetectorResult, source: str, scores: FloatArray) -> FloatArray:
    """Return the scores that decide whether images of an attack pass.

    Of a detector that declares itself randomised an image passes if it does in a majority of :data:`EVALUATIONS`: its
    score is then the smallest that a majority of its evaluations does not exceed. Others keep their scores.
    """
    again = detector.rescored.get(source)
    if not detector.randomised or again is None or "same" not in again.scores:
        return scores
    evaluations = np.sort(again.scores["same"], axis=0)
    decided = scores.copy()
    decided[again.rows] = evaluations[len(evaluations) // 2]
    return decided


def luckiest_scores(detector: DetectorResult, source: str, scores: FloatArray) -> FloatArray:
    """Return the smallest score of each image in any evaluation: what an attacker has who may ask again."""
    again = detector.rescored.get(source)
    if not detector.randomised or again is None or "same" not in again.scores:
        return scores
    lowest = scores.copy()
    lowest[again.rows] = np.minimum(lowest[again.rows], again.scores["same"].min(0))
    return lowest


def _comparisons(
    detector: DetectorResult, perturbations: Sequence[PerturbationResult]
) -> Iterator[tuple[str, FloatArray, FloatArray]]:
    """Yield context, and two arrays of evaluations (k, n) and (l, n) of the same images that have to agree."""
    for source, again in detector.rescored.items():
        all_of = detector.of(source)
        if all_of is None:
            continue
        stored = all_of[again.rows][None]
        same = again.scores.get("same", stored)
        if "same" in again.scores:
            yield "same", same[:1], same[1:]
            yield "batch", stored, same
        for context in sorted(again.scores.keys() - {"same"}):
            yield context, same, again.scores[context]
    for p in perturbations:
        if p.against == detector.label and p.questions.size:
            yield "told", p.questions[1:], p.questions[:1]
        if p.against == detector.label and len(p.told) and p.label in detector.perturbed:
            known = p.success & ~np.isnan(p.told).any(0)
            again_of = detector.rescored.get(p.label)
            evaluations = detector.perturbed[p.label][None]
            if detector.randomised and again_of is not None and "same" in again_of.scores:
                evaluations = again_of.scores["same"]
            if known.any():
                yield "told", np.asarray(evaluations)[:, known], p.told[:, known]


def moved(reference: FloatArray, first: FloatArray, second: FloatArray) -> FloatArray:
    """Return how far scores moved among reference scores, as a share of these, float (n,).

    A score's place is from the share of the reference that is larger to the share that is not smaller; two scores are
    as far apart as their places, so a change within a tie, or by less than one reference score, is none. An increasing
    transform of all scores changes nothing, so no offset or stretch of a score can hide a difference. A score that is
    not finite lies apart from every other.

    Args:
        reference: finite scores (m,).
        first: scores (n,).
        second: of the same images.
    """
    ordered = np.sort(reference)
    low, high = (
        [1 - np.searchsorted(ordered, scores, side) / len(ordered) for scores in (first, second)]
        for side in ("right", "left")
    )
    apart = np.maximum(np.maximum(low[0] - high[1], low[1] - high[0]), 0.0)
    return np.where(np.isfinite(first) & np.isfinite(second), apart, 1.0)


def _values(e: _Evidence, detector: DetectorResult, t: float, first: FloatArray, second: FloatArray) -> None:
    """Note whether scores differ image by image: in whether the image passes, or in their place among clean scores."""
    for other in second:
        apart = moved(detector.calibrate, first[0], other) > _PLACES
        differs = apart | ((first[0] <= t) != (other <= t))
        e.differs |= int(differs.sum()) > max(_ROWS, _SHARE * len(differs))


def _rates(e: _Evidence, detector: DetectorResult, t: float, first: FloatArray, second: FloatArray) -> None:
    """Note the p-values of exact two-sample tests of the pass rates, images as strata.

    One of the total over images and, where there are enough evaluations of each, one of the sum of squares, which
    differences of either sign add to.
    """
    evaluations = len(first), len(second)
    if not all(evaluations):
        return
    passes = (first <= t).sum(0), (second <= t).sum(0)
    e.p_values.append(sum_p(*passes, evaluations))
    if min(evaluations) >= _FEWEST:
        e.p_values.append(squares_p(*passes, evaluations))
