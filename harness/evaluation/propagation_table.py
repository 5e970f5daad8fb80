"""The rows of ``propagation.csv``."""

from __future__ import annotations

from typing import Any

from ..core.registry import ANALYSES
from ..plan import ModelPlan
from ..store.stored_traces import tap_infos
from .finished import Finished
from .problems import Problems

Row = dict[str, Any]
POPULATIONS = ("success", "failed", "control", "target-class")


def propagation_rows(found: Finished, problems: Problems, model_plan: ModelPlan) -> list[Row]:
    """Return the rows of ``propagation.csv`` for one model and seed."""
    report = ANALYSES.get("propagation")
    taps = [t.name for t in tap_infos(found.store.values(model_plan.key))]
    rows: list[Row] = []
    for label, key in model_plan.propagation.items():
        if key not in found.summary.done:
            continue
        base = {
            "dataset": found.plan.suite.data.name,
            "model": model_plan.part.label,
            "seed": model_plan.seed,
            "perturbation": label,
        }
        with problems.of(f"propagation of {label} ({model_plan.part.label}, seed {model_plan.seed})"):
            stored = found.store.load(key)
            for population in POPULATIONS:
                values, whole = stored[population], stored[f"cka:{population}"]
                rows += report.propagation_rows(base, population, taps, values, whole)
    return rows
