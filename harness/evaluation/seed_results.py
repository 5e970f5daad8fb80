"""Everything measured for one model and seed; a part whose results cannot be read loses its own rows alone."""

from __future__ import annotations

from dataclasses import replace

from ..plan import ModelPlan
from ..suite.resolved import DetectorPart, PerturbationPart
from .detector_results import detector_result
from .finished import Finished
from .perturbation_results import perturbation_result
from .problems import Problems
from .radius_results import radii_of
from .results import DetectorResult, PerturbationResult, SeedResult, Sources
from .sanity import adaptive_flags, perturbation_flags
from .tables import perturbation_rows


def seed_result(found: Finished, problems: Problems, model_plan: ModelPlan) -> SeedResult | None:
    """Return everything measured for one model and seed; ``None`` where the clean passes are missing."""
    if found.without_clean(model_plan):
        return None
    calibrate, evaluate = found.predictions(model_plan, "calibrate"), found.predictions(model_plan, "evaluate")
    made = found.store.values(model_plan.key)
    sources = Sources(
        found.plan.suite.data.name, model_plan.part.label, model_plan.seed,
        found.plan.sets.calibrate.numpy(), found.labels("calibrate").numpy(), calibrate.numpy(),
        found.plan.sets.evaluate.numpy(), found.labels("evaluate").numpy(), evaluate.numpy(),
        bool(made["gradient"]), tuple(made.get("flags", ())),
    )  # fmt: skip
    perturbations = [_perturbation(found, problems, sources, model_plan, p) for p in found.plan.suite.perturbations]
    doubts = perturbation_flags(perturbations)
    perturbations = [replace(p, flags=(*p.flags, *doubts.get(p.label, ()))) for p in perturbations]
    detectors = [_detector(found, problems, sources, model_plan, d, perturbations) for d in found.plan.suite.detectors]
    detectors = [replace(d, flags=(*d.flags, *adaptive_flags(d, perturbations))) for d in detectors]
    return SeedResult(sources, perturbations, detectors, radii_of(found, model_plan))


def _perturbation(
    found: Finished, problems: Problems, sources: Sources, model_plan: ModelPlan, part: PerturbationPart
) -> PerturbationResult:
    """Return the result of a perturbation if its rows can be made, else the reason why not."""

    def made() -> PerturbationResult:
        result = perturbation_result(found, model_plan, part)
        perturbation_rows(sources, SeedResult(sources, [result], []).perturbations)
        return result

    def failed(reason: str) -> PerturbationResult:
        kind = found.plan.facts.perturbations[part.label].kind
        return PerturbationResult(part.label, kind, "", "", against=part.against or None, reason=reason)

    name = f"rows of {part.label} ({model_plan.part.label}, seed {model_plan.seed})"
    return problems.attempt(name, made, failed)


def _detector(
    found: Finished, problems: Problems, sources: Sources, model_plan: ModelPlan, part: DetectorPart,
    perturbations: list[PerturbationResult],
) -> DetectorResult:  # fmt: skip
    """Return the result of a detector if it fits the others', else the reason why not."""

    def made() -> DetectorResult:
        result = detector_result(found, model_plan, part, perturbations)
        return SeedResult(sources, perturbations, [result]).detectors[0]

    name = f"rows of {part.label} ({model_plan.part.label}, seed {model_plan.seed})"
    return problems.attempt(name, made, lambda reason: DetectorResult(part.label, reason=reason))
