"""Plans variants of the evaluate images, which no part can have stored, and attacks on those that the run drew."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ..core.code_digests import code_digest
from ..core.content_keys import content_key, versions
from ..core.seeds import derive_seed
from ..suite.resolved import PerturbationPart
from ..tracing.traces import Need
from .cells import Images, ShadowPlan, Variant, VariantJob
from .draft import CHUNK, Draft, Made
from .perturbations import at_threat, plan_chunk, target_plan
from .plan import ModelPlan

DECIDES_NO_NUMBER = True

# How many of the first evaluate images have shadow images, and of how many these are attacked where both are right.
SHADOWS, SHADOW_IMAGES = 128, 50
_IMAGES, _ASKING = "attacks.benign.variants", "harness.run.tasks.variants"


def plan_variants(draft: Draft, model_plan: ModelPlan, needs: Sequence[Need]) -> None:
    """Plan the variants of the first evaluate images, and their traces."""
    planned: dict[Variant, str] = {"re-encoded": _reencoded(draft, model_plan), **_shadows(draft, model_plan)}
    for how, key in planned.items():
        images = Images("evaluate", 0, draft.cells[key].images, key)
        model_plan.variants[how] = draft.traces(model_plan, images, tuple(needs), Made(how, "evaluate"))


def _reencoded(draft: Draft, model_plan: ModelPlan) -> str:
    """Plan images that are the same in every run."""
    return _variant(draft, model_plan, VariantJob(min(CHUNK, len(draft.sets.evaluate)), "re-encoded"), ())


def _shadows(draft: Draft, model_plan: ModelPlan) -> dict[Variant, str]:
    """Plan images that are others in every run, if there is a secret."""
    if not draft.secret:
        return {}
    stop, logits = min(SHADOWS, len(draft.sets.evaluate)), model_plan.clean["evaluate"][0].logits
    seed, levels = derive_seed(0, "shadow", draft.secret), min(count for _, count in draft.roundings)
    job = VariantJob(stop, "shadow", seed, levels, model_plan.key, logits)
    # Of the secret only what cannot be turned back leaves this function.
    drawn = hashlib.sha256(f"shadow images {draft.secret}".encode()).hexdigest()
    return {"shadow": _variant(draft, model_plan, job, (model_plan.key, logits), secret=drawn, levels=levels)}


def _variant(draft: Draft, model_plan: ModelPlan, job: VariantJob, inputs: tuple[str, ...], **more: str | int) -> str:
    code = code_digest(_IMAGES, *([_ASKING] if job.model else []))
    key = content_key(
        "variant", data=[draft.data_digest, draft.positions_digest("evaluate", 0, job.stop)], how=job.how,
        inputs=inputs, code=code, versions=versions("torch", "pillow"), **more,
    )  # fmt: skip
    name = draft.name(model_plan, "variant", job.how, source="evaluate", start=0)
    return draft.add(key, name, job, inputs, job.stop)


def plan_shadowed(draft: Draft, model_plan: ModelPlan, part: PerturbationPart) -> None:
    """Plan an attack on a detector, which is planned for the evaluate images, for shadow images too.

    Only where it may decide a rank: at the whole budget of the threat.
    """
    shadow = model_plan.variants.get("shadow")
    if shadow is None or not at_threat(draft, part):
        return
    stop = min(SHADOW_IMAGES, shadow.images.stop, draft.chunks("evaluate", part.label)[0][1])
    clean, drawn = (model_plan.scores[part.against, source] for source in ("clean", "shadow"))
    planned = ShadowPlan(
        shadow.images.source, model_plan.perturbs[part.label, "evaluate"][0], shadow.logits, clean, drawn
    )
    target = target_plan(draft, model_plan, part)
    model_plan.shadowed[part.label] = plan_chunk(
        draft, model_plan, part, "evaluate", 0, stop, target, "shadowed", planned
    )
