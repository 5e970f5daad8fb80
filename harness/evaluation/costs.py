"""What each detector costs: time to fit and to score, memory, and the size of what it learned."""

from __future__ import annotations

from typing import Any

from ..plan import Plan
from ..plan.summary import Summary
from ..store.run_directory import Store

MIB = 2**20


def detector_costs(plan: Plan, store: Store, summary: Summary) -> list[dict[str, Any]]:
    """One row for each model, seed and detector that was fitted, in the suite's order.

    ``fit_seconds`` and ``fit_peak_mib`` (by how much resident memory rose, ``None`` where the system does not tell)
    are of the fit alone, ``score_ms_per_image`` of the score alone: traces, which all detectors share, extra views and
    gradients count in neither. ``state_mib`` is the size of what is kept. All were measured where the cell was
    computed, which for a cell from a shared cache may have been another machine.
    """
    rows = []
    for subject in plan.subjects:
        for part in plan.suite.detectors:
            key = subject.fits.get(part.label)
            if key is None or key not in summary.done:
                continue
            record = store.record(key)
            peak = record.values.get("peak_bytes")
            scores = [k for (label, _), k in subject.scores.items() if label == part.label and k in summary.done]
            seconds = sum(store.values(k).get("score_seconds", 0.0) for k in scores)
            images = sum(store.values(k).get("rows", plan.cells[k].images) for k in scores)
            rows.append(
                {
                    "dataset": plan.suite.data.name,
                    "model": subject.part.label,
                    "seed": subject.seed,
                    "detector": part.label,
                    "fit_seconds": record.values.get("fit_seconds"),
                    "fit_peak_mib": None if peak is None else peak / MIB,
                    "state_mib": record.size / MIB,
                    "score_ms_per_image": 1000 * seconds / images if images else None,
                }
            )
    return rows
