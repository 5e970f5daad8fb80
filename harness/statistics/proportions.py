"""Intervals of shares."""

from __future__ import annotations

import math
from statistics import NormalDist

_Z = NormalDist().inv_cdf(0.975)


def wilson(value: float, n: float) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a share of ``n`` (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    Args:
        value: the share, in [0, 1].
        n: observations, at least 1.

    Returns:
        (low, high) in [0, 1]; holds the share.
    """
    centre = (value + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(max(0.0, value * (1 - value)) / n + _Z**2 / (4 * n**2))
    # The centre lies between value and 1/2: at 0 and 1 a bound equals the value up to the last digit.
    return min(value, max(0.0, centre - half)), max(value, min(1.0, centre + half))
