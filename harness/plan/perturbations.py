"""Plans perturbations: oblivious and adaptive ones, what is derived from their images, and their controls."""

from __future__ import annotations

from dataclasses import replace

from ..core.code_digests import code_digest, part_digest
from ..core.content_keys import canonical, content_key, versions
from ..core.registry import PERTURBATIONS
from ..core.seeds import derive_seed
from ..suite.resolved import PerturbationPart
from .cells import ControlJob, DerivedJob, Opponent, PerturbJob, SetName
from .draft import CHUNK, Draft
from .plan import Subject

DECIDES_NO_NUMBER = True

# Images on which an adaptive attack shows, at its large budget, that it is not broken: the model gets some of them
# wrong, and no flag is set from fewer than 30.
CHECK_IMAGES = 48
_PERTURBING = "harness.run.tasks.perturbations"
_ATTACKING = "harness.run.tasks.adaptive"


def plan_perturbation(draft: Draft, subject: Subject, part: PerturbationPart, name: SetName) -> None:
    """Plan a perturbation of one set, chunk by chunk; a minimising attack once for all its budgets."""
    perturbation = draft.perturbations[part.label]
    unlimited = part
    if perturbation.info.minimises and perturbation.eps is not None:
        params = {k: v for k, v in part.params.items() if k != "eps"}
        unlimited = replace(part, label=part.group, params=params)
    keys = []
    for start, stop in draft.chunks(name, part.label):
        key = _chunk(draft, subject, unlimited, name, start, stop, None)
        if unlimited is not part:
            job = DerivedJob(subject.key, part, key, name, "budget")
            budget = [perturbation.eps, perturbation.norm]
            limited = content_key("budget", unlimited=key, budget=budget, code=code_digest(_PERTURBING))
            of_budget = draft.name(subject, "perturb", part.label, source=name, start=start)
            key = draft.add(limited, of_budget, job, (subject.key, key), stop - start)
        keys.append(key)
    subject.perturbs[part.label, name] = tuple(keys)


def plan_adaptive(draft: Draft, subject: Subject, part: PerturbationPart) -> None:
    """Plan an attack on a detector whose fit is planned, and the attack's check at a large budget."""
    detector = next(d for d in draft.suite.detectors if d.label == part.against)
    scores = subject.scores[detector.label, "calibrate"]
    opponent = Opponent(detector, subject.fits[detector.label], scores, subject.clean["fit"][0].logits)
    subject.perturbs[part.label, "evaluate"] = tuple(
        _chunk(draft, subject, part, "evaluate", start, stop, opponent)
        for start, stop in draft.chunks("evaluate", part.label)
    )
    large = getattr(draft.perturbations[part.label], "large_eps", None)
    if large is None:
        return
    check = replace(part, params={**part.params, "eps": large, "large_eps": large})
    stop = min(CHECK_IMAGES, len(draft.sets.evaluate))
    subject.checks[part.label] = _chunk(draft, subject, check, "evaluate", 0, stop, opponent, "check")


def plan_rounding(draft: Draft, subject: Subject, part: PerturbationPart) -> None:
    """Plan what is left of an attack after its images were saved with 8 bits, or with the levels that the data have."""
    chunks = draft.chunks("evaluate", part.label)
    made = draft.perturbations[part.label]
    for how, levels in draft.roundings:
        keys = []
        for key, (start, stop) in zip(subject.perturbs[part.label, "evaluate"], chunks, strict=True):
            job = DerivedJob(subject.key, part, key, "evaluate", how, levels)
            found = content_key(
                "rounded", perturbed=key, levels=levels, budget=[made.eps, made.norm],
                code=code_digest(_PERTURBING),
            )  # fmt: skip
            name = draft.name(subject, "rounded", part.label, source=how, start=start)
            keys.append(draft.add(found, name, job, (subject.key, key), stop - start))
        subject.rounded[part.label, how] = tuple(keys)


def plan_control(draft: Draft, subject: Subject, part: PerturbationPart) -> None:
    """Plan the equal-norm control of a perturbation's successes."""
    keys = []
    for index, perturbed in enumerate(subject.perturbs[part.label, "evaluate"]):
        start, stop = draft.chunks("evaluate", part.label)[index]
        seed = derive_seed(subject.seed, "control", canonical([part.name, draft.portable(part)]))
        logits = subject.clean["evaluate"][index].logits
        key = content_key("control", perturbed=perturbed, seed=seed, code=code_digest(_PERTURBING))
        job = ControlJob(subject.key, perturbed, "evaluate", logits, start, seed)
        name = draft.name(subject, "control", part.label, start=start)
        keys.append(draft.add(key, name, job, (subject.key, perturbed, logits), stop - start))
    subject.controls[part.label] = tuple(keys)


def _chunk(
    draft: Draft, subject: Subject, part: PerturbationPart, name: SetName, start: int, stop: int,
    opponent: Opponent | None, kind: str = "perturb",
) -> str:  # fmt: skip
    """Plan a perturbation of some rows of a set."""
    info = PERTURBATIONS.get(part.name).info
    portable = draft.portable(part)
    identity = [part.name, portable, part_digest(PERTURBATIONS.entry(part.name), "attacks.base.perturbation")]
    # A deterministic attack on fixed weights is the same for every seed of the run.
    seed = derive_seed(subject.seed if info.stochastic else 0, "perturbation", canonical([part.name, portable]), name)
    logits = subject.clean[name][start // CHUNK].logits
    against = [opponent.fit, opponent.calibrate, opponent.guides] if opponent else []
    key = content_key(
        "perturb", model=subject.key, logits=logits, rows=[start, stop], identity=identity, seed=seed,
        against=[*against, code_digest(_ATTACKING)] if against else [], code=code_digest(_PERTURBING),
        # Time is not in it: what it ends is not kept.
        limits=[draft.suite.limits.forwards, draft.suite.limits.backwards],
        versions=versions("torch", *({info.library} - {""})),
    )  # fmt: skip
    job = PerturbJob(subject.key, part, name, start, stop, logits, seed, opponent)
    of_chunk = draft.name(subject, kind, part.label, source=name, start=start)
    return draft.add(key, of_chunk, job, (subject.key, logits, *against), stop - start)
