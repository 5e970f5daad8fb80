"""Sanity flags across perturbations: what a sound evaluation cannot show, in the manner of Carlini et al. (2019).

Two attacks are compared on the images that both attacked, image by image: the weaker one must not fool the model on
more images that the stronger one left than the other way round, beyond chance (one-sided sign test at 5 %). Flags
stand with the attack that should have been stronger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...attacks.base.kinds import HOSTILE
from ..statistics.detection import ALPHAS, MIN_IMAGES, threshold, threshold_reason
from .results import BoolArray, DetectorResult, IntArray, PerturbationResult, ThreatModel, within

_LEVEL = 0.05
# Successes found only in the last quarter of an attack's passes: more than this share and number of the
# attacked ones, and more steps would have found more.
_LATE_SHARE, _LATE_LEAST = 0.02, 5


def perturbation_flags(perturbations: Sequence[PerturbationResult]) -> dict[str, tuple[str, ...]]:
    """Return flags by label, for the attacks of one model and seed; none from fewer than 30 images.

    - ``unconverged``: it still found successes, or brought images past the detector, in its last quarter.
    - ``weaker-than-smaller-budget:LABEL``: the same attack with a smaller budget beats it.
    - ``weaker-than-one-step:LABEL``: a one-step attack with the same norm and no larger budget beats it.
    - ``weaker-than-black-box:LABEL``: an attack without gradients, counted within the same budget by measured norm,
      beats this one with gradients (a sign of masked gradients).
    - ``below-100-at-largest-budget``: the last point of a budget curve does not succeed on every image.
    """
    found: dict[str, list[str]] = {}
    attacks = [p for p in perturbations if p.kind in HOSTILE and len(p.index) >= MIN_IMAGES]
    for p in attacks:
        flags = found.setdefault(p.label, [])
        if p.late >= max(_LATE_LEAST, _LATE_SHARE * len(p.index)):
            flags.append("unconverged")
        for name, weaker in _weaker(p, attacks):
            if beats(Got(weaker.index, weaker.success & _within(weaker, p)), Got(p.index, p.success)):
                flags.append(f"{name}:{weaker.label}")
        curve = [q for q in attacks if _same_curve(p, q)]
        if len(curve) > 1 and p.eps == max(q.eps or 0.0 for q in curve) and not p.success.all():
            flags.append("below-100-at-largest-budget")
    return {label: tuple(flags) for label, flags in found.items()}


def adaptive_flags(detector: DetectorResult, perturbations: Sequence[PerturbationResult]) -> tuple[str, ...]:
    """``adaptive-weaker-than:LABEL`` where an attack passes the detector more often than it may.

    Compared are all adaptive attacks against the detector of one norm and budget together with each oblivious one,
    counted within that budget by measured norm; and each adaptive attack with itself at a smaller budget.
    """
    if detector.failure() or threshold_reason(len(detector.calibrate), ALPHAS["5"]):
        return ()
    t = threshold(detector.calibrate, ALPHAS["5"])

    def passed(p: PerturbationResult) -> BoolArray | None:
        scores, _ = detector.scores(p)
        return None if scores is None or p.reason else np.asarray(p.success & (scores <= t))

    mine = [p for p in perturbations if p.kind == "adaptive" and p.threatens(detector.label) and not p.reason]
    flags = []
    for p in mine:
        for q in mine:
            less, more = (passed(q), passed(p)) if _same_curve(p, q) and (q.eps or 0) < (p.eps or 0) else (None, None)
            if less is not None and more is not None and beats(Got(q.index, less), Got(p.index, more)):
                flags.append(f"adaptive-weaker-than:{q.label}")
    for p in perturbations:
        through = passed(p) if p.kind == "attack" else None
        if through is None:
            continue
        for budget in dict.fromkeys((q.norm, q.eps) for q in mine):
            group = [q for q in mine if (q.norm, q.eps) == budget]
            best = _union(group, [passed(q) for q in group])
            if best is not None and beats(Got(p.index, through & _within(p, group[0])), best):
                flags.append(f"adaptive-weaker-than:{p.label}")
    return tuple(dict.fromkeys(flags))


def _weaker(p: PerturbationResult, others: Sequence[PerturbationResult]) -> Iterator[tuple[str, PerturbationResult]]:
    """Attacks that ``p`` must not be weaker than, each with the flag's name."""
    for q in others:
        if q is p or p.eps is None:
            continue
        if _same_curve(p, q) and q.eps is not None and q.eps < p.eps:
            yield "weaker-than-smaller-budget", q
        if p.kind != "attack" or q.kind != "attack" or q.norm != p.norm or p.box != "white":
            continue
        if q.one_step and not p.one_step and q.eps is not None and q.eps <= p.eps:
            yield "weaker-than-one-step", q
        if q.box == "black":
            yield "weaker-than-black-box", q


def _same_curve(p: PerturbationResult, q: PerturbationResult) -> bool:
    return bool(p.group) and (p.group, p.against) == (q.group, q.against) and p.eps is not None and q.eps is not None


def _within(p: PerturbationResult, budget: PerturbationResult) -> BoolArray:
    """Return which images of ``p`` keep to the budget of another, by measured norm."""
    if budget.eps is None or budget.norm not in p.norms:
        return np.ones(len(p.index), np.bool_)
    return np.asarray(np.asarray(p.norms[budget.norm]) <= budget.eps * (1 + 1e-4) + 1e-6)


@dataclass(frozen=True, eq=False)
class Got:
    """Which images an attack, or several together, got.

    Attributes:
        index: int (n,), positions among the evaluate images that were attacked.
        got: bool (n,).
    """

    index: IntArray
    got: BoolArray


def fooled_within(attacks: Sequence[PerturbationResult], threat: ThreatModel) -> Got:
    """Return the images that any of some attacks fools within a threat, among those that any of them attacked."""
    index = np.unique(np.concatenate([np.zeros(0, np.int64), *(p.index for p in attacks)]))
    got = np.zeros(len(index), np.bool_)
    for p in attacks:
        got[np.searchsorted(index, p.index[p.success & within(threat, p)])] = True
    return Got(index, got)


def beats(one: Got, other: Got) -> bool:
    """Return whether one gets images that the other does not more often than the other way round, beyond chance.

    Compared are the images that both attacked, at least :data:`MIN_IMAGES` (one-sided sign test at 5 %).
    """
    from scipy.stats import binomtest

    shared, here, there = np.intersect1d(one.index, other.index, return_indices=True)
    if len(shared) < MIN_IMAGES:
        return False
    only, missed = int((one.got[here] & ~other.got[there]).sum()), int((~one.got[here] & other.got[there]).sum())
    return only > missed and float(binomtest(only, only + missed, 0.5, alternative="greater").pvalue) < _LEVEL


def _union(group: Sequence[PerturbationResult], passed: Sequence[BoolArray | None]) -> Got | None:
    """Return what several attacks on the same images came to together, worst case per image."""
    known = [(p, v) for p, v in zip(group, passed, strict=True) if v is not None]
    if not known:
        return None
    first, together = known[0][0], known[0][1].copy()
    for p, v in known[1:]:
        if np.array_equal(p.index, first.index):
            together |= v
    return Got(first.index, together)
