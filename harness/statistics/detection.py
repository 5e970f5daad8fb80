"""Figures of merit of a detector and their intervals, on raw scores: float64, unbounded, larger = more suspicious.

Two methods carry the intervals. AUROC: DeLong's variance with the sums taken per source image, on the logit scale.
Everything that depends on a calibrated threshold: a Bayesian bootstrap of calibrate *and* evaluate source images,
with Jeffreys' half observations at both ends, which keeps its coverage where the plain percentile bootstrap loses it
(close to 0 and 1, few positives). ``tests/simulation/test_coverage.py`` measures both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
Weights = NDArray[np.float32]
IntArray = NDArray[np.int64]

# False positive rates at which thresholds are set, by what they are called in tables.
ALPHAS = {"1": 0.01, "5": 0.05, "10": 0.10}
# Fewer positives or negatives than this give no number, only a reason.
MIN_IMAGES = 30
RESAMPLES = 1000
_ROWS = 64
# Seeds of the two resamples: constants, so a row depends on nothing but its own numbers.
_CALIBRATE_SEED, _EVALUATE_SEED = 0xCA11B, 0xE7A1
# Part of an observation that the AUROC interval adds; chosen by simulation over 0.5 to 0.9999 and 30 to 1000 images.
_PSEUDO = 0.2
# Highest finite number: a threshold that nothing exceeds.
_NEVER = float(np.finfo(np.float64).max)


def auroc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting one half.

    Args:
        positive: scores (n,), n at least 1.
        negative: scores (m,), m at least 1.

    Raises:
        ValueError: if a set is empty or holds NaN.
    """
    above, _ = placements(_scores(positive, "positive"), _scores(negative, "negative"))
    return float(above.mean())


def average_precision(positive: ArrayLike, negative: ArrayLike) -> float:
    """Average precision: the sum over distinct scores of gain in recall × precision there, without interpolation.

    Takes and raises what :func:`auroc` does.
    """
    pos, neg = np.sort(_scores(positive, "positive")), np.sort(_scores(negative, "negative"))
    cuts = np.unique(pos)[::-1]
    true = len(pos) - np.searchsorted(pos, cuts, "left")
    false = len(neg) - np.searchsorted(neg, cuts, "left")
    gain = np.diff(true, prepend=0) / len(pos)
    return float((gain * true / (true + false)).sum())


def auroc_interval(
    positive: ArrayLike,
    negative: ArrayLike,
    level: float = 0.95,
    *,
    positive_source: ArrayLike | None = None,
    negative_source: ArrayLike | None = None,
) -> tuple[float, float]:
    """Return an interval of the AUROC that covers also near 1, with few images, and when both sets share source images.

    DeLong, DeLong and Clarke-Pearson (1988) take positives and negatives as independent; a perturbed image and its
    clean version are not. With sources given, what both contribute is added before it is squared (Obuchowski 1997,
    clustered data). The interval is formed on the logit scale. DeLong's variance vanishes under perfect separation,
    so a fifth of an observation of AUROC 1/2 is added first, weighed against the smaller set; the interval is then
    widened, where needed, to hold the AUROC itself.

    Args:
        positive: scores (n,).
        negative: scores (m,).
        level: the coverage that is asked for, in (0, 1).
        positive_source: whole numbers (n,) that name the source image of each positive.
        negative_source: the same for the negatives (m,).

    Returns:
        (low, high) in [0, 1].

    Raises:
        ValueError: as :func:`auroc`, and if only one source is given or a length does not fit.
    """
    pos, neg = _scores(positive, "positive"), _scores(negative, "negative")
    above, below = placements(pos, neg)
    area = float(above.mean())
    pull_positive, pull_negative = (above - area) / len(pos), (below - area) / len(neg)
    if positive_source is None and negative_source is None:
        variance = _centred(pull_positive) + _centred(pull_negative)
    elif positive_source is None or negative_source is None:
        raise ValueError("give the source images of the positives and of the negatives, or none")
    else:
        sources = np.concatenate([np.asarray(positive_source).ravel(), np.asarray(negative_source).ravel()])
        if len(sources) != len(pos) + len(neg):
            raise ValueError(f"{len(sources)} source images for {len(pos)} positives and {len(neg)} negatives")
        _, cluster = np.unique(sources, return_inverse=True)
        pulls = np.bincount(cluster, np.concatenate([pull_positive, pull_negative]))
        variance = _centred(pulls.astype(np.float64))
    smaller = min(len(pos), len(neg))
    centre = (area * smaller + 0.5 * _PSEUDO) / (smaller + _PSEUDO)
    deviation = math.sqrt(variance + (_PSEUDO / smaller) ** 2) / (centre * (1 - centre))
    reach = _normal_quantile(level) * deviation
    logit = math.log(centre / (1 - centre))
    return min(_logistic(logit - reach), area), max(_logistic(logit + reach), area)


def min_calibrate(alpha: float) -> int:
    """Return how many calibrate images a threshold at false positive rate ``alpha`` needs: 10 / alpha."""
    _check_alpha(alpha)
    return math.ceil(10 / alpha - 1e-9)


def threshold_reason(n: int, alpha: float) -> str | None:
    """Return why ``n`` calibrate images cannot give a threshold at ``alpha``, or ``None`` where they can."""
    needed = min_calibrate(alpha)
    if n >= needed:
        return None
    return f"a threshold at FPR {alpha:g} needs {needed} calibrate images, not {n}"


def threshold_rank(n: int, alpha: float) -> int:
    """Return k = floor(alpha (n + 1)): the threshold is the k-th largest of ``n`` calibrate scores; 0 where none is.

    Raises:
        ValueError: if ``alpha`` is outside (0, 1).
    """
    _check_alpha(alpha)
    k = int(alpha * (n + 1))
    # The product may miss a whole number by rounding (0.29 × 100); the quotient decides.
    if k / (n + 1) > alpha:
        return k - 1
    return k + 1 if (k + 1) / (n + 1) <= alpha else k


def threshold(calibrate: ArrayLike, alpha: float) -> float:
    """Return the k-th largest of n calibrate scores, k = floor(alpha (n + 1)); flagged means score > threshold.

    A new clean image, exchangeable with the calibrate images, is flagged with a probability of at most ``alpha``:
    exactly k / (n + 1) for continuous scores (the conformal quantile; Vovk, Gammerman & Shafer 2005). Ties with the
    threshold are not flagged, so the probability may be far below ``alpha`` for a coarse score.

    Args:
        calibrate: scores (n,), n at least 1 / alpha − 1; tables ask for more (:func:`min_calibrate`).
        alpha: the false positive rate, in (0, 1).

    Raises:
        ValueError: if ``calibrate`` is empty, holds NaN or is too short (k = 0), or ``alpha`` is outside (0, 1).
    """
    scores = np.sort(_scores(calibrate, "calibrate"))
    return float(scores[len(scores) - _rank(len(scores), alpha)])


def tpr_interval(
    calibrate: ArrayLike, positive: ArrayLike, alpha: float, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """An interval of the true positive rate at false positive rate ``alpha``, the threshold's own error included.

    Calibrate and evaluate source images are resampled together (:func:`source_weights`); the positives are at most one
    per evaluate image. Resampling the positives alone would take the calibrated threshold for the true one.

    Returns:
        (low, high) in [0, 1]; holds the measured rate.

    Raises:
        ValueError: as :func:`threshold`, and for an empty or NaN ``positive``.
    """
    clean, pos = _scores(calibrate, "calibrate"), _scores(positive, "positive")
    drawn = resampled_thresholds(clean, alpha, calibrate_weights(len(clean), resamples))
    shares = resampled_shares([drawn], [np.full(len(pos), -np.inf)], [pos], evaluate_weights(len(pos), resamples))
    return percentile_interval(shares, level, float((pos > threshold(clean, alpha)).mean()))


def source_weights(n: int, resamples: int, seed: int) -> Weights:
    """Return weights of source images for a Bayesian bootstrap (Rubin 1981) with half an observation at either end.

    Each row is a draw from Dirichlet(1, ..., 1, 1/2, 1/2): ``n`` images, then the two pseudo-observations, which stand
    for "below everything" (value 0) and "above everything" (value 1). For a share of images this is Jeffreys' posterior
    of a proportion, Beta(s + 1/2, n − s + 1/2); for the share above the k-th highest score, Beta(k − 1/2, n − k + 3/2).

    Returns:
        (resamples, n + 2), float32, rows summing to 1; always the same for the same arguments.
    """
    draws = np.random.default_rng(seed)
    # Single precision and a few rows at a time: this is the only table of a run that grows with images x resamples.
    weights = np.empty((resamples, n + 2), np.float32)
    for start in range(0, resamples, _ROWS):
        rows = weights[start : start + _ROWS]
        drawn = draws.standard_exponential((len(rows), n)), draws.standard_gamma(0.5, (len(rows), 2))
        whole = np.concatenate(drawn, axis=1)
        rows[:] = whole / whole.sum(1, keepdims=True)
    return weights


def calibrate_weights(n: int, resamples: int = RESAMPLES) -> Weights:
    """Return the weights that every calibrate set of ``n`` images is resampled with."""
    return source_weights(n, resamples, _CALIBRATE_SEED)


def evaluate_weights(n: int, resamples: int = RESAMPLES) -> Weights:
    """Return the weights that every evaluate set of ``n`` images is resampled with."""
    return source_weights(n, resamples, _EVALUATE_SEED)


def resampled_thresholds(calibrate: ArrayLike, alpha: float, weights: Weights) -> FloatArray:
    """Return the threshold at ``alpha`` of every resample of the calibrate images.

    The k-th largest score has on average a share of k / (n + 1) of all clean images above it, k as in
    :func:`threshold`. A resample's threshold leaves that share above it in the resample.

    Args:
        calibrate: scores (n,), in the order of the source images.
        alpha: the false positive rate, in (0, 1).
        weights: (resamples, n + 2) from :func:`source_weights`.

    Returns:
        (resamples,): in each, the smallest score that a weight of at most k / (n + 1) exceeds, half an observation
        above everything included.

    Raises:
        ValueError: as :func:`threshold`.
    """
    scores = _scores(calibrate, "calibrate")
    share = _rank(len(scores), alpha) / (len(scores) + 1)
    order = np.argsort(-scores, kind="stable")
    descending = np.append(scores[order], -_NEVER)
    above_all = weights[:, -1:]
    # Only the highest scores can matter; take more of them in the rare case that a resample reaches further down.
    take = min(len(scores), int(len(scores) * (share + 8 * math.sqrt(share / len(scores)))) + 10)
    while True:
        exceeding = above_all + np.cumsum(weights[:, order[:take]], axis=1, dtype=np.float64)
        within = (exceeding <= share).sum(1)
        if take == len(scores) or within.max() < take:
            break
        take = min(len(scores), 2 * take)
    return np.where(above_all[:, 0] > share, _NEVER, descending[within])


def resampled_shares(
    thresholds: Sequence[FloatArray],
    lower: Sequence[FloatArray],
    upper: Sequence[FloatArray],
    weights: Weights,
    block: int = 1024,
) -> FloatArray:
    """Return the share of images with ``lower <= t < upper`` in every resample, averaged over seeds.

    A true positive rate and a robust accuracy both have this form: the first with ``lower`` −inf and ``upper`` the
    score; the second with ``lower`` the clean score (+inf where the model is wrong) and ``upper`` the lowest score of
    the perturbed images that fool the model (+inf where none does).

    Args:
        thresholds: one (resamples,) array per seed.
        lower: one (n,) array per seed.
        upper: one (n,) array per seed.
        weights: (resamples, n + 2) from :func:`source_weights`; the same draw for all seeds.
        block: images handled at a time; bounds the memory.

    Returns:
        (resamples,), in [0, 1].
    """
    count = weights.shape[1] - 2
    shares = weights[:, -1].astype(np.float64)
    for start in range(0, count, block):
        part = slice(start, min(start + block, count))
        holds = np.zeros((len(weights), part.stop - part.start))
        for t, low, high in zip(thresholds, lower, upper, strict=True):
            t = t[:, None]
            holds += (low[part] <= t) & (t < high[part])
        shares += np.einsum("ri,ri->r", weights[:, part], holds) / len(thresholds)
    return shares


def percentile_interval(values: FloatArray, level: float, estimate: float) -> tuple[float, float]:
    """The central interval of resampled values, widened where needed to hold the estimate (0 of n starts at 0)."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return min(float(low), estimate), max(float(high), estimate)


def _scores(values: ArrayLike, name: str) -> FloatArray:
    array = np.asarray(values, dtype=np.float64).ravel()
    if not len(array):
        raise ValueError(f"{name} holds no score")
    if np.isnan(array).any():
        raise ValueError(f"{name} holds NaN")
    return array


def placements(positive: FloatArray, negative: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return for each positive the share of negatives below it, for each negative the share of positives above it."""
    pos, neg = np.sort(positive), np.sort(negative)
    below = np.searchsorted(neg, positive, "left") + np.searchsorted(neg, positive, "right")
    above = np.searchsorted(pos, negative, "left") + np.searchsorted(pos, negative, "right")
    return below / (2 * len(neg)), 1 - above / (2 * len(pos))


def _centred(pulls: FloatArray) -> float:
    """Variance of a sum of independent pulls that sum to zero."""
    return float(pulls @ pulls) * len(pulls) / max(len(pulls) - 1, 1)


def _rank(n: int, alpha: float) -> int:
    k = threshold_rank(n, alpha)
    if not k:
        raise ValueError(f"{n} calibrate images give no threshold at FPR {alpha:g}: it needs alpha (n + 1) >= 1")
    return k


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _normal_quantile(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)
