"""``attacks.csv``: what every attack comes to against every detector, as it is and after rounding to 8 bits.

One row per attack, budget and detector: sorted by ``eps`` within a group these are the budget curves, and adaptive
attacks against rows of other detectors are the transfer matrix.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from ...attacks.base.kinds import HOSTILE
from ..statistics.detection import ALPHAS, threshold, threshold_reason
from .results import BoolArray, Cell, DetectorResult, FloatArray, PerturbationResult, Sources


def attack_rows(
    sources: Sources,
    perturbations: Sequence[PerturbationResult],
    detectors: Sequence[DetectorResult],
) -> list[dict[str, Cell]]:
    """Return the rows for one data set, model and seed.

    - ``success_rate``: the share of the attacked images that are misclassified.
    - ``flagged_at_fpr_5``: of the successes, the share with a score above the calibrated threshold.
    - ``undetected_success_at_fpr_5``: the share of all attacked images that are misclassified and pass.
    - ``parts``: of an adaptive attack, how many successes each of its parts made, as JSON.
    - ``surrogate_follows``: of an adaptive attack that had to look in its rehearsal, the rank correlation of suspicions
      with true scores while it lowers the suspicion: the detector's ``own`` and the ``student``'s, as JSON.
    - the same three with ``_8bit``, after rounding; empty for attacks against other detectors.

    ``detector`` is ``none`` for the attack without any detector.
    """
    rows: list[dict[str, Cell]] = []
    thresholds = {
        d.label: threshold(d.calibrate, ALPHAS["5"])
        for d in detectors
        if not d.failure() and not threshold_reason(len(d.calibrate), ALPHAS["5"])
    }
    for p in perturbations:
        if p.kind not in HOSTILE or p.reason or not len(p.index):
            continue
        after = next((r for r in p.rounded if r.how == "8-bit" and not r.reason), None)
        head: dict[str, Cell] = {
            "dataset": sources.dataset,
            "model": sources.model,
            "seed": sources.seed,
            "perturbation": p.label,
            "group": p.group,
            "kind": p.kind,
            "against": p.against or "",
            "norm": p.norm,
            "eps": p.eps,
            "n": len(p.index),
            "parts": json.dumps(p.parts, sort_keys=True) if p.parts else "",
            "surrogate_follows": json.dumps(p.follows, sort_keys=True) if p.follows else "",
        }
        nothing = np.zeros(len(p.index))
        seen = after if p.against is None else None
        rows.append(
            {
                **head,
                "detector": "none",
                **_figures("", p.success, nothing, 0.0),
                **_figures("_8bit", seen.success if seen else None, nothing, 0.0),
            }
        )
        for d in detectors:
            t = thresholds.get(d.label)
            scores = d.scores(p)[0]
            if t is None or scores is None:
                continue
            later = d.rounded_scores(p, "8-bit")[0] if after else None
            rows.append(
                {
                    **head,
                    "detector": d.label,
                    **_figures("", p.success, scores, t),
                    **_figures("_8bit", after.success if after and later is not None else None, later, t),
                }
            )
    return rows


def _figures(suffix: str, success: BoolArray | None, scores: FloatArray | None, t: float) -> dict[str, Cell]:
    names = ("success_rate", "flagged_at_fpr_5", "undetected_success_at_fpr_5")
    if success is None or scores is None:
        return {f"{name}{suffix}": None for name in names}
    flagged = np.asarray(scores > t)
    values = (
        float(success.mean()),
        float(flagged[success].mean()) if success.any() else None,
        float((success & ~flagged).mean()),
    )
    return {f"{name}{suffix}": value for name, value in zip(names, values, strict=True)}
