"""The interval of a mean over seeds: what the images leave open, and what the seeds do."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

# What the seeds' spread and their mean are raised by, in images, where so few are robust (or are not) that seeds may
# agree by luck; chosen by simulation, tests/simulation/test_seeds.py.
_EXTRA_VARIANCE, _LEAST = 0.5, 1.5


def seed_interval(
    low: float, high: float, per_seed: Sequence[float], level: float = 0.95, *, images: int | None = None
) -> tuple[float, float]:
    """Return the interval of a share's expectation over images and seeds.

    Both sources of error are put on the logit scale and added in quadrature on each side: the distance h from the mean
    m to the end of the given interval, and Student's t with S − 1 degrees of freedom times s / sqrt(S) / (m (1 − m)),
    s the standard deviation of the S seeds. On the scale of shares the sum covers too little close to 0 and 1, where
    the distribution over seeds is skewed.

    Seeds of a share close to 0 or 1 may agree by luck, most of all where all are 0: s would be 0, and three or five
    seeds do not show that. With ``images`` given, the variance over seeds is therefore raised by that of half a squared
    image, s² + 1 / (2 images²), and m is kept 1.5 / S images away from 0 and 1, from three seeds on. Elsewhere this
    changes little.

    Args:
        low: lower end, in [0, 1], of the interval around the mean of ``per_seed`` that takes the seeds as fixed.
        high: its upper end.
        per_seed: the share of each of S seeds, in [0, 1].
        level: of both intervals, in (0, 1).
        images: how many images each share is of.

    Returns:
        (low, high) in [0, 1], which holds the interval given; with one seed as given.

    Raises:
        ValueError: if there is no seed, or the mean lies outside the interval.
    """
    if not len(per_seed):
        raise ValueError("an interval over seeds needs at least one seed")
    if len(per_seed) == 1:
        return low, high
    seeds, mean, variance = len(per_seed), float(np.mean(per_seed)), float(np.var(per_seed, ddof=1))
    if not low - 1e-9 <= mean <= high + 1e-9:
        raise ValueError(f"the mean {mean} lies outside its interval ({low}, {high})")
    centre = mean
    # With two seeds t is 12.7, and on the logit scale these additions alone would reach from 0 to 1.
    if images is not None and seeds > 2:
        variance += _EXTRA_VARIANCE / images**2
        least = min(0.5, _LEAST / seeds / images)
        centre = min(max(mean, least), 1 - least)
    if not 0 < centre < 1 or not variance:
        return low, high
    t = -float(stdtrit(seeds - 1, (1 - level) / 2))
    reach = t * math.sqrt(variance / seeds) / (centre * (1 - centre))
    logit = _logit(centre)
    down = logit - math.hypot(max(0.0, logit - _logit(low)), reach)
    up = logit + math.hypot(max(0.0, _logit(high) - logit), reach)
    return min(low, _logistic(down)), max(high, _logistic(up))


def _logit(share: float) -> float:
    if share <= 0:
        return -math.inf
    return math.inf if share >= 1 else math.log(share / (1 - share))


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
