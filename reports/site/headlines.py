"""The verdict on a leaderboard with its numbers, as the page says it."""

from __future__ import annotations

from collections.abc import Sequence

from ...harness.evaluation.verdict import Standing, cost, sentence, verdict
from ..read.run_directory import Row
from .leaderboard import ABLATION, percent, place, scope


def _standing(row: Row) -> Standing:
    prices = (row.number(name) for name in ("price", "price_low", "price_high", "accuracy_rank"))
    return Standing(row.text("detector"), row.number("rank"), row.text("not_ranked_reason"), *prices)


def headline(rows: Sequence[Row]) -> dict[str, str]:
    """Return the verdict on one table, and the best ranked detector against the ablation, in numbers."""
    standings = [_standing(r) for r in sorted(rows, key=place)]
    found = verdict(standings)
    ablation = next((r for r in rows if r.text("detector") == ABLATION), None)
    without = None if ablation is None else ablation.number("robust_accuracy_at_fpr_5")
    about = {
        "kind": found.kind,
        "by_price": "yes" if found.by_price else "",
        "sentence": sentence(found),
        "cost": cost(standings),
        "ablation": "" if without is None else percent(without),
    }
    able = [r for r in rows if r.number("rank") is not None and r.text("detector") != ABLATION]
    if not able:
        return about
    best = min(able, key=place)
    low, high = best.number("robust_accuracy_low"), best.number("robust_accuracy_high")
    adaptive, worst = best.number("adaptive_undetected_at_fpr_5"), best.number("worst_auroc")
    unseen = [r for r in able if r.number("mean_auroc_unseen") is not None]
    leader = max(unseen, key=lambda r: r.number("mean_auroc_unseen") or 0.0, default=None)
    at_most = "at most " if best.number("robust_accuracy_is_upper_bound") else ""
    return about | {
        "detector": best.text("detector"),
        "robust": at_most + percent(best.number("robust_accuracy_at_fpr_5")),
        "interval": f"{percent(low)} to {percent(high)}" if low is not None and high is not None else "",
        "scope": scope(best),
        "adaptive": "" if adaptive is None else percent(adaptive),
        "worst": "" if worst is None else f"{worst:.2f}",
        "worst_perturbation": best.text("worst_perturbation"),
        "leader": leader.text("detector") if leader is not None else "",
        "leader_auroc": f"{leader.number('mean_auroc_unseen'):.2f}" if leader is not None else "",
    }
