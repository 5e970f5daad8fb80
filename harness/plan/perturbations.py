"""Plans perturbations: oblivious and adaptive ones, what is derived from their images, and their controls."""

from __future__ import annotations

from dataclasses import replace

from ..core.code_digests import code_digest, part_digest
from ..core.content_keys import canonical, content_key, versions
from ..core.registry import PERTURBATIONS
from ..core.seeds import derive_seed
from ..suite.resolved import PerturbationPart
from .cells import ControlJob, DerivedJob, PerturbJob, RehearsalJob, SetName, ShadowPlan, TargetPlan
from .draft import Draft
from .plan import ModelPlan

DECIDES_NO_NUMBER = True

# Images on which an adaptive attack shows, at its large budget, that it is not broken: the model gets some of them
# wrong, and no flag is set from fewer than 30.
CHECK_IMAGES = 48
_PERTURBING = "harness.run.tasks.perturbations"
_ATTACKING = "harness.run.tasks.adaptive"
_REHEARSING = "harness.run.tasks.rehearsal"
# Budgets that differ by less are one.
_SAME = 1e-6
# Calibrate images, among the first, on which an attack learns of its detector.
REHEARSAL_IMAGES = 36


def plan_perturbation(draft: Draft, model_plan: ModelPlan, part: PerturbationPart, name: SetName) -> None:
    """Plan a perturbation of one set, chunk by chunk; a minimising attack once for all its budgets."""
    perturbation = draft.perturbations[part.label]
    unlimited = part
    if perturbation.info.minimises and perturbation.eps is not None:
        params = {k: v for k, v in part.params.items() if k != "eps"}
        unlimited = replace(part, label=part.group, params=params)
    keys = []
    for start, stop in draft.chunks(name, part.label):
        key = plan_chunk(draft, model_plan, unlimited, name, start, stop, None)
        if unlimited is not part:
            job = DerivedJob(model_plan.key, part, key, name, "budget")
            budget = [perturbation.eps, perturbation.norm]
            limited = content_key("budget", unlimited=key, budget=budget, code=code_digest(_PERTURBING))
            of_budget = draft.name(model_plan, "perturb", part.label, source=name, start=start)
            key = draft.add(limited, of_budget, job, (model_plan.key, key), stop - start)
        keys.append(key)
    model_plan.perturbs[part.label, name] = tuple(keys)


def plan_adaptive(draft: Draft, model_plan: ModelPlan, part: PerturbationPart) -> None:
    """Plan an attack on a detector whose fit is planned, and the attack's check at a large budget."""
    target = target_plan(draft, model_plan, part)
    model_plan.perturbs[part.label, "evaluate"] = tuple(
        plan_chunk(draft, model_plan, part, "evaluate", start, stop, target)
        for start, stop in draft.chunks("evaluate", part.label)
    )
    large = getattr(draft.perturbations[part.label], "large_eps", None)
    if large is None:
        return
    check = replace(part, params={**part.params, "eps": large, "large_eps": large})
    stop = min(CHECK_IMAGES, len(draft.sets.evaluate))
    model_plan.checks[part.label] = plan_chunk(draft, model_plan, check, "evaluate", 0, stop, target, "check")


def target_plan(draft: Draft, model_plan: ModelPlan, part: PerturbationPart) -> TargetPlan:
    """Return the cells of the detector that an attack is made against, whose fit is planned."""
    detector = next(d for d in draft.suite.detectors if d.label == part.against)
    calibrate, guides = (model_plan.scores[detector.label, source] for source in ("calibrate", "fit"))
    logits = model_plan.clean["fit"][0].logits
    target = TargetPlan(detector, model_plan.fits[detector.label], calibrate, logits, guides)
    if not getattr(draft.perturbations[part.label], "rehearses", False):
        return target
    return replace(target, rehearsal=_rehearsal(draft, model_plan, part, target))


def plan_rounding(draft: Draft, model_plan: ModelPlan, part: PerturbationPart) -> None:
    """Plan what is left of an attack after its images were saved with 8 bits, or with the levels that the data have."""
    chunks = draft.chunks("evaluate", part.label)
    made = draft.perturbations[part.label]
    for how, levels in draft.roundings:
        keys = []
        for key, (start, stop) in zip(model_plan.perturbs[part.label, "evaluate"], chunks, strict=True):
            job = DerivedJob(model_plan.key, part, key, "evaluate", how, levels)
            found = content_key(
                "rounded", perturbed=key, levels=levels, budget=[made.eps, made.norm],
                code=code_digest(_PERTURBING),
            )  # fmt: skip
            name = draft.name(model_plan, "rounded", part.label, source=how, start=start)
            keys.append(draft.add(found, name, job, (model_plan.key, key), stop - start))
        model_plan.rounded[part.label, how] = tuple(keys)


def plan_control(draft: Draft, model_plan: ModelPlan, part: PerturbationPart) -> None:
    """Plan the equal-norm control of a perturbation's successes."""
    keys = []
    for index, perturbed in enumerate(model_plan.perturbs[part.label, "evaluate"]):
        start, stop = draft.chunks("evaluate", part.label)[index]
        seed = derive_seed(model_plan.seed, "control", canonical([part.name, draft.portable(part)]))
        logits = model_plan.clean["evaluate"][index].logits
        key = content_key("control", perturbed=perturbed, seed=seed, code=code_digest(_PERTURBING))
        job = ControlJob(model_plan.key, perturbed, "evaluate", logits, start, seed)
        name = draft.name(model_plan, "control", part.label, start=start)
        keys.append(draft.add(key, name, job, (model_plan.key, perturbed, logits), stop - start))
    model_plan.controls[part.label] = tuple(keys)


def _rehearsal(draft: Draft, model_plan: ModelPlan, part: PerturbationPart, target: TargetPlan) -> str:
    """Plan what an attack learns of a detector before it meets the evaluate images."""
    seed = derive_seed(model_plan.seed, "rehearsal", canonical([part.name, draft.portable(part)]))
    logits = model_plan.clean["calibrate"][0].logits
    key = content_key(
        "rehearsal", model=model_plan.key, logits=logits, images=REHEARSAL_IMAGES, seed=seed,
        identity=_identity(draft, part),
        against=target.keys(), code=code_digest(_REHEARSING), versions=versions("torch", "scipy"),
        limits=[draft.suite.limits.forwards, draft.suite.limits.backwards],
    )  # fmt: skip
    job = RehearsalJob(model_plan.key, part, target, logits, REHEARSAL_IMAGES, seed)
    name = draft.name(model_plan, "rehearsal", part.label)
    return draft.add(key, name, job, (model_plan.key, logits, *target.keys()), REHEARSAL_IMAGES)


def at_threat(draft: Draft, part: PerturbationPart) -> bool:
    """Return whether a perturbation is made at the whole budget of the suite's threat."""
    made, threat = draft.perturbations[part.label], draft.suite.threat
    return made.norm == threat.norm and abs((made.eps or 0.0) - threat.eps) <= _SAME * threat.eps


def leads(draft: Draft, part: PerturbationPart) -> bool:
    """Return whether an attack is the worst case over all ways past a detector, at the whole budget of the threat."""
    return bool(getattr(draft.perturbations[part.label], "rehearses", False)) and at_threat(draft, part)


def _identity(draft: Draft, part: PerturbationPart) -> list[object]:
    """Return what a perturbation is: its name, parameters and code."""
    return [part.name, draft.portable(part), part_digest(PERTURBATIONS.entry(part.name), "attacks.base.perturbation")]


def plan_chunk(
    draft: Draft, model_plan: ModelPlan, part: PerturbationPart, name: SetName, start: int, stop: int,
    target: TargetPlan | None, kind: str = "perturb", shadow: ShadowPlan | None = None,
) -> str:  # fmt: skip
    """Plan a perturbation of some rows of a set, or of shadow images of them."""
    info, portable = PERTURBATIONS.get(part.name).info, draft.portable(part)
    identity = _identity(draft, part)
    # A deterministic attack on fixed weights is the same for every seed of the run.
    seed = derive_seed(
        model_plan.seed if info.stochastic else 0, "perturbation", canonical([part.name, portable]), name
    )
    logits = model_plan.clean[name][start // draft.chunk].logits
    canary = target is not None and kind == "perturb"
    compared = shadow.keys() if shadow else ()
    against = target.keys() if target else ()
    key = content_key(
        "perturb", model=model_plan.key, logits=logits, rows=[start, stop], identity=identity, seed=seed,
        against=[*against, canary, compared, code_digest(_ATTACKING)] if against else [],
        code=code_digest(_PERTURBING),
        # Time is not in it: what it ends is not kept.
        limits=[draft.suite.limits.forwards, draft.suite.limits.backwards],
        versions=versions("torch", *({info.library} - {""})),
    )  # fmt: skip
    job = PerturbJob(model_plan.key, part, name, start, stop, logits, seed, target, canary, shadow)
    of_chunk = draft.name(model_plan, kind, part.label, source=name, start=start)
    return draft.add(key, of_chunk, job, (model_plan.key, logits, *against, *compared), stop - start)
