"""The budget, whose range depends on its norm; other parameters have theirs in their annotations."""

from __future__ import annotations

import math

from ...harness.core.errors import UsageError


def budget(eps: float, norm: str = "linf") -> float:
    """``eps`` as a float, if it is finite, not negative and, for L-inf, at most 1 (images lie in [0, 1])."""
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not math.isfinite(eps) or eps < 0:
        raise UsageError(f"eps = {eps!r}: give a finite number that is not negative, such as 8/255.")
    if norm == "linf" and eps > 1:
        raise UsageError(f"eps = {eps!r}: images lie in [0, 1], so an L-inf budget is at most 1 (is it 8/255?).")
    return float(eps)
