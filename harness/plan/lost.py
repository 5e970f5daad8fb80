"""Which perturbations failed, so that analyses can be planned again without them."""

from __future__ import annotations

from collections.abc import Collection, Set

from .cells import AnalysisJob
from .draft import all_keys
from .plan import Plan

DECIDES_NO_NUMBER = True


def lost_perturbations(plan: Plan, done: Set[str], ended: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the perturbations that held up analyses whose other inputs are there, by key of the model.

    Args:
        plan: as it was worked through.
        done: keys of the cells that are finished.
        ended: keys of the cells that failed or were skipped.
    """
    found: dict[str, dict[str, None]] = {}
    for model_plan in plan.models:
        for key in model_plan.analyses.values():
            job = plan.cells[key].job
            assert isinstance(job, AnalysisJob)  # noqa: S101 - for the type
            clean = {model_plan.key, *all_keys(job.fit, job.evaluate)}
            if key in ended and clean.issubset(done):
                for p in job.perturbed:
                    if any(k in ended for k in all_keys(p.traces, p.control)):
                        found.setdefault(model_plan.key, {})[p.label] = None
    return {key: tuple(labels) for key, labels in found.items()}
