"""What several analyses say of uncertainty: intervals of shares, means, AUROCs and correlations."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .detection import percentile_interval

FloatArray = NDArray[np.float64]
RESAMPLES = 1000


def image_weights(n: int, resamples: int, seed: int) -> FloatArray:
    """Weights of ``n`` images for a Bayesian bootstrap (Rubin 1981), float64 (resamples, n), rows summing to 1."""
    drawn = np.random.default_rng(seed).standard_exponential((resamples, n))
    return np.asarray(drawn / drawn.sum(1, keepdims=True))


def mean_interval(values: Tensor | FloatArray, seed: int, level: float = 0.95) -> tuple[float, float, float]:
    """Return the mean of one number per image, and its interval; NaN for no image."""
    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        return math.nan, math.nan, math.nan
    mean = float(x.mean())
    return mean, *percentile_interval(image_weights(len(x), RESAMPLES, seed) @ x, level, mean)


def mean_intervals(values: Tensor, seed: int) -> list[tuple[float, float, float]]:
    """:func:`mean_interval` of each column of (n, k)."""
    return [mean_interval(column, seed) for column in values.double().T]


def median_interval(values: Tensor) -> tuple[float, float, float]:
    """Median and its interval from order statistics; infinite ends, where images are few, become the extremes."""
    from scipy.stats import quantile_test

    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        return math.nan, math.nan, math.nan
    found = quantile_test(x, q=0.0, p=0.5).confidence_interval()
    low, high = (
        float(end) if math.isfinite(end) else edge for end, edge in ((found.low, x.min()), (found.high, x.max()))
    )
    return float(np.median(x)), float(low), float(high)


def proportion(count: int, n: int) -> tuple[float, float, float]:
    """Return a share and its interval (Wilson 1927); NaN for n = 0."""
    from scipy.stats import binomtest

    if not n:
        return math.nan, math.nan, math.nan
    found = binomtest(count, n).proportion_ci(method="wilson")
    return count / n, float(found.low), float(found.high)


def auroc_difference(
    score: FloatArray, other: FloatArray, positive: NDArray[np.bool_], seed: int
) -> tuple[float, float, float]:
    """AUROC of ``score`` minus that of ``other`` on the same images, and its interval over images.

    Args:
        score: float64 (n,).
        other: float64 (n,).
        positive: which images shall score high; at least one is and one is not.
        seed: of the resampling.
    """
    margin = _wins(score, positive) - _wins(other, positive)
    up = image_weights(int(positive.sum()), RESAMPLES, seed)
    down = image_weights(int((~positive).sum()), RESAMPLES, seed + 1)
    estimate = float(margin.mean())
    return estimate, *percentile_interval(np.einsum("rp,rp->r", up @ margin, down), 0.95, estimate)


def _wins(score: FloatArray, positive: NDArray[np.bool_]) -> FloatArray:
    """1 where a positive scores above a negative, 1/2 for a tie, float64 (positives, negatives)."""
    up, down = score[positive][:, None], score[~positive]
    return np.asarray((up > down) + 0.5 * (up == down))


def fisher_interval(estimate: float, resampled: FloatArray) -> tuple[float, float, float]:
    """Return a correlation with an interval from the spread of its resampled values on Fisher's scale.

    A plain percentile interval would lie too low: resampling adds noise to both sides of a correlation once more.
    """
    known = resampled[np.isfinite(resampled)]
    if not math.isfinite(estimate) or len(known) < 2:
        return estimate, math.nan, math.nan
    spread = 1.96 * float(np.arctanh(np.clip(known, -0.999999, 0.999999)).std())
    centre = math.atanh(max(-0.999999, min(0.999999, estimate)))
    return estimate, math.tanh(centre - spread), math.tanh(centre + spread)
