"""What each detector costs: time to fit and to score, memory, and the size of what it learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .planning import Plan
from .runner import Summary
from .store import Store

MIB = 2**20


def detector_costs(
    plan: Plan, store: Store, summary: Summary, timings: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """One row for each model, seed and detector that was fitted, in the suite's order.

    ``fit_seconds`` and ``fit_peak_mib`` (by how much resident memory rose, ``None`` where the system does not tell)
    are of the fit alone, ``score_ms_per_image`` of the score alone: the forward pass, which all detectors share, and
    extra views and gradients count in neither. ``state_mib`` is the size of what is kept.

    Args:
        timings: the rows of ``timings.csv``.
    """
    per_image = {(t["model"], t["seed"], t["name"]): t["ms_per_image"] for t in timings if t["what"] == "score"}
    rows = []
    for subject in plan.subjects:
        for part in plan.suite.detectors:
            key = subject.fits.get(part.label)
            if key is None or key not in summary.done:
                continue
            record, at = store.record(key), (subject.part.label, str(subject.seed), part.label)
            peak = record.values.get("peak_bytes")
            rows.append(
                {
                    "dataset": plan.suite.data.name,
                    "model": subject.part.label,
                    "seed": subject.seed,
                    "detector": part.label,
                    "fit_seconds": record.seconds,
                    "fit_peak_mib": None if peak is None else peak / MIB,
                    "state_mib": record.size / MIB,
                    "score_ms_per_image": per_image.get(at),
                }
            )
    return rows
