"""Plans variants of the evaluate images, which no part can have stored, and attacks on those that the run drew."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ..core.code_digests import code_digest
from ..core.content_keys import content_key, versions
from ..core.seeds import derive_seed
from ..suite.resolved import PerturbationPart
from ..tracing.traces import Need
from .cells import VARIANTS, Images, ShadowPlan, Variant, VariantJob
from .draft import CHUNK, Draft, Made
from .perturbations import plan_chunk, target_plan
from .plan import ModelPlan

DECIDES_NO_NUMBER = True

# Of the first evaluate images that the model gets right, how many have shadow images that are attacked.
SHADOW_IMAGES = 50
_MAKING = "harness.run.tasks.variants"
# Budgets that differ by less are one.
_SAME = 1e-6


def plan_variants(draft: Draft, model_plan: ModelPlan, needs: Sequence[Need]) -> None:
    """Plan the variants of the first evaluate images, the same for all models and seeds, and their traces."""
    stop = min(CHUNK, len(draft.sets.evaluate))
    for how in VARIANTS:
        if how == "shadow" and not draft.secret:
            continue
        key = _variant(draft, model_plan, how, stop)
        images = Images("evaluate", 0, stop, key)
        model_plan.variants[how] = draft.traces(model_plan, images, tuple(needs), Made(how, "evaluate"))


def _variant(draft: Draft, model_plan: ModelPlan, how: Variant, stop: int) -> str:
    levels = min(count for _, count in draft.roundings)
    job, drawn = VariantJob(stop, how), ""
    if how == "shadow":
        # Of the secret itself only what cannot be turned back leaves this function.
        drawn = hashlib.sha256(f"shadow images {draft.secret}".encode()).hexdigest()
        job = VariantJob(stop, how, derive_seed(0, "shadow", draft.secret), levels)
    key = content_key(
        "variant", data=[draft.data_digest, draft.positions_digest("evaluate", 0, stop)], how=how, secret=drawn,
        levels=job.levels, code=code_digest(_MAKING), versions=versions("torch", "pillow"),
    )  # fmt: skip
    return draft.add(key, draft.name(model_plan, "variant", how, source="evaluate", start=0), job, (), stop)


def plan_shadowed(draft: Draft, model_plan: ModelPlan, part: PerturbationPart) -> None:
    """Plan an attack on a detector, which is planned for the evaluate images, for shadow images too.

    Only where it may decide a rank: at the whole budget of the threat.
    """
    shadow, made, threat = model_plan.variants.get("shadow"), draft.perturbations[part.label], draft.suite.threat
    if shadow is None or made.norm != threat.norm or abs((made.eps or 0.0) - threat.eps) > _SAME * threat.eps:
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
