"""The rows of tables that analyses give which are part of every run."""

from __future__ import annotations

from typing import Any

from ...analyses.base import measured_class
from ..core.state import decode
from ..plan import ModelPlan
from ..suite.instances import standing_analyses
from .finished import Finished
from .problems import Problems

Row = dict[str, Any]


def standing_rows(found: Finished, problems: Problems, model_plan: ModelPlan) -> dict[str, list[Row]]:
    """The rows of one model and seed by the analysis, whose name is that of its table; one perturbation at a time."""
    model = {"dataset": found.plan.suite.data.name, "model": model_plan.part.label, "seed": model_plan.seed}
    rows: dict[str, list[Row]] = {}
    for name, analysis in standing_analyses().items():
        of = rows[name] = []
        for label, key in model_plan.standing[name].items():
            if key not in found.summary.done:
                continue
            with problems.of(f"{name} of {label} ({model_plan.part.label}, seed {model_plan.seed})"):
                value = found.store.values(key)["measured"]
                measured = decode(measured_class(analysis), found.store.load(key), value)
                (table,) = analysis.report(measured).tables
                of += [model | dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return rows
