"""What a detector says of variants of the evaluate images, read from its cells."""

from __future__ import annotations

import numpy as np

from ..plan import ModelPlan
from ..plan.cells import PerturbJob
from ..statistics.detection import ALPHAS, threshold, threshold_reason
from ..suite.resolved import DetectorPart
from .finished import Finished
from .shadows import BoolArray, FloatArray, ShadowAttack, Variants, pairs, stand


def variants_of(found: Finished, model_plan: ModelPlan, part: DetectorPart) -> Variants:
    """Return what a detector, all of whose clean images are scored, says of variants, as far as there are cells."""
    scores: dict[str, FloatArray] = {}
    right: dict[str, BoolArray] = {}
    reason = ""
    for how, traces in model_plan.variants.items():
        key = model_plan.scores[part.label, how]
        missing = found.reason(traces.logits, key)
        if missing:
            reason = reason or (missing if how == "shadow" else "")
            continue
        right[how] = _right(found, model_plan, traces.logits)
        scores[how] = found.store.tensor(key, "score").double().numpy()
    attacks = {}
    for p in found.plan.suite.perturbations:
        cell = model_plan.shadowed.get(p.label) if p.against == part.label else None
        if cell is None or "shadow" not in scores:
            continue
        original = model_plan.perturbs[p.label, "evaluate"][0]
        if found.reason(original):
            # The row says so.
            continue
        if missing := found.reason(cell):
            reason = reason or missing
            continue
        attack = _attack(found, model_plan, part, right["shadow"], original, cell)
        if attack is not None:
            attacks[p.label] = attack
    kept = {how: of[right[how]] for how, of in scores.items()}
    return Variants(kept, attacks, reason)


def _right(found: Finished, model_plan: ModelPlan, logits: str) -> BoolArray:
    """Return whether the model is right about the first evaluate images and their variants, bool (n,)."""
    predicted = found.store.tensor(logits, "logits").argmax(1)
    labels = found.labels("evaluate")[: len(predicted)]
    clean = found.predictions(model_plan, "evaluate")[: len(predicted)]
    return ((predicted == labels) & (clean == labels)).numpy()


def _attack(
    found: Finished, model_plan: ModelPlan, part: DetectorPart, right: BoolArray, original: str, cell: str
) -> ShadowAttack | None:
    """Return what one attack made of images and their shadow images; ``None`` where the latter were not attacked."""
    calibrate, clean, shadow = (
        found.store.tensor(model_plan.scores[part.label, source], "score").double().numpy()
        for source in ("calibrate", "clean", "shadow")
    )
    if threshold_reason(len(calibrate), ALPHAS["5"]):
        return None
    job = found.plan.cells[cell].job
    assert isinstance(job, PerturbJob)  # noqa: S101 - for the type
    stop = job.stop
    rows = pairs(right[:stop], clean[:stop], shadow[:stop], threshold(calibrate, ALPHAS["5"]))
    made, attacked = found.store.load(original), found.store.load(cell)
    if not np.isin(rows, attacked["row"].numpy()).all() or not len(rows):
        return None
    return ShadowAttack(
        *(stand(rows, of["row"].numpy(), (of["success"] & of["passed"]).numpy()) for of in (made, attacked))
    )
