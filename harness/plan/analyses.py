"""Plans analyses over traces that the rest of the run has anyway.

One that a suite names is a cell for each model; one that is part of every run is a cell for each perturbation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..core.cell_names import CellName
from ..core.code_digests import code_digest, part_digest
from ..core.content_keys import canonical, content_key, versions
from ..core.registry import ANALYSES
from ..core.seeds import derive_seed
from ..suite.resolved import Part, PerturbationPart
from .cells import AnalysisJob, PerturbedKeys, PreparationJob
from .draft import Draft, all_keys, cut
from .plan import ModelPlan

if TYPE_CHECKING:
    from ...analyses.base import Analysis

DECIDES_NO_NUMBER = True


def plan_analyses(draft: Draft, model_plan: ModelPlan) -> None:
    """Plan every analysis that the suite names of one model, all of whose oblivious perturbations are planned.

    It sees those that are not known to be lost: what ten attacks show is shown although an eleventh failed.
    """
    lost = draft.lost.get(model_plan.key, ())
    # What was made against one detector says more about that detector than about the model.
    readable = [p for p in draft.planned if not p.against and p.label not in lost]
    for part in draft.suite.analyses:
        analysis = draft.analyses[part.label]
        seed = derive_seed(model_plan.seed, "analysis", canonical([part.name, _flat(part.params)]))
        job = _job(draft, model_plan, part, analysis, readable if analysis.reads_perturbed else (), seed)
        name = draft.name(model_plan, "analysis", part.label)
        images = len(draft.sets.fit) + len(draft.sets.evaluate)
        model_plan.analyses[part.label] = _add(draft, job, name, images)


def plan_standing(draft: Draft, model_plan: ModelPlan) -> None:
    """Plan the analyses that are part of every run, all of whose perturbations are planned."""
    for name, analysis in draft.standing.items():
        part = Part(name, name, {})
        fit = cut(model_plan.clean["fit"], draft.stored_needs(model_plan.part, analysis.needs))
        prepared = _add(
            draft, PreparationJob(model_plan.key, part, fit), draft.name(model_plan, analysis.prepared_as),
            len(draft.sets.fit),
        )  # fmt: skip
        found = model_plan.standing[name] = {}
        for p in draft.planned:
            job = _job(draft, model_plan, part, analysis, (p,), model_plan.seed, prepared)
            found[p.label] = _add(draft, job, draft.name(model_plan, name, p.label), len(draft.sets.evaluate))


def _job(
    draft: Draft, model_plan: ModelPlan, part: Part, analysis: Analysis[Any], perturbations: Iterable[PerturbationPart],
    seed: int, prepared: str = "",
) -> AnalysisJob:  # fmt: skip
    needs = draft.stored_needs(model_plan.part, analysis.needs)
    fit, evaluate = cut(model_plan.clean["fit"], needs), cut(model_plan.clean["evaluate"], needs)
    perturbed = []
    for p in perturbations:
        traces = cut(draft.perturbed_traces(model_plan, p.label, "evaluate", needs), needs)
        control = cut(draft.control_traces(model_plan, p.label, needs), needs)
        perturbed.append(PerturbedKeys(p.label, draft.perturbations[p.label].info.kind, traces, control))
    return AnalysisJob(model_plan.key, part, fit, evaluate, tuple(perturbed), seed, prepared)


def _add(draft: Draft, job: AnalysisJob | PreparationJob, name: CellName, images: int) -> str:
    """Plan a cell, after its inputs."""
    part, groups, more, before = job.part, [job.fit], {}, []
    if isinstance(job, AnalysisJob):
        groups += [job.evaluate, *(t for p in job.perturbed for t in (p.traces, p.control))]
        before = [t.images.source for p in job.perturbed for t in (*p.traces, *p.control)]
        before += [job.prepared] if job.prepared else []
        more = {"seed": job.seed, "prepared": job.prepared}
    inputs = all_keys(*groups)
    key = content_key(
        "analysis" if isinstance(job, AnalysisJob) else "preparation",
        identity=[part.name, part.params, part_digest(ANALYSES.entry(part.name), "analyses.base")],
        inputs=inputs, code=code_digest("harness.run.tasks.analyses"),
        versions=versions("torch", "numpy", "scipy", "scikit-learn"), **more,
    )  # fmt: skip
    return draft.add(key, name, job, (job.model, *inputs, *before), images)


def _flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters without their tables, by which draws are seeded: how they are grouped moves no number."""
    found = {name: value for name, value in params.items() if not isinstance(value, Mapping)}
    for table, values in params.items():
        for name, value in values.items() if isinstance(values, Mapping) else ():
            found[f"{table}_{name}" if name in found else name] = value
    return found
