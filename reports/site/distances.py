"""Undetected success by budget, from the smallest distances that were found of each image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..read.run_directory import Row
from .leaderboard import ABLATION
from .matrices_and_curves import grouped

SMALLEST = "smallest found"
# From one budget to the next, and the smallest one as a share of the threat's.
_RUNG, _LEAST = 1.25, 0.25
_MOST_RUNGS = 64
# Curves, more than any run has: detectors times seeds.
_MOST_CURVES = 10_000


def distance_rows(radii: Sequence[Row], threat: tuple[str, float | None]) -> list[Row]:
    """Return rows as ``attacks.csv`` has them of one more attack, which finds at each budget what was found within it.

    None where a file holds more curves than a run can have.

    Args:
        radii: rows of ``radii.csv`` of one model.
        threat: norm and budget that the ranking is about, in whose norm the distances are.
    """
    norm, eps = threat
    rows: list[Row] = []
    curves = grouped(radii, "detector", "seed")
    for (detector, seed), own in curves.items() if len(curves) <= _MOST_CURVES else ():
        reach = next((value for r in own if (value := r.number("reach")) is not None), 0.0)
        r0, rd = (np.array([_beyond(r.number(name)) for r in own]) for name in ("r0", "rd"))
        for budget in _budgets(eps or 0.0, reach):
            fooled = int((r0 <= budget).sum())
            passed = int(((r0 <= budget) & (rd <= budget)).sum())
            # Each detector's distances were searched by one who knows it.
            against = "" if detector == ABLATION else detector
            texts = {"norm": norm, "group": SMALLEST, "perturbation": SMALLEST, "against": against,
                     "detector": detector, "kind": "adaptive", "seed": seed}  # fmt: skip
            numbers = {"eps": budget, "n": float(len(own)), "success_rate": fooled / len(own),
                       "flagged_at_fpr_5": 1 - passed / fooled if fooled else None,
                       "undetected_success_at_fpr_5": passed / len(own)}  # fmt: skip
            rows.append(Row(texts, numbers))
    return rows


def _beyond(distance: float | None) -> float:
    """Return a distance; infinite where none was found."""
    return math.inf if distance is None else distance


def _budgets(eps: float, reach: float) -> list[float]:
    """Return budgets from the large one downwards, each the next smaller by a fifth, to a quarter of the threat's."""
    if not (0 < eps <= reach and math.isfinite(reach)):
        return []
    # The quotient of an untrusted file's numbers may be no number.
    rungs = min(int((math.log(reach) - math.log(eps) - math.log(_LEAST)) / math.log(_RUNG)) + 1, _MOST_RUNGS)
    return sorted(float(f"{reach / _RUNG**j:.3g}") for j in range(rungs))
