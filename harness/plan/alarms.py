"""Plans the search for false alarms: small changes that a detector flags although the model is right."""

from __future__ import annotations

from ..core.code_digests import code_digest
from ..core.content_keys import canonical, content_key, versions
from ..core.seeds import derive_seed
from ..suite.resolved import PerturbationPart
from .cells import AlarmJob
from .draft import Draft
from .perturbations import leads, target_plan
from .plan import ModelPlan

DECIDES_NO_NUMBER = True

# How many of the first evaluate images are looked at, of those that every adaptive attack covers.
ALARM_IMAGES = 64
_SEARCHING = "harness.run.tasks.alarms"


def alarm_images(draft: Draft, ranked: int) -> int:
    """Return on how many evaluate images, from the first on, false alarms are looked for; 0 where they are not.

    Args:
        draft: the plan.
        ranked: number of images that every adaptive attack covers.
    """
    return min(ALARM_IMAGES, ranked) if any(p.against and leads(draft, p) for p in draft.applicable) else 0


def plan_alarms(draft: Draft, model_plan: ModelPlan, part: PerturbationPart, ranked: int) -> None:
    """Plan the search beside an attack on a detector, whose scores are planned: once for each detector."""
    if not leads(draft, part) or part.against in model_plan.alarms:
        return
    target = target_plan(draft, model_plan, part)
    seed = derive_seed(model_plan.seed, "false-alarm", canonical([part.name, draft.portable(part)]))
    logits, clean = model_plan.clean["evaluate"][0].logits, model_plan.scores[part.against, "clean"]
    stop = alarm_images(draft, ranked)
    key = content_key(
        "false-alarm", model=model_plan.key, logits=logits, clean=clean, images=stop, seed=seed,
        identity=[part.name, draft.portable(part)], against=target.keys(), code=code_digest(_SEARCHING),
        limits=[draft.suite.limits.forwards, draft.suite.limits.backwards], versions=versions("torch"),
    )  # fmt: skip
    job = AlarmJob(model_plan.key, part, target, logits, clean, stop, seed)
    name = draft.name(model_plan, "false-alarm", part.label)
    model_plan.alarms[part.against] = draft.add(key, name, job, (model_plan.key, logits, clean, *target.keys()), stop)
