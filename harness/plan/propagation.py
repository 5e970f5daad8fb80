"""Plans the propagation report: its encoders once, then one cell per perturbation."""

from __future__ import annotations

from ..core.code_digests import code_digest
from ..core.content_keys import content_key, versions
from ..core.registry import ANALYSES
from ..core.seeds import derive_seed
from ..tracing.traces import Need
from .cells import EncodersJob, PropagationJob
from .draft import Draft, all_keys, cut
from .plan import ModelPlan

DECIDES_NO_NUMBER = True


def propagation_needs() -> tuple[Need, ...]:
    """Return what the report reads."""
    needs: tuple[Need, ...] = ANALYSES.get("propagation").NEEDS
    return needs


def plan_propagation(draft: Draft, model_plan: ModelPlan) -> None:
    """Plan the report for one model, all of whose perturbations are planned."""
    needs = draft.stored_needs(model_plan.part, propagation_needs())
    code = code_digest("harness.run.tasks.propagation", ANALYSES.entry("propagation").module)
    fit, clean = cut(model_plan.clean["fit"], needs), cut(model_plan.clean["evaluate"], needs)
    encoders = draft.add(
        content_key("encoders", inputs=all_keys(fit), code=code, versions=versions("torch")),
        draft.name(model_plan, "encoders"), EncodersJob(model_plan.key, fit), (model_plan.key, *all_keys(fit)),
        len(draft.sets.fit),
    )  # fmt: skip
    seed = derive_seed(model_plan.seed, "propagation", "target-class")
    for part in draft.planned:
        perturbed = cut(draft.perturbed_traces(model_plan, part.label, "evaluate", needs), needs)
        control = cut(draft.control_traces(model_plan, part.label, needs), needs)
        inputs = all_keys(clean, perturbed, control)
        made = model_plan.perturbs[part.label, "evaluate"] + model_plan.controls[part.label]
        model_plan.propagation[part.label] = draft.add(
            content_key("propagation", encoders=encoders, inputs=inputs, seed=seed, code=code),
            draft.name(model_plan, "propagation", part.label),
            PropagationJob(model_plan.key, encoders, clean, perturbed, control, seed),
            (model_plan.key, encoders, *inputs, *made), len(draft.sets.evaluate),
        )  # fmt: skip
