"""Plans the searches for the smallest perturbations: one that knows no detector, and one for each detector."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..core.code_digests import code_digest
from ..core.content_keys import content_key, versions
from ..core.seeds import derive_seed
from ..suite.resolved import PerturbationPart
from .cells import RadiusJob, TargetPlan
from .draft import Draft
from .perturbations import leads, target_plan
from .plan import ModelPlan

DECIDES_NO_NUMBER = True

ALONE = ""
_SEARCHING = "harness.run.tasks.radii"


def radius_attacks(draft: Draft, adaptive: Iterable[PerturbationPart]) -> list[PerturbationPart]:
    """Return the attacks, one for each detector, by whose norm and large budget its price is measured.

    They are those at the whole budget of the threat. None where the suite wants no price.
    """
    found: dict[str, PerturbationPart] = {}
    for part in adaptive if draft.suite.price_images else ():
        if leads(draft, part):
            found.setdefault(part.against, part)
    return list(found.values())


def plan_alone(
    draft: Draft, model_plan: ModelPlan, part: PerturbationPart, oblivious: Sequence[PerturbationPart]
) -> None:
    """Plan the search that knows no detector, once for a model; it starts from what all attacks of the suite found."""
    if ALONE not in model_plan.radii:
        known = _attacks(draft, model_plan, oblivious)
        model_plan.radii[ALONE] = _plan(draft, model_plan, part, "none", known, "", None)


def plan_radius(draft: Draft, model_plan: ModelPlan, part: PerturbationPart) -> None:
    """Plan the search of one detector; it also starts from what the attacks on this detector found."""
    alone, own = model_plan.radii[ALONE], model_plan.perturbs[part.label, "evaluate"][:1]
    job = draft.cells[alone].job
    assert isinstance(job, RadiusJob)  # noqa: S101 - for the type
    check = model_plan.checks.get(part.label)
    known = (*job.known, *own, *([check] if check else []))
    target = target_plan(draft, model_plan, part)
    model_plan.radii[part.against] = _plan(draft, model_plan, part, part.against, known, alone, target)


def _attacks(draft: Draft, model_plan: ModelPlan, oblivious: Iterable[PerturbationPart]) -> tuple[str, ...]:
    """Return the cells with the first rows of every attack that knows no detector and is not known to be lost."""
    lost = draft.lost.get(model_plan.key, ())
    attacks = [p for p in oblivious if draft.perturbations[p.label].info.kind == "attack" and p.label not in lost]
    return tuple(dict.fromkeys(model_plan.perturbs[p.label, "evaluate"][0] for p in attacks))


def _plan(
    draft: Draft, model_plan: ModelPlan, part: PerturbationPart, label: str, known: tuple[str, ...], alone: str,
    target: TargetPlan | None,
) -> str:  # fmt: skip
    made, logits = draft.perturbations[part.label], model_plan.clean["evaluate"][0].logits
    images, reach = draft.suite.price_images, [made.norm, getattr(made, "large_eps", None)]
    seed = derive_seed(model_plan.seed, "radius")
    against = target.keys() if target else ()
    key = content_key(
        "radius", model=model_plan.key, logits=logits, images=images, reach=reach, seed=seed, known=known,
        alone=alone, against=against, code=code_digest(_SEARCHING), versions=versions("torch"),
        limits=[draft.suite.limits.forwards, draft.suite.limits.backwards],
    )  # fmt: skip
    job = RadiusJob(model_plan.key, part, logits, images, seed, known, alone, target)
    inputs = (model_plan.key, logits, *known, *([alone] if alone else []), *against)
    return draft.add(key, draft.name(model_plan, "radius", label), job, inputs, images)
