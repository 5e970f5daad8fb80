"""One number with its interval, and how intervals are made of shares, means, medians, AUROCs and correlations."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .detection import auroc, auroc_interval, percentile_interval

if TYPE_CHECKING:
    from torch import Tensor

FloatArray = NDArray[np.float64]
Method = Literal[
    "",
    "Wilson",
    "Bonett and Price",
    "Student's t",
    "Student's t over seeds, Wilson over images",
    "Student's t over seeds, normal over images",
    "Bayesian bootstrap",
    "Bayesian bootstrap on Fisher's scale",
    "Bonett and Wright on Fisher's scale",
    "DeLong on the logit scale",
    "jackknife",
    "order statistics",
]
RESAMPLES = 1000
Z = NormalDist().inv_cdf(0.975)
# Correlations on Fisher's scale: at 1 it has no end.
_NEARLY_1 = 0.999999


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: NaN where nothing was observed.
        low, high: the ends of the interval; NaN where nothing says how sure the number is.
        method: how the interval was made.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    method: Method = ""

    @property
    def ends(self) -> tuple[float, float, float]:
        """The number and both ends, for a row or a claim."""
        return self.value, self.low, self.high

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def within(self, low: float, high: float) -> Estimate:
        """Return the same with ends that the number can have."""
        return replace(self, low=max(self.low, low), high=min(self.high, high)) if math.isfinite(self.low) else self


def wilson(value: float, n: float) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a share of ``n`` (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    Args:
        value: the share, in [0, 1].
        n: observations, at least 1.

    Returns:
        (low, high) in [0, 1]; holds the share.
    """
    centre = (value + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(max(0.0, value * (1 - value)) / n + Z**2 / (4 * n**2))
    # The centre lies between value and 1/2: at 0 and 1 a bound equals the value up to the last digit.
    return min(value, max(0.0, centre - half)), max(value, min(1.0, centre + half))


def proportion(count: float, n: int) -> Estimate:
    """Return the share ``count / n`` and Wilson's interval; NaN for n = 0."""
    return Estimate(count / n, *wilson(count / n, n), "Wilson") if n else Estimate(math.nan)


def paired_difference(more: int, less: int, n: int) -> Estimate:
    """Return the difference of two shares of the same ``n`` images; NaN for n = 0.

    The interval is Bonett and Price's (2012), which keeps its coverage for few images and near 0 and 1; it is widened,
    where needed, to hold the difference itself.

    Args:
        more: images that count for the first share alone.
        less: images that count for the second share alone.
        n: images.
    """
    if not n:
        return Estimate(math.nan)
    a, b = (more + 1) / (n + 2), (less + 1) / (n + 2)
    width = Z * math.sqrt((a + b - (a - b) ** 2) / (n + 2))
    value = (more - less) / n
    low, high = min(value, max(-1.0, a - b - width)), max(value, min(1.0, a - b + width))
    return Estimate(value, low, high, "Bonett and Price")


def student(values: FloatArray) -> Estimate:
    """Return the mean of the finite ones of some numbers, as a sample; no interval of one, NaN of none."""
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return Estimate(float(known[0]) if len(known) else math.nan)
    mean = float(known.mean())
    reach = student_quantile(len(known) - 1) * float(known.std(ddof=1) / math.sqrt(len(known)))
    return Estimate(mean, mean - reach, mean + reach, "Student's t")


def student_quantile(freedom: int) -> float:
    """Return the half-width of an interval in standard errors, by its degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def jackknife(value: float, without: FloatArray) -> Estimate:
    """Return a statistic and its interval from its values without one part of the data each, float64 (parts,).

    The quantile is that of Student's t with one degree less than there are parts; there is no interval for fewer than
    two.
    """
    parts = len(without)
    if parts < 2:
        return Estimate(value)
    error = math.sqrt((parts - 1) / parts * float(((without - without.mean()) ** 2).sum()))
    reach = student_quantile(parts - 1) * error
    return Estimate(value, value - reach, value + reach, "jackknife")


def image_weights(n: int, resamples: int, seed: int) -> FloatArray:
    """Weights of ``n`` images for a Bayesian bootstrap (Rubin 1981), float64 (resamples, n), rows summing to 1."""
    drawn = np.random.default_rng(seed).standard_exponential((resamples, n))
    return np.asarray(drawn / drawn.sum(1, keepdims=True))


def mean_interval(values: Tensor | FloatArray, seed: int) -> Estimate:
    """Return the mean of one number per image, by a Bayesian bootstrap of images; NaN for no image."""
    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        return Estimate(math.nan)
    mean = float(x.mean())
    ends = percentile_interval(image_weights(len(x), RESAMPLES, seed) @ x, 0.95, mean)
    return Estimate(mean, *ends, "Bayesian bootstrap")


def mean_intervals(values: Tensor, seed: int) -> list[Estimate]:
    """:func:`mean_interval` of each column of (n, k)."""
    return [mean_interval(column, seed) for column in values.double().T]


def median_interval(values: Tensor) -> Estimate:
    """Median and its interval from order statistics; infinite ends, where images are few, become the extremes."""
    from scipy.stats import quantile_test

    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        return Estimate(math.nan)
    found = quantile_test(x, q=0.0, p=0.5).confidence_interval()
    low, high = (
        float(end) if math.isfinite(end) else edge for end, edge in ((found.low, x.min()), (found.high, x.max()))
    )
    return Estimate(float(np.median(x)), float(low), float(high), "order statistics")


def auroc_estimate(
    positive: ArrayLike, negative: ArrayLike, positive_source: ArrayLike | None = None,
    negative_source: ArrayLike | None = None,
) -> Estimate:  # fmt: skip
    """Return the AUROC of two sets of scores; see :func:`~.detection.auroc_interval`."""
    ends = auroc_interval(positive, negative, positive_source=positive_source, negative_source=negative_source)
    return Estimate(auroc(positive, negative), *ends, "DeLong on the logit scale")


def auroc_difference(score: FloatArray, other: FloatArray, positive: NDArray[np.bool_], seed: int) -> Estimate:
    """AUROC of ``score`` minus that of ``other`` on the same images, by a Bayesian bootstrap of images.

    Args:
        score: float64 (n,).
        other: float64 (n,).
        positive: which images shall score high; at least one is and one is not.
        seed: of the resampling.
    """
    margin = _wins(score, positive) - _wins(other, positive)
    up = image_weights(int(positive.sum()), RESAMPLES, seed)
    down = image_weights(int((~positive).sum()), RESAMPLES, seed + 1)
    value = float(margin.mean())
    ends = percentile_interval(np.einsum("rp,rp->r", up @ margin, down), 0.95, value)
    return Estimate(value, *ends, "Bayesian bootstrap")


def _wins(score: FloatArray, positive: NDArray[np.bool_]) -> FloatArray:
    """1 where a positive scores above a negative, 1/2 for a tie, float64 (positives, negatives)."""
    up, down = score[positive][:, None], score[~positive]
    return np.asarray((up > down) + 0.5 * (up == down))


def fisher_interval(value: float, resampled: FloatArray) -> Estimate:
    """Return a correlation with an interval from the spread of its resampled values on Fisher's scale.

    A plain percentile interval would lie too low: resampling adds noise to both sides of a correlation once more.
    """
    known = resampled[np.isfinite(resampled)]
    if not math.isfinite(value) or len(known) < 2:
        return Estimate(value)
    reach = 1.96 * float(np.arctanh(np.clip(known, -_NEARLY_1, _NEARLY_1)).std())
    return _on_fishers_scale(value, reach, "Bayesian bootstrap on Fisher's scale")


def rank_correlation_interval(value: float, n: int) -> Estimate:
    """Spearman's correlation of ``n`` pairs, more than 3, with the variance of Bonett and Wright (2000)."""
    reach = Z * math.sqrt((1 + value**2 / 2) / (n - 3))
    return _on_fishers_scale(value, reach, "Bonett and Wright on Fisher's scale")


def _on_fishers_scale(value: float, reach: float, method: Method) -> Estimate:
    centre = math.atanh(max(-_NEARLY_1, min(_NEARLY_1, value)))
    return Estimate(value, math.tanh(centre - reach), math.tanh(centre + reach), method)
