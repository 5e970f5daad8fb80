"""Plans the search for images that pass all detectors of a suite at once."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.code_digests import code_digest
from ..core.content_keys import canonical, content_key, versions
from ..core.seeds import derive_seed
from ..suite.resolved import PerturbationPart
from .cells import Opponent, PastAllJob
from .draft import Draft
from .perturbations import leads, target_plan
from .plan import ModelPlan

DECIDES_NO_NUMBER = True

# How many of the first evaluate images are looked at, of those that every adaptive attack covers.
PAST_IMAGES = 32
_SEARCHING = "harness.run.tasks.past_all"


def plan_past_all(
    draft: Draft, model_plan: ModelPlan, adaptive: Sequence[PerturbationPart], ranked: int
) -> None:  # fmt: skip
    """Plan the search where at least two detectors are attacked by the worst case, whose cells are planned.

    Detectors that combine others are not among those that an image shall pass: what they say of it is the question.

    Args:
        draft: the plan.
        model_plan: the model.
        adaptive: all attacks that know a detector.
        ranked: number of images that every one of them covers.
    """
    attacks = {p.against: p for p in reversed(adaptive) if leads(draft, p)}
    parts = [attacks[d.label] for d in draft.suite.detectors if d.label in attacks]
    combining = [p for p in parts if draft.detectors[p.against].made_of]
    opponents = tuple(_opponent(draft, model_plan, p) for p in parts if p not in combining)
    if len(opponents) < 2:
        return
    judges = tuple(target_plan(draft, model_plan, p) for p in combining)
    part, logits, stop = parts[0], model_plan.clean["evaluate"][0].logits, min(PAST_IMAGES, ranked)
    identity = [part.name, draft.portable(part)]
    seed = derive_seed(model_plan.seed, "past-all", canonical(identity))
    against, judging = [one.keys() for one in opponents], [one.keys() for one in judges]
    keys = dict.fromkeys(key for keys in (*against, *judging) for key in keys)
    key = content_key(
        "past-all", model=model_plan.key, logits=logits, images=stop, seed=seed, identity=identity,
        against=against, judges=judging, code=code_digest(_SEARCHING), versions=versions("torch"),
        limits=[draft.suite.limits.forwards, draft.suite.limits.backwards],
    )  # fmt: skip
    job = PastAllJob(model_plan.key, part, opponents, judges, logits, stop, seed)
    name = draft.name(model_plan, "past-all")
    model_plan.past_all = draft.add(key, name, job, (model_plan.key, logits, *keys), stop)


def _opponent(draft: Draft, model_plan: ModelPlan, part: PerturbationPart) -> Opponent:
    made = model_plan.perturbs[part.label, "evaluate"][0]
    return Opponent(target_plan(draft, model_plan, part), model_plan.scores[part.against, "clean"], made)
