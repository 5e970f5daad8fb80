"""The exact sign-flip test of paired whole numbers; with differences of −1, 0 and 1 it is McNemar's exact test."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc, gammaln

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Probabilities below this do not count: a bound of the absolute error.
_TINY = 1e-40


def sign_flip_p(differences: IntArray) -> float:
    """Return the exact two-sided p-value of the sign-flip test of whole differences.

    If both rows are equally robust, the difference of every image is as likely as its opposite: p is the share of all
    assignments of signs with |sum of ± d| at least |sum of d| (Fisher 1935, §21). Differences of −1, 0 and 1 give the
    exact test of McNemar (1947), a binomial test of the images in which the rows differ.

    Args:
        differences: integers (n,), for each image the number of seeds in which the first row is robust minus that of
            the second.

    Returns:
        A p-value in [0, 1]; 1 where the sum is 0. Values below about 1e-36 are not exact.

    Raises:
        ValueError: if the differences are not whole numbers.
    """
    values = np.asarray(differences).ravel()
    if values.dtype.kind not in "iu":
        raise ValueError(f"differences must be whole numbers, not {values.dtype}")
    values = values.astype(np.int64)
    return sign_flip_p_of_counts(int(values.sum()), np.bincount(np.abs(values))[1:].tolist())


def sign_flip_p_of_counts(total: int, counts: Sequence[int]) -> float:
    """Return the p-value of :func:`sign_flip_p` from the sum of the differences and the counts of their magnitudes.

    Args:
        total: sum of the differences.
        counts: how many differences have the magnitude 1, 2, ...
    """
    observed = abs(total)
    present = [(count, magnitude) for magnitude, count in enumerate(counts, 1) if count]
    if not observed or not present:
        return 1.0
    # One magnitude's tail is a binomial tail; the sum of all others is convolved, the most frequent one kept out of it.
    count, magnitude = max(present)
    first, chances = 0, np.ones(1)
    for other_count, other in sorted(present):
        if other != magnitude:
            first, chances = _add(first, chances, other_count, other)
    rest = first + np.arange(len(chances))
    rest, chances = rest[chances > 0], chances[chances > 0]
    # magnitude (2 heads − count) + rest >= observed.
    heads = -(-(observed - rest + magnitude * count) // (2 * magnitude))
    smallest, _, at_least = _binomial(count)
    return min(1.0, 2 * float(chances @ at_least[np.clip(heads - smallest, 0, len(at_least) - 1)]))


def mcnemar_p(total: IntArray, discordant: IntArray) -> FloatArray:
    """Return the p-values of :func:`sign_flip_p` for many pairs of rows of one seed each.

    Args:
        total: (n,) number of images in which only the first row is robust minus those in which only the second is.
        discordant: (n,) number of images in which the rows differ, at least |total|.
    """
    # (total + discordant) / 2 heads or more among the discordant images; bdtrc counts those above its first argument.
    tail = bdtrc(np.maximum((np.abs(total) + discordant) // 2 - 1, 0), discordant, 0.5)
    return np.asarray(np.where(total == 0, 1.0, np.minimum(1.0, 2 * np.where(discordant == 0, 1.0, tail))))


def _add(first: int, chances: FloatArray, count: int, magnitude: int) -> tuple[int, FloatArray]:
    """Add ``count`` random signs times ``magnitude`` to a sum with ``chances`` from ``first`` upwards."""
    fewest, own, _ = _binomial(count)
    step = 2 * magnitude
    total = np.zeros(len(chances) + step * (len(own) - 1))
    if len(own) <= len(chances):
        for i, chance in enumerate(own):
            total[step * i : step * i + len(chances)] += chance * chances
    else:
        for i in np.flatnonzero(chances).tolist():
            total[i : i + step * len(own) : step] += chances[i] * own
    kept = np.flatnonzero(total > _TINY)
    first += magnitude * (2 * fewest - count) + int(kept[0])
    return first, total[kept[0] : kept[-1] + 1]


@lru_cache(maxsize=4096)
def _binomial(count: int) -> tuple[int, FloatArray, FloatArray]:
    """Return the smallest number of heads that counts, and from there the chances of exactly and at least n heads."""
    heads = np.arange(count + 1)
    if count > 1000:
        # 15 standard deviations hold all but 1e-50.
        reach = int(7.5 * np.sqrt(count)) + 1
        heads = heads[max(0, count // 2 - reach) : count // 2 + reach + 1]
    chances = np.exp(gammaln(count + 1) - gammaln(heads + 1) - gammaln(count - heads + 1) - count * np.log(2))
    chances /= chances.sum()
    return int(heads[0]), chances, np.append(np.cumsum(chances[::-1])[::-1], 0.0)
