"""The rows of ``propagation.csv``."""

from __future__ import annotations

from typing import Any

from ..core.registry import ANALYSES
from ..plan import Subject
from ..store.stored_traces import tap_infos
from .finished import Finished
from .problems import Problems

Row = dict[str, Any]
POPULATIONS = ("success", "failed", "control", "target-class")


def propagation_rows(found: Finished, problems: Problems, subject: Subject) -> list[Row]:
    """The rows of ``propagation.csv`` for one model and seed."""
    report = ANALYSES.get("propagation")
    taps = [t.name for t in tap_infos(found.store.values(subject.key))]
    rows: list[Row] = []
    for label, key in subject.propagation.items():
        if key not in found.summary.done:
            continue
        base = {
            "dataset": found.plan.suite.data.name,
            "model": subject.part.label,
            "seed": subject.seed,
            "perturbation": label,
        }
        with problems.of(f"propagation of {label} ({subject.part.label}, seed {subject.seed})"):
            stored = found.store.load(key)
            for population in POPULATIONS:
                values, whole = stored[population], stored[f"cka:{population}"]
                rows += report.propagation_rows(base, population, taps, values, whole)
    return rows
