"""Ranks of rows by robust accuracy: a row is ranked below another only where the difference is significant.

Two rows are compared on the same images and the same resamples, so what they share cancels. A difference counts if it
is significant in two ways: against the spread of its resamples, which holds the error of the calibrated thresholds,
and by the exact sign-flip test, which does not rely on a normal distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_ndtr, ndtri, stdtr, stdtrit

from .multiple_testing import holm
from .sign_flip import mcnemar_p, sign_flip_p, sign_flip_p_of_counts

__all__ = ["RowSample", "pair_p", "pairwise_p", "ranks", "sign_flip_p"]

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Degrees of freedom of what resamples say about the error of thresholds: 10 or more scores above each, few for a
# variance. A normal distribution would tell 32 equal rows apart in up to 9 % of leaderboards with 1000 images, not 5 %;
# simulated for 200 to 1000 calibrate images, where 24 (the fewest) to 47 fit the tails that Holm's correction reaches.
_THRESHOLD_DF = 24
# Smallest level that the combined test of images and seeds tells apart.
_SMALLEST = 1e-100
# Accuracies that differ by less are one: the rounding error of a mean.
_DECIMALS = 9


@dataclass(frozen=True, eq=False)
class RowSample:
    """What the comparison of rows needs of one row.

    Attributes:
        robust: bool (seeds, images): whether each ranked evaluate image is robust at the seed's threshold.
        resampled: float64 (seeds, resamples): robust accuracy in each joint resample of the calibrate and the evaluate
            images; the same draw for all rows and seeds.

    Raises:
        ValueError: if a table is not of two dimensions or is empty, or the numbers of seeds differ.
    """

    robust: BoolArray
    resampled: FloatArray

    def __post_init__(self) -> None:
        robust, resampled = self.robust.shape, self.resampled.shape
        if len(robust) != 2 or len(resampled) != 2 or not self.robust.size or resampled[1] < 2:
            raise ValueError(f"a row needs (seeds, images) and (seeds, resamples), not {robust} and {resampled}")
        if robust[0] != resampled[0]:
            raise ValueError(f"robust is of {robust[0]} seeds and resampled of {resampled[0]}")


def pair_p(a: RowSample, b: RowSample) -> float:
    """Return the two-sided p-value of the difference of two rows' robust accuracy.

    d is the difference of the accuracies, averaged over seeds; sd² the variance of the same difference over resamples.
    It has two parts: that of the evaluate images at fixed thresholds, sd_e², which the differences of the images give,
    and the remainder, the error of the calibrated thresholds, sd_t², which is known less exactly. With S seeds, s is
    the standard deviation over seeds of each seed's difference. p is the level at which

        d² = z_p² sd_e² + t_p(24)² sd_t² + t_p(S − 1)² s² / S

    z_p and t_p(f) the two-sided quantiles of the normal distribution and of Student's with f degrees of freedom; with
    one seed without the last term. p is raised to that of the exact :func:`sign_flip_p` where this is larger.

    Returns:
        A p-value in [0, 1]; 1 where the accuracies are equal.

    Raises:
        ValueError: if the rows differ in the number of seeds, images or resamples.
    """
    return float(pairwise_p([a, b])[0, 1])


def pairwise_p(rows: Sequence[RowSample]) -> FloatArray:
    """Return :func:`pair_p` of all pairs of n rows, (n, n), symmetric, 1 on the diagonal.

    Raises:
        ValueError: as :func:`pair_p`.
    """
    p = np.ones((len(rows), len(rows)))
    if len(rows) < 2:
        return p
    shapes = {(row.robust.shape, row.resampled.shape) for row in rows}
    if len(shapes) > 1:
        raise ValueError(f"rows differ in seeds, images or resamples: {sorted(shapes)}")
    seeds, images = rows[0].robust.shape
    per_seed = np.array([row.robust.sum(1) for row in rows])
    first, second = np.triu_indices(len(rows), 1)
    # Whole numbers: equal accuracies have the difference 0.
    apart = per_seed.sum(1)[first] != per_seed.sum(1)[second]
    first, second = first[apart], second[apart]
    if not len(first):
        return p
    differences = per_seed[first] - per_seed[second]
    total = differences.sum(1)
    magnitudes = _magnitudes(np.array([row.robust.sum(0) for row in rows]), seeds)[:, first, second].T
    squares = magnitudes @ np.arange(1, seeds + 1) ** 2
    # The variance of a weighted mean: Dirichlet weights of the images and two halves, which add nothing to differences.
    of_images = (squares / (images + 1) - (total / (images + 1)) ** 2) / (images + 2) / seeds**2
    covariance = np.cov(np.array([row.resampled.mean(0) for row in rows]))
    spread = np.diag(covariance)
    of_resamples = spread[first] + spread[second] - 2 * covariance[first, second]
    terms = [(np.inf, np.minimum(of_images, of_resamples)), (_THRESHOLD_DF, of_resamples - of_images)]
    if seeds > 1:
        terms.append((seeds - 1, (differences / images).var(axis=1, ddof=1) / seeds))
    approximate = _level((total / (seeds * images)) ** 2, terms)
    if seeds == 1:
        approximate = np.maximum(approximate, mcnemar_p(total, magnitudes[:, 0]))
    else:
        # Hoeffding's inequality: the exact test needs no convolution where even this bound is lower than the other p.
        bound = 2 * np.exp(-(total**2) / (2 * squares))
        for i in np.flatnonzero(bound > approximate):
            approximate[i] = max(approximate[i], sign_flip_p_of_counts(int(total[i]), magnitudes[i].tolist()))
    p[first, second] = p[second, first] = approximate
    return p


def ranks(accuracies: ArrayLike, rows: Sequence[RowSample], level: float = 0.05) -> IntArray:
    """Return the rank of every row: 1 + the number of rows that are significantly better.

    Significance is :func:`pairwise_p` after Holm's correction for all pairs, so the chance that any two equally robust
    rows are ranked apart by the test is at most ``level``. Significance is not transitive: where the count of a row
    would be lower than that of a row above it, it is raised to that. Rows of equal accuracy share a rank, the largest
    of their counts. So ranks never fall down the list and do not depend on the order of the rows.

    Args:
        accuracies: (n,) robust accuracy, the mean of each row's ``robust``; compared to nine decimals.
        rows: what was measured of each row.
        level: of significance, in (0, 1).

    Returns:
        int64 (n,), in the order given.

    Raises:
        ValueError: as :func:`pair_p`; if an accuracy is not finite or the numbers of accuracies and rows differ.
    """
    values = np.round(np.asarray(accuracies, dtype=np.float64).ravel(), _DECIMALS)
    if len(values) != len(rows):
        raise ValueError(f"{len(values)} accuracies for {len(rows)} rows")
    if not np.isfinite(values).all():
        raise ValueError("every row needs a finite accuracy")
    return ranks_of_p(values, pairwise_p(rows), level)


def ranks_of_p(accuracies: FloatArray, p: FloatArray, level: float = 0.05) -> IntArray:
    """Return the ranks of :func:`ranks` from the p-values of all pairs, (n, n)."""
    first, second = np.triu_indices(len(accuracies), 1)
    significant = np.zeros(p.shape, np.bool_)
    significant[first, second] = [q is not None and q <= level for q in holm(p[first, second].tolist())]
    significant |= significant.T
    counts = 1 + (significant & (accuracies[:, None] < accuracies)).sum(1)
    # np.unique sorts upwards; the list runs downwards.
    distinct, group = np.unique(-accuracies, return_inverse=True)
    largest = np.zeros(len(distinct), np.int64)
    np.maximum.at(largest, group, counts)
    return np.asarray(np.maximum.accumulate(largest)[group], dtype=np.int64)


def _level(squared: FloatArray, terms: Sequence[tuple[float, FloatArray]]) -> FloatArray:
    """Return the level p at which the sum of t_p(df)² variance is ``squared``, by bisection on log p.

    Args:
        squared: (n,), above 0.
        terms: degrees of freedom, infinite for the normal distribution, and variances (n,), those below 0 as 0.
    """
    terms = [(df, np.maximum(variance, 0.0)) for df, variance in terms]
    with np.errstate(divide="ignore"):
        z = -np.sqrt(squared / sum(variance for _, variance in terms))
        # p lies between those of the normal distribution and of the heaviest tail.
        low, high = np.log(2) + log_ndtr(z), np.log(2 * stdtr(min(df for df, _ in terms), z))
    low, high = np.maximum(low, np.log(_SMALLEST)), np.clip(high, np.log(_SMALLEST), 0.0)
    while (high - low).max() > 1e-10:
        middle = (low + high) / 2
        half = np.exp(middle) / 2
        reach = np.zeros(len(squared))
        for df, variance in terms:
            reach += (ndtri(half) if np.isinf(df) else stdtrit(df, half)) ** 2 * variance
        beyond = reach > squared
        low, high = np.where(beyond, middle, low), np.where(beyond, high, middle)
    return np.asarray(np.exp(high))


def _magnitudes(counts: IntArray, seeds: int) -> IntArray:
    """Return in how many images two rows differ by 1, ..., ``seeds`` seeds, int64 (seeds, n, n).

    Args:
        counts: (n, images), the number of seeds in which an image is robust.
        seeds: the largest count.
    """
    # Products of numbers 0 and 1 in single precision: exact below 16 million images.
    held = [(counts == value).astype(np.float32) for value in range(seeds + 1)]
    found = np.zeros((seeds, len(counts), len(counts)))
    for low in range(seeds + 1):
        for high in range(low + 1, seeds + 1):
            both = held[low] @ held[high].T
            found[high - low - 1] += both + both.T
    return found.astype(np.int64)
