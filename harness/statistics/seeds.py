"""The interval of a mean over seeds: what the images leave open, and what the seeds do."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit


def seed_interval(low: float, high: float, per_seed: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the interval of a share's expectation over images and seeds.

    Args:
        low: lower end, in [0, 1], of the interval around the mean of ``per_seed`` that takes the seeds as fixed.
        high: its upper end.
        per_seed: the share of each of S seeds, in [0, 1].
        level: of both intervals, in (0, 1).

    Returns:
        (low, high) in [0, 1]; with one seed as given.

    Raises:
        ValueError: if there is no seed, or the mean lies outside the interval.
    """
    if not len(per_seed):
        raise ValueError("an interval over seeds needs at least one seed")
    if len(per_seed) == 1:
        return low, high
    mean, seeds = float(np.mean(per_seed)), len(per_seed)
    if not low - 1e-9 <= mean <= high + 1e-9:
        raise ValueError(f"the mean {mean} lies outside its interval ({low}, {high})")
    reach = -float(stdtrit(seeds - 1, (1 - level) / 2)) * float(np.std(per_seed, ddof=1)) / math.sqrt(seeds)
    return max(0.0, mean - math.hypot(mean - low, reach)), min(1.0, mean + math.hypot(high - mean, reach))
