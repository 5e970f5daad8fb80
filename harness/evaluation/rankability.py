"""Which rows may be ranked: the protocol's floor for attacks, and the flags that take a rank away.

A robust accuracy is worth what was done to lower it. Rows with a weaker attack than the floor, or with proof that their
attack was blind or that their detector answers by who asks, keep their number and get no rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from ...attacks.base.kinds import Effort
from ..models.flags import NEAR_CHANCE, NO_WEIGHTS, RANDOMISED_MODEL
from ..statistics.detection import ALPHAS, threshold_reason
from .consistency import DEPENDS, RANDOMISED, UNCHECKED_PROCESS
from .radii import DISCONTINUOUS
from .radii import UNSEEN as LADDER_UNCHECKED
from .results import DetectorResult, PerturbationResult, SeedResult, ThreatModel
from .sanity import beats, fooled_within
from .shadows import KNOWS, PROVENANCE, UNSEEN

if TYPE_CHECKING:
    from ..plan.facts import PerturbationFacts
    from ..suite.resolved import Suite

DECIDES_NO_NUMBER = True

ABLATION = "none"
NO_ATTACK = "no-attack"
NO_ADAPTIVE = "no-adaptive-attack"
INCOMPLETE = "adaptive-incomplete"
BELOW_THREAT = "adaptive-below-threat"
UNCHECKED = "adaptive-unchecked"
BELOW_FLOOR = "below-floor"
BLACK_BOX_ONLY = "black-box-only"
WEAKER = "weaker-than-adaptive"
CANARY = "canary-stands"
CONTROL_FLAGGED = "control-flagged"
BENIGN_FLAGGED = "benign-flagged"
TIES = "ties-at-threshold"
READS_FILES = "reads-files"
STARTS_PROCESSES = "starts-processes"
# Of a cell's values: what the code of a plugin opened beyond its own, and the programs that it started.
OPENED, STARTED = "opened", "started"
BLIND = ("zero-gradient", "non-finite-gradient")
UNCONVERGED = ("unconverged", "limit")
# Where one of these is said of a counting attack, there is no robust accuracy.
_MISSING, _NOT_SCORED = "is missing:", "is not scored:"

# Constants of the protocol's version: the least that an adaptive attack must invest, and in how many images.
FLOOR = Effort(steps=50, restarts=2, queries=100)
FLOOR_IMAGES = 50
# The share of the canary's images that an attack may leave, by which the protocol knows that it works.
_CANARY = 0.1
# Budgets that differ by less are one (8/255 written in two ways).
SAME = 1e-6

# A row that carries one of these, or one that says what a score depends on, is not ranked.
_NOT_RANKED = (
    NO_ATTACK, NO_ADAPTIVE, INCOMPLETE, BELOW_THREAT, UNCHECKED, BELOW_FLOOR, BLACK_BOX_ONLY, WEAKER, CANARY,
    RANDOMISED, UNCHECKED_PROCESS, NEAR_CHANCE, NO_WEIGHTS, KNOWS, PROVENANCE, UNSEEN, DISCONTINUOUS,
    LADDER_UNCHECKED, *BLIND,
)  # fmt: skip
# The number of a row that carries one of these can only be too high.
_AT_MOST = (
    NO_ATTACK, NO_ADAPTIVE, INCOMPLETE, BELOW_THREAT, UNCHECKED, BELOW_FLOOR, BLACK_BOX_ONLY, WEAKER, CANARY, KNOWS,
    PROVENANCE, DISCONTINUOUS, *BLIND, *UNCONVERGED,
)  # fmt: skip


def floor() -> dict[str, int]:
    """Return the protocol's floor by name, as ``run.json`` and entries state it."""
    return {**asdict(FLOOR), "images": FLOOR_IMAGES}


def reaches_floor(efforts: Sequence[Effort]) -> bool:
    """Return whether attacks together do what the floor asks: one the steps and restarts, one the queries."""
    gradient = any(e.steps >= FLOOR.steps and e.restarts >= FLOOR.restarts for e in efforts)
    return gradient and any(e.queries >= FLOOR.queries for e in efforts)


def floor_text() -> str:
    """Return the protocol's floor in words."""
    return (
        f"{FLOOR.steps} steps, {FLOOR.restarts} restarts and {FLOOR.queries} queries for each image that is not "
        f"evaded, on at least {FLOOR_IMAGES} images, at the threat's whole budget"
    )


def unranked_suite(suite: Suite, attacks: Mapping[str, PerturbationFacts], calibrate: int, evaluate: int) -> str:
    """Return why no detector of a suite will have a rank, whatever is measured; empty where some may.

    Args:
        suite: resolved and checked.
        attacks: facts of the suite's perturbations that apply to its task, by label.
        calibrate: number of calibrate images.
        evaluate: number of evaluate images.
    """
    short = threshold_reason(calibrate, ALPHAS["5"])
    if short:
        return short
    known = [attacks[p.label] for p in suite.perturbations if p.against and p.label in attacks]
    full = [
        a
        for a in known
        if a.norm == suite.threat.norm and abs((a.eps or 0.0) - suite.threat.eps) <= SAME * suite.threat.eps
    ]
    threat = f"{suite.threat.norm} at {suite.threat.eps:g}"
    if not known:
        return f'no attack knows the detectors (add one: name = "adaptive", about the threat, {threat})'
    if not full:
        own = ", ".join(dict.fromkeys(f"{a.norm} at {a.eps or 0:g}" for a in known))
        return (
            f"the attacks that know the detectors are about {own}, the threat is {threat}: set their norm and eps to it"
        )
    effort, images = Effort(), min(evaluate, *(a.images or evaluate for a in known))
    for attack in full:
        effort |= attack.effort or Effort()
    if reaches_floor([a.effort or Effort() for a in full]) and images >= FLOOR_IMAGES:
        return ""
    has = {**asdict(effort), "images": images}
    short = ", ".join(
        f"{name} = {has[name]} instead of {least}" for name, least in floor().items() if has[name] < least
    )
    return f"the attack that knows the detectors has {short} at least"


def reaches_threat(norm: str | None, eps: float | None, threat: ThreatModel) -> bool:
    """Return whether an attack has the threat's norm and at least its whole budget."""
    return norm == threat.norm and eps is not None and eps >= threat.eps * (1 - SAME)


def counts(p: PerturbationResult, detector: str, threat: ThreatModel) -> bool:
    """Return whether an adaptive attack was made against a detector under this threat: its norm, no larger budget."""
    within = p.norm == threat.norm and p.eps is not None and p.eps <= threat.eps * (1 + SAME)
    return p.kind == "adaptive" and p.threatens(detector) and within


def attack_flags(seed: SeedResult, detector: DetectorResult, ranked: int, threat: ThreatModel) -> list[str]:
    """Return what is doubtful or missing about the attacks that count for a row, for one seed.

    Args:
        seed: all results.
        detector: the row's; the ablation's for ``none``.
        ranked: the number of evaluate images, from the first on, that the ranking is about.
        threat: norm and budget that it is about.
    """
    right = int(seed.sources.evaluate_correct[:ranked].sum())
    counting = [p for p in seed.perturbations if p.threatens(detector.label) and not p.inapplicable]
    flags = [*seed.sources.flags, *([] if seed.sources.gradient else [BLACK_BOX_ONLY])]
    if any(RANDOMISED_MODEL in p.flags for p in seed.perturbations) and RANDOMISED_MODEL not in flags:
        flags.append(RANDOMISED_MODEL)
    if detector.label == ABLATION:
        flags += _oblivious_flags(seed, counting, threat, ranked)
    else:
        adaptive = [p for p in counting if counts(p, detector.label, threat)]
        flags += _adaptive_flags(adaptive, ranked, right, threat)
    for p in counting:
        if p.reason:
            flags.append(f"{p.label} {_MISSING} {p.reason}")
            continue
        attacked = int((p.index < ranked).sum())
        if attacked < right:
            flags.append(f"{p.label} attacked {attacked} of {right} images")
        if not detector.failure():
            scores, reason = detector.scores(p)
            if scores is None:
                flags.append(f"{p.label} {_NOT_SCORED} {reason}")
    return flags


def _adaptive_flags(adaptive: Sequence[PerturbationResult], ranked: int, right: int, threat: ThreatModel) -> list[str]:
    if not adaptive:
        return [NO_ADAPTIVE]
    if all(p.reason for p in adaptive):
        return []
    full = [p for p in adaptive if not p.reason and reaches_threat(p.norm, p.eps, threat)]
    if not full:
        return [BELOW_THREAT]
    # An attack that does not work where the answer is known invests nothing, whatever it says of itself.
    working = [p for p in full if p.canary is None or p.canary <= _CANARY]
    if not working:
        return [CANARY, *dict.fromkeys(f for p in full for f in p.flags)]
    covered = max(int((p.index < ranked).sum()) for p in working) >= right
    enough = reaches_floor([p.effort or Effort() for p in working])
    flags = [] if enough and ranked >= FLOOR_IMAGES and covered else [BELOW_FLOOR]
    return flags + list(dict.fromkeys(f for p in full for f in p.flags))


def _oblivious_flags(
    seed: SeedResult, counting: Sequence[PerturbationResult], threat: ThreatModel, ranked: int
) -> list[str]:
    """Return the flags of the row that has no detector: attacks that know no detector are all that counts for it."""
    made = [p for p in counting if not p.reason]
    if not counting:
        return [NO_ATTACK]
    best = fooled_within(made, threat)
    right = np.flatnonzero(seed.sources.evaluate_correct[:ranked])
    if not np.isin(right, best.index).all():
        # Images that nothing attacked would count as safe.
        return [NO_ATTACK]
    # An attack that did not converge leaves nothing open where another fooled every image.
    stands = not best.got[best.index < ranked].all()
    late = [f for p in made for f in p.flags if f in UNCONVERGED] if stands else []
    knowing = [p for p in seed.perturbations if not p.reason and counts(p, p.against or "", threat)]
    # What an attack that had to pass a detector besides got done, one that had not should have.
    weaker = [f"{WEAKER}:{p.label}" for p in knowing if beats(fooled_within([p], threat), best)]
    return [*dict.fromkeys(late), *weaker]


def reasons(flags: Iterable[str], failures: Iterable[str]) -> list[str]:
    """Return why a row is not ranked: the flags that take its rank, then what failed; empty for a ranked row."""
    found = [f for f in flags if _is(f, _NOT_RANKED) or f.startswith(DEPENDS) or _MISSING in f or _NOT_SCORED in f]
    return list(dict.fromkeys([*found, *failures]))


def is_upper_bound(flags: Iterable[str], robust: float) -> bool:
    """Return whether a robust accuracy can only be too high: some image stands, and its attack was not at its best."""
    return robust > 0 and any(_is(f, _AT_MOST) for f in flags)


def _is(flag: str, names: Sequence[str]) -> bool:
    """Return whether a flag is one of some names, alone or about something (``name:LABEL``)."""
    return flag.partition(":")[0] in names
