"""Holm's correction for several comparisons (Holm 1979)."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the p-values after Holm's step-down correction; ``None`` stays and does not count.

    A corrected value below a level means: significant at that level, with the chance of any wrong significance among
    all comparisons at most that level, however they depend on each other.

    Args:
        p_values: in [0, 1], in any order.

    Returns:
        One value in [0, 1] for each, in the order given; equal p-values get equal values.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    found: list[float | None] = [None] * len(p_values)
    worst = 0.0
    for rank, (p, i) in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - rank) * p))
        found[i] = worst
    return found
