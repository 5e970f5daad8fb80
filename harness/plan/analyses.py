"""Plans analyses: one cell for each analysis and model, over traces that the rest of the run has anyway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.code_digests import code_digest, part_digest
from ..core.content_keys import canonical, content_key, versions
from ..core.registry import ANALYSES
from ..core.seeds import derive_seed
from .cells import AnalysisJob, PerturbedKeys
from .draft import Draft, all_keys, cut
from .plan import ModelPlan

DECIDES_NO_NUMBER = True


def plan_analyses(draft: Draft, model_plan: ModelPlan) -> None:
    """Plan every analysis of one model, all of whose oblivious perturbations are planned.

    It sees those that are not known to be lost: what ten attacks show is shown although an eleventh failed.
    """
    lost = draft.lost.get(model_plan.key, ())
    for part in draft.suite.analyses:
        analysis = draft.analyses[part.label]
        needs = draft.stored_needs(model_plan.part, analysis.needs)
        fit, evaluate = cut(model_plan.clean["fit"], needs), cut(model_plan.clean["evaluate"], needs)
        perturbed = []
        for p in draft.planned if analysis.reads_perturbed else ():
            # What was made against one detector says more about that detector than about the model.
            if not p.against and p.label not in lost:
                traces = cut(draft.perturbed_traces(model_plan, p.label, "evaluate", needs), needs)
                control = cut(draft.control_traces(model_plan, p.label, needs), needs)
                kind = draft.perturbations[p.label].info.kind
                perturbed.append(PerturbedKeys(p.label, kind, traces, control))
        groups = (fit, evaluate, *(t for p in perturbed for t in (p.traces, p.control)))
        inputs = all_keys(*groups)
        made = tuple(t.images.source for p in perturbed for t in (*p.traces, *p.control))
        identity = [part.name, part.params, part_digest(ANALYSES.entry(part.name), "analyses.base")]
        seed = derive_seed(model_plan.seed, "analysis", canonical([part.name, _flat(part.params)]))
        key = content_key(
            "analysis", identity=identity, inputs=inputs, seed=seed,
            code=code_digest("harness.run.tasks.analyses"),
            versions=versions("torch", "numpy", "scipy", "scikit-learn"),
        )  # fmt: skip
        job = AnalysisJob(model_plan.key, part, fit, evaluate, tuple(perturbed), seed)
        name = draft.name(model_plan, "analysis", part.label)
        images = len(draft.sets.fit) + len(draft.sets.evaluate)
        model_plan.analyses[part.label] = draft.add(key, name, job, (model_plan.key, *inputs, *made), images)


def _flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters without their tables, by which draws are seeded: how they are grouped moves no number."""
    found = {name: value for name, value in params.items() if not isinstance(value, Mapping)}
    for table, values in params.items():
        for name, value in values.items() if isinstance(values, Mapping) else ():
            found[f"{table}_{name}" if name in found else name] = value
    return found
