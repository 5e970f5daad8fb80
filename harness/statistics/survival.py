"""Medians of values of which some are only known to be larger than something (right-censored)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .detection import evaluate_weights
from .intervals import Estimate
from .sign_flip import sign_flip_p

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def median(values: FloatArray, censored: BoolArray, level: float = 0.95) -> Estimate:
    """Return the median by Kaplan and Meier (1958), with an interval that resamples the images.

    Where half of the values or more are censored there is no median: the number returned is the median of what is
    known of them, which the median is at least, and the upper end is infinite. So is the upper end where the median of
    too many resamples is not reached.

    Args:
        values: above 0, float64 (images,) or (images, k) for k values of each image, resampled together; NaN for an
            image that is left out.
        censored: which of them are only lower bounds, bool of the same shape.
        level: of the interval, in (0, 1).

    Returns:
        NaN where there is no value.
    """
    values, censored = values.reshape(len(values), -1), censored.reshape(len(values), -1)
    known = np.isfinite(values)
    if not known.any():
        return Estimate(math.nan)
    # One weight for each image, whichever of its values.
    rows = np.nonzero(known)[0]
    flat, cut, drawn = values[known], censored[known], evaluate_weights(len(values)).astype(np.float64)[:, rows]
    if cut.mean() >= 0.5:
        least = _medians(flat, np.zeros_like(cut), drawn)
        return Estimate(_median(flat, np.zeros_like(cut)), float(np.quantile(least, (1 - level) / 2)), math.inf)
    found, value = _medians(flat, cut, drawn), _median(flat, cut)
    low, high = (float(np.quantile(found, q, method="inverted_cdf")) for q in ((1 - level) / 2, (1 + level) / 2))
    return Estimate(value, min(low, value), max(high, value), "Bayesian bootstrap")


def _median(values: FloatArray, censored: BoolArray) -> float:
    return float(_medians(values, censored, np.ones((1, len(values))))[0])


def _medians(values: FloatArray, censored: BoolArray, weights: FloatArray) -> FloatArray:
    """Return the smallest value at which at most half is left, by rows of weights (k, n); infinite where none is."""
    # Of equal values the censored ones outlive the others.
    order = np.lexsort((censored, values))
    values, censored, weights = values[order], censored[order], weights[:, order]
    at_risk = np.cumsum(weights[:, ::-1], axis=1)[:, ::-1]
    left = np.cumprod(np.where(censored, 1.0, 1 - weights / at_risk), axis=1)
    # Half to the last digit is half.
    reached = left <= 0.5 + 1e-12
    return np.where(reached.any(1), values[reached.argmax(1)], np.inf)


def sign_test(first: FloatArray, second: FloatArray) -> tuple[float, int]:
    """Return the two-sided p-value of the exact sign test of paired values, and of how many pairs the first is larger.

    Args:
        first: float64 (images,) or (images, k); infinite where only known to lie above what is compared.
        second: of the same shape. Two infinite ones are a tie, and so is NaN.

    Returns:
        p in [0, 1], and the number of pairs in which ``first`` is larger minus those in which ``second`` is.
    """
    larger = (first > second).astype(np.int64) - (first < second).astype(np.int64)
    signs: IntArray = larger.reshape(len(larger), -1).sum(1)
    return sign_flip_p(signs), int(signs.sum())
