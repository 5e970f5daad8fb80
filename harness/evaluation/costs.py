"""What a run costs: seconds of its cells; of each detector time to fit and to score, memory, and size."""

from __future__ import annotations

from typing import Any

from .finished import Finished

MIB = 2**20


def detector_costs(found: Finished) -> list[dict[str, Any]]:
    """Return one row for each model, seed and detector that was fitted, in the suite's order.

    ``fit_seconds`` and ``fit_peak_mib`` (by how much resident memory rose, ``None`` where the system does not tell)
    are of the fit alone, ``score_ms_per_image`` of the score alone: traces, which all detectors share, extra views and
    gradients count in neither. ``state_mib`` is the size of what is kept. All were measured where the cell was
    computed, which for a cell from a shared cache may have been another machine.
    """
    plan, store, summary = found.plan, found.store, found.summary
    rows = []
    for model_plan in plan.models:
        for part in plan.suite.detectors:
            key = model_plan.fits.get(part.label)
            if key is None or key not in summary.done:
                continue
            record = store.record(key)
            peak = record.values.get("peak_bytes")
            scores = [k for (label, _), k in model_plan.scores.items() if label == part.label and k in summary.done]
            seconds = sum(store.values(k).get("score_seconds", 0.0) for k in scores)
            images = sum(store.values(k).get("rows", plan.cells[k].images) for k in scores)
            rows.append(
                {
                    "dataset": plan.suite.data.name,
                    "model": model_plan.part.label,
                    "seed": model_plan.seed,
                    "detector": part.label,
                    "fit_seconds": record.values.get("fit_seconds"),
                    "fit_peak_mib": None if peak is None else peak / MIB,
                    "state_mib": record.size / MIB,
                    "score_ms_per_image": 1000 * seconds / images if images else None,
                }
            )
    return rows


def timing_rows(found: Finished) -> list[dict[str, Any]]:
    """Return what the cells of this run cost, by what and name; the one table that differs between runs."""
    spent: dict[tuple[str, str, str, str, str], list[float]] = {}
    for cell in found.plan.cells.values():
        if cell.key not in found.summary.done:
            continue
        name = cell.name
        # Seeds are sorted as the text that the table holds.
        row = (name.dataset, name.model, str(name.seed), name.kind, name.part or name.model)
        total = spent.setdefault(row, [0.0, 0.0])
        total[0] += found.store.record(cell.key).seconds
        total[1] += found.store.values(cell.key).get("rows", cell.images)
    return [
        {
            "dataset": dataset,
            "model": model,
            "seed": seed,
            "what": what,
            "name": name,
            "seconds": seconds,
            "ms_per_image": 1000 * seconds / images if images else None,
        }
        for (dataset, model, seed, what, name), (seconds, images) in sorted(spent.items())
    ]
