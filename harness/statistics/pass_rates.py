"""Exact two-sample tests of pass rates, images as strata."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

# Squares are counted in units of 1 / _UNITS, so that their sum is a whole number whose distribution is known exactly.
_UNITS = 8


def sum_p(passes: IntArray, other: IntArray, evaluations: tuple[int, int]) -> float:
    """Return the two-sided p-value of the total of passes: whether the pass rates differ in one direction.

    Given how often an image passes in all evaluations, every assignment of these to the two samples is equally likely
    if its rate is the same in both (Fisher 1935): the passes in the first sample are hypergeometric, their total over
    the images is a sum of independent hypergeometric variables.

    Args:
        passes: for each image, in how many evaluations of the first sample it passes, integers (n,).
        other: of the second sample, (n,).
        evaluations: of each image in the first and in the second sample, at least 1 each.

    Returns:
        Twice the smaller tail, at most 1; exact to about 1e-12.
    """

    def count(passed: IntArray, _: IntArray) -> IntArray:
        return passed

    below, at, above = _tails(passes, other, evaluations, count)
    return min(1.0, 2 * (at + min(below, above)))


def squares_p(passes: IntArray, other: IntArray, evaluations: tuple[int, int]) -> float:
    """Return the p-value of the sum of squared standardised differences: whether rates differ in any direction.

    Args:
        passes: for each image, in how many evaluations of the first sample it passes, integers (n,).
        other: of the second sample, (n,).
        evaluations: of each image in the first and in the second sample, at least 1 each.

    Returns:
        The upper tail, exact to about 1e-12 (the squares, in units of an eighth, have a known distribution too).
    """
    n, m = evaluations

    def square(passed: IntArray, rest: IntArray) -> IntArray:
        pooled = (passed + rest) / (n + m)
        variances = pooled * (1 - pooled) * (1 / n + 1 / m)
        differences = (passed / n - rest / m) ** 2
        squares = np.divide(differences, variances, out=np.zeros_like(variances), where=variances > 0)
        whole: IntArray = np.rint(squares * _UNITS).astype(np.int64)
        return whole

    _, at, above = _tails(passes, other, evaluations, square)
    return min(1.0, at + above)


def _tails(
    passes: IntArray,
    other: IntArray,
    evaluations: tuple[int, int],
    statistic: Callable[[IntArray, IntArray], IntArray],
) -> tuple[float, float, float]:
    """Return the chance of a smaller total of a whole-number statistic, of the same one and of a larger one."""
    from scipy.fft import irfft, next_fast_len, rfft
    from scipy.stats import hypergeom

    n, m = evaluations
    totals, counts = np.unique(passes + other, return_counts=True)
    possible = [np.arange(max(0, total - m), min(n, total) + 1) for total in totals]
    values = [statistic(passed, total - passed) for passed, total in zip(possible, totals, strict=True)]
    largest = int(sum(count * found.max() for count, found in zip(counts, values, strict=True)))
    length = next_fast_len(largest + 1, real=True)
    # The distribution of a sum is the product of the transforms.
    product = np.ones(length // 2 + 1, dtype=np.complex128)
    for total, count, passed, found in zip(totals, counts, possible, values, strict=True):
        chances = np.bincount(found, hypergeom.pmf(passed, n + m, total, n))
        product *= rfft(chances, length) ** count
    distribution = np.maximum(irfft(product, length)[: largest + 1], 0)
    observed = int(statistic(passes, other).sum())
    below, above = distribution[:observed].sum(), distribution[observed + 1 :].sum()
    return float(below), float(distribution[observed]), float(above)
