"""Two scores of the same images compared, image by image, and the points of a ROC curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .detection import placements

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of positives and negatives, and which source image each is made from.

    Attributes:
        positive: float64 (n,), larger = more suspicious.
        negative: float64 (m,).
        positive_source: whole numbers (n,) that name the source image of each positive.
        negative_source: the same for the negatives (m,).

    Raises:
        ValueError: if a length does not fit, a set is empty or holds NaN.
    """

    positive: FloatArray
    negative: FloatArray
    positive_source: IntArray
    negative_source: IntArray

    def __post_init__(self) -> None:
        if len(self.positive) != len(self.positive_source) or len(self.negative) != len(self.negative_source):
            raise ValueError("each score needs the number of its source image")
        if not len(self.positive) or not len(self.negative):
            raise ValueError("an AUROC needs positives and negatives")
        if np.isnan(self.positive).any() or np.isnan(self.negative).any():
            raise ValueError("a score is NaN")


@dataclass(frozen=True)
class Difference:
    """A difference of two figures, first minus second.

    Attributes:
        value: the difference.
        low, high: of its 95 % interval; NaN where there is none.
        p: two-sided p-value.
    """

    value: float
    low: float
    high: float
    p: float


def delong(first: Sequence[Scored], second: Sequence[Scored], level: float = 0.95) -> Difference:
    """Return the difference of two AUROCs on the same source images, by DeLong, DeLong and Clarke-Pearson (1988).

    The placements of each score are centred and summed per source image, over both sets and all seeds, before the
    first's are subtracted from the second's and squared (Obuchowski 1997): what the two have in common cancels, whether
    they share positives and negatives or only the images that these are made from. With one seed, the same positives
    and negatives and no image in both, this is DeLong's test.

    Args:
        first: one for each seed; the AUROC is the mean over seeds.
        second: one for each seed.
        level: of the interval, in (0, 1).

    Raises:
        ValueError: if a sequence is empty.
    """
    if not first or not second:
        raise ValueError("an AUROC needs at least one seed")
    (area, sources, pulls), (other, other_sources, other_pulls) = (_mean_area(side) for side in (first, second))
    _, cluster = np.unique(np.concatenate([sources, other_sources]), return_inverse=True)
    apart = np.bincount(cluster, np.concatenate([pulls, -other_pulls]))
    difference = area - other
    n = len(apart)
    spread = math.sqrt(float(apart @ apart) * n / max(n - 1, 1))
    # Two scores that order all images alike differ by rounding alone.
    if spread < 1e-12:
        return Difference(difference, difference, difference, 1.0 if abs(difference) < 1e-12 else 0.0)
    reach = NormalDist().inv_cdf((1 + level) / 2) * spread
    return Difference(difference, difference - reach, difference + reach, _two_sided(abs(difference) / spread))


def _mean_area(seeds: Sequence[Scored]) -> tuple[float, IntArray, FloatArray]:
    """Return the mean AUROC over seeds, and of each score its source image and its part in the deviation from it."""
    areas: list[float] = []
    sources: list[IntArray] = []
    pulls: list[FloatArray] = []
    for scored in seeds:
        above, below = placements(scored.positive, scored.negative)
        area = float(above.mean())
        areas.append(area)
        sources += [scored.positive_source, scored.negative_source]
        pulls += [(above - area) / len(above) / len(seeds), (below - area) / len(below) / len(seeds)]
    return float(np.mean(areas)), np.concatenate(sources), np.concatenate(pulls)


def normal_difference(first: tuple[float, float, float], second: tuple[float, float, float]) -> Difference:
    """Return the difference of two independent figures from their 95 % intervals, taken as normal.

    Args:
        first: figure, lower and upper end.
        second: the same.
    """
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    z = NormalDist().inv_cdf(0.975)
    # The end that faces the other figure decides whether they are apart (Newcombe 1998, method 10).
    low = a - b - math.hypot(a - a_low, b_high - b)
    high = a - b + math.hypot(a_high - a, b - b_low)
    reach = (a - b - low) if a > b else (high - (a - b))
    spread = reach / z
    p = 1.0 if a == b else 0.0 if spread == 0 else _two_sided(abs(a - b) / spread)
    return Difference(a - b, low, high, p)


def _two_sided(z: float) -> float:
    """Return the two-sided p-value of a normal deviate, exact far out too."""
    return math.erfc(z / math.sqrt(2))


def roc_points(positive: ArrayLike, negative: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the points of a ROC curve from (0, 0) to (1, 1), one for each distinct score.

    Args:
        positive: scores (n,), n at least 1.
        negative: scores (m,), m at least 1.

    Returns:
        false positive rate, true positive rate and threshold, float64 (k,) each: flagged are scores above the
        threshold, which is −infinity at the last point.

    Raises:
        ValueError: if a set is empty or holds NaN.
    """
    pos, neg = (np.sort(np.asarray(values, np.float64).ravel()) for values in (positive, negative))
    if not len(pos) or not len(neg) or np.isnan(pos).any() or np.isnan(neg).any():
        raise ValueError("a ROC curve needs positives and negatives, and no NaN")
    cuts = np.append(np.unique(np.concatenate([pos, neg]))[::-1], -np.inf)
    tpr = 1 - np.searchsorted(pos, cuts, "right") / len(pos)
    fpr = 1 - np.searchsorted(neg, cuts, "right") / len(neg)
    return fpr, tpr, cuts
