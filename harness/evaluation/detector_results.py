"""What detectors say of the images of one model and seed, read from their cells, and what is doubtful about them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.process_state import CHANGED, CHANGED_FLAG
from ..plan import ModelPlan
from ..statistics.detection import MIN_IMAGES
from ..suite.resolved import DetectorPart
from .alarm_results import alarms_of
from .finished import Finished
from .radius_results import radii_of
from .rankability import INCOMPLETE, OPENED, READS_FILES, STARTED, STARTS_PROCESSES, UNCHECKED, reaches_threat
from .results import DetectorResult, PerturbationResult, Rescored
from .variant_results import variants_of


def detector_result(
    found: Finished, model_plan: ModelPlan, part: DetectorPart, perturbations: Sequence[PerturbationResult]
) -> DetectorResult:
    """Return the scores of one detector; a score that is missing has its reason."""
    facts = found.plan.facts.detectors[part.label]
    families = frozenset(p.family for p in perturbations if p.label in part.fit_on)
    about: dict[str, Any] = {
        "label": part.label,
        # Noise that it learned as harmless counts as seen, like an attack that it learned as hostile.
        "fit_on": (*part.fit_on, *part.fit_negatives),
        "fit_families": families,
        "surrogate": facts.surrogate,
        "randomised": facts.randomised,
        "flags": (
            *_changed_state(found, model_plan, part),
            *_unbroken(found, model_plan, part),
            *_opened(found, model_plan, part),
        ),
    }

    def key(source: str) -> str:
        return model_plan.scores[part.label, source]

    reason = found.plan.applicability.unfitted.get(part.label)
    reason = reason or found.reason(model_plan.fits[part.label], key("calibrate"), key("clean"))
    if reason:
        return DetectorResult(**about, reason=reason)
    perturbed, control, rounded, reasons = {}, {}, {}, {}
    for p in perturbations:
        missing = p.reason or found.reason(key(p.label))
        if missing:
            reasons[p.label] = missing
            continue
        perturbed[p.label] = found.store.tensor(key(p.label), "score").numpy()
        if p.against not in (None, part.label):
            # The control of an attack says something about the detector that it was made against.
            continue
        for r in p.rounded:
            source = f"{r.how}:{p.label}"
            if not r.reason and not found.reason(key(source)):
                rounded[p.label, r.how] = found.store.tensor(key(source), "score").numpy()
        missing = found.reason(key(f"control:{p.label}"))
        if missing:
            reasons[p.label] = missing
        else:
            control[p.label] = found.store.tensor(key(f"control:{p.label}"), "score").numpy()
    return DetectorResult(
        **about,
        calibrate=found.store.tensor(key("calibrate"), "score").numpy(),
        clean=found.store.tensor(key("clean"), "score").numpy(),
        perturbed=perturbed,
        control=control,
        rounded=rounded,
        rescored=_rescored(found, model_plan, part),
        variants=variants_of(found, model_plan, part),
        radii=radii_of(found, model_plan, part.label),
        alarms=alarms_of(found, model_plan, part),
        reasons=reasons,
    )


def _opened(found: Finished, model_plan: ModelPlan, part: DetectorPart) -> tuple[str, ...]:
    """Flags for a detector whose code opened what is not its own, or started programs, with the first of each."""
    keys = [model_plan.fits.get(part.label), *(k for (label, _), k in model_plan.scores.items() if label == part.label)]
    done = [key for key in keys if key is not None and key in found.summary.done]
    flags = []
    for flag, noted in ((READS_FILES, OPENED), (STARTS_PROCESSES, STARTED)):
        names = sorted({str(name) for key in done for name in found.store.values(key).get(noted, ())})
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            # Not the whole path: tables are published.
            name = re.sub(r"[^\w.-]+", "_", Path(names[0]).name)
            flags.append(f"{flag}: {name}{more}")
    return tuple(flags)


def _rescored(found: Finished, model_plan: ModelPlan, part: DetectorPart) -> dict[str, Rescored]:
    """Return the scores that a detector gave when it was asked again, by source."""
    held = {}
    for (label, source), key in model_plan.scores.items():
        if label != part.label or found.reason(key):
            continue
        tensors = found.store.load(key)
        if "recheck:rows" not in tensors:
            continue
        contexts = {n.removeprefix("recheck:"): v.double().numpy() for n, v in tensors.items() if ":" in n}
        rows = contexts.pop("rows").astype(np.int64)
        held[source] = Rescored(rows, contexts, found.store.values(key)["recheck"])
    return held


def _changed_state(found: Finished, model_plan: ModelPlan, part: DetectorPart) -> tuple[str, ...]:
    """Return a flag for each piece of the process's state that the detector changed."""
    scores = (key for (label, _), key in model_plan.scores.items() if label == part.label)
    keys = [key for key in (model_plan.fits.get(part.label, ""), *scores) if key in found.summary.done]
    names = dict.fromkeys(name for key in keys for name in found.store.values(key).get(CHANGED, ()))
    return tuple(f"{CHANGED_FLAG}:{name}" for name in names)


def _unbroken(found: Finished, model_plan: ModelPlan, part: DetectorPart) -> tuple[str, ...]:
    """Return a flag where no adaptive attack succeeded undetected on every image at its large budget."""
    short: list[str] = []
    against = [
        p
        for p in found.plan.suite.perturbations
        if p.against == part.label and (p.label, "evaluate") in model_plan.perturbs
    ]
    for p in found.plan.suite.perturbations:
        key = model_plan.checks.get(p.label)
        if key is None or p.against != part.label:
            continue
        reason = found.reason(key)
        facts = found.plan.facts.perturbations[p.label]
        whole = reaches_threat(facts.norm, facts.eps, found.plan.suite.threat)
        if reason or not whole or not facts.is_checked:
            # It did not run, or says nothing about the attack that counts.
            continue
        values = found.store.values(key)
        if values["rows"] < MIN_IMAGES:
            return (UNCHECKED,)
        if values.get("undetected", 0) < values["rows"]:
            short.append(f"{values.get('undetected', 0)} of {values['rows']}")
        else:
            # One attack that reaches everything shows that the detector can be passed.
            return ()
    if short:
        return INCOMPLETE, f"at the large budget: {', '.join(short)}"
    return (UNCHECKED,) if against else ()
