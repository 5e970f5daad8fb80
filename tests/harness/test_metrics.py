"""Figures of merit against scikit-learn, SciPy and closed forms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from aftershock.harness.statistics.detection import (
    auroc,
    auroc_interval,
    average_precision,
    calibrate_weights,
    evaluate_weights,
    min_calibrate,
    percentile_interval,
    resampled_shares,
    resampled_thresholds,
    source_weights,
    threshold,
    threshold_rank,
    threshold_reason,
    tpr_interval,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, norm
from sklearn.metrics import average_precision_score, roc_auc_score

# Few distinct values, so that most draws hold ties.
COARSE = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=25)
FINE = st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=25)


def _labelled(positive: list[float], negative: list[float]) -> tuple[np.ndarray, np.ndarray]:
    return np.r_[np.ones(len(positive)), np.zeros(len(negative))], np.r_[positive, negative]


@settings(max_examples=150, deadline=None)
@given(COARSE | FINE, COARSE | FINE)
def test_auroc_and_average_precision_agree_with_scikit_learn(positive: list[float], negative: list[float]) -> None:
    truth, scores = _labelled(positive, negative)
    assert auroc(positive, negative) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert average_precision(positive, negative) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(COARSE, COARSE)
def test_auroc_interval_holds_the_auroc_and_mirrors_it(positive: list[float], negative: list[float]) -> None:
    low, high = auroc_interval(positive, negative)
    assert 0 <= low <= auroc(positive, negative) <= high <= 1
    assert auroc_interval(negative, positive) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_auroc_takes_raw_scores() -> None:
    draws = np.random.default_rng(0)
    positive, negative = draws.normal(1, 1, 80), draws.normal(0, 1, 90)
    known = auroc(positive, negative)
    assert auroc(positive * 50 + 700, negative * 50 + 700) == pytest.approx(known, abs=1e-12)
    # Float32 would round both to the same number.
    assert auroc(positive * 1e-6 + 1e4, negative * 1e-6 + 1e4) == pytest.approx(known, abs=1e-3)
    assert auroc([np.inf], [1e300]) == 1


@pytest.mark.parametrize("bad", [[], [np.nan, 1.0]])
def test_empty_and_nan_are_refused(bad: list[float]) -> None:
    for call in (
        lambda: auroc(bad, [0.0]),
        lambda: auroc([0.0], bad),
        lambda: average_precision(bad, [0.0]),
        lambda: auroc_interval([0.0], bad),
        lambda: threshold(bad, 0.05),
        lambda: tpr_interval(np.zeros(20), bad, 0.05),
    ):
        with pytest.raises(ValueError, match=r"NaN|no score"):
            call()


def _delong(positive: np.ndarray, negative: np.ndarray) -> float:
    """DeLong's variance, written from its definition with all pairs."""
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    return wins.mean(1).var(ddof=1) / len(positive) + wins.mean(0).var(ddof=1) / len(negative)


def test_auroc_interval_is_delongs_where_that_is_sound() -> None:
    draws = np.random.default_rng(1)
    positive, negative = draws.normal(1.2, 1, 2000).round(1), draws.normal(0, 1, 2500).round(1)
    area = roc_auc_score(*_labelled(list(positive), list(negative)))
    reach = norm.ppf(0.95) * np.sqrt(_delong(positive, negative)) / (area * (1 - area))
    expected = 1 / (1 + np.exp(-(np.log(area / (1 - area)) + np.array([-reach, reach]))))
    # A fifth of an observation among 2000 moves the limits by about 1e-4 / 2.
    assert auroc_interval(positive, negative, level=0.9) == pytest.approx(expected, abs=2e-4)


def test_sources_narrow_the_interval_exactly_as_the_covariance_says() -> None:
    draws = np.random.default_rng(2)
    shared = draws.normal(size=1500)
    negative = shared + 0.4 * draws.normal(size=1500)
    positive = 1 + shared + 0.4 * draws.normal(size=1500)
    index = np.arange(1500)
    alone, paired = (
        auroc_interval(positive, negative),
        auroc_interval(positive, negative, positive_source=index, negative_source=index),
    )
    # The spread of the AUROC over fresh draws of the same population is the oracle.
    repeated = []
    for _ in range(300):
        shared = draws.normal(size=1500)
        repeated.append(auroc(1 + shared + 0.4 * draws.normal(size=1500), shared + 0.4 * draws.normal(size=1500)))
    true_width = 2 * norm.ppf(0.975) * np.std(repeated)
    # 300 repetitions know a standard deviation to about 4 %; 15 % is more than three of these.
    assert paired[1] - paired[0] == pytest.approx(true_width, rel=0.15)
    assert alone[1] - alone[0] > 1.5 * true_width


def test_disjoint_sources_change_nothing() -> None:
    draws = np.random.default_rng(3)
    positive, negative = draws.normal(1, 1, 1000), draws.normal(0, 1, 1000)
    plain = auroc_interval(positive, negative)
    given_sources = auroc_interval(
        positive, negative, positive_source=np.arange(1000), negative_source=np.arange(1000, 2000)
    )
    assert given_sources == pytest.approx(plain, abs=1e-4)  # n / (n − 1) with 2000 in place of 1000


def test_sources_must_fit() -> None:
    with pytest.raises(ValueError, match="or none"):
        auroc_interval([1.0], [0.0], positive_source=[0])
    with pytest.raises(ValueError, match="source images"):
        auroc_interval([1.0], [0.0], positive_source=[0], negative_source=[1, 2])


@pytest.mark.parametrize("n", [30, 300, 1000])
def test_perfect_separation_has_an_honest_interval(n: int) -> None:
    low, high = auroc_interval(np.ones(n), np.zeros(n))
    assert high == 1
    # Of the order of the rule of three: no miss among n excludes rates above about 3 / n.
    assert 1.5 / n < 1 - low < 7 / n
    assert auroc_interval(np.zeros(n), np.ones(n)) == pytest.approx((0, 1 - low), abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(COARSE | FINE, st.floats(0.001, 0.999))
def test_threshold_is_the_kth_largest_score(scores: list[float], alpha: float) -> None:
    k = sum(i / (len(scores) + 1) <= alpha for i in range(1, len(scores) + 1))
    assert threshold_rank(len(scores), alpha) == k
    if k:
        assert threshold(scores, alpha) == sorted(scores, reverse=True)[k - 1]
    else:
        with pytest.raises(ValueError, match="calibrate images give no threshold"):
            threshold(scores, alpha)


@pytest.mark.parametrize(
    ("n", "alpha", "k"),
    [(99, 0.29, 29), (99, 0.07, 7), (999, 0.05, 50), (1000, 0.05, 50), (1000, 0.01, 10), (198, 0.05, 9), (19, 0.05, 1)],
)
def test_threshold_does_not_lose_an_image_to_rounding(n: int, alpha: float, k: int) -> None:
    assert threshold_rank(n, alpha) == k
    scores = np.random.default_rng(0).permutation(n)
    assert (scores > threshold(scores, alpha)).sum() == k - 1


def test_a_rank_never_exceeds_its_false_positive_rate() -> None:
    for whole in (20, 100, 200, 1000, 1001, 5000):
        for i in range(1, whole):
            assert threshold_rank(whole - 1, i / whole) == i
            assert threshold_rank(whole - 1, np.nextafter(i / whole, 0)) == i - 1


# Scores, and the chance that a new one exceeds t: continuous, rounded to many ties, and of five values.
POPULATIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "continuous": (lambda z: z, norm.sf),
    "rounded": (lambda z: z.round(1), lambda t: norm.sf(np.round(t, 1) + 0.05)),
    "discrete": (lambda z: np.floor(np.clip(z, -2, 2)), lambda t: np.where(t >= 2, 0, norm.sf(t + 1))),
}


@pytest.mark.parametrize("population", POPULATIONS)
@pytest.mark.parametrize(("n", "alpha"), [(200, 0.05), (200, 0.10), (1000, 0.01), (1000, 0.05), (1000, 0.10)])
def test_a_new_clean_image_is_flagged_as_often_as_promised(n: int, alpha: float, population: str) -> None:
    form, exceeds = POPULATIONS[population]
    draws = np.random.default_rng(12)
    rates = np.concatenate(
        [exceeds(np.apply_along_axis(threshold, 1, form(draws.standard_normal((1000, n))), alpha)) for _ in range(10)]
    )
    error = rates.std() / np.sqrt(len(rates))
    if population == "continuous":
        assert rates.mean() == pytest.approx(threshold_rank(n, alpha) / (n + 1), abs=4 * error)
    assert rates.mean() <= alpha + 4 * error


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 5.0])
def test_alpha_is_a_share(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        threshold([1.0, 2.0], alpha)


def test_calibrate_must_be_large_enough() -> None:
    assert [min_calibrate(alpha) for alpha in (0.01, 0.05, 0.1)] == [1000, 200, 100]
    assert threshold_reason(200, 0.05) is None
    reason = threshold_reason(199, 0.05)
    assert reason is not None
    assert "200" in reason
    assert "199" in reason


def test_weights_are_jeffreys_posterior() -> None:
    weights = source_weights(40, 20000, seed=5)
    assert weights.shape == (20000, 42)
    assert weights.sum(1) == pytest.approx(np.ones(20000))
    share = weights[:, :7].sum(1) + weights[:, -1]
    wanted = beta(7.5, 33.5)
    # The standard error of these quantiles at 20000 draws is below 0.002.
    assert np.quantile(share, [0.025, 0.5, 0.975]) == pytest.approx(wanted.ppf([0.025, 0.5, 0.975]), abs=0.006)


def test_resampled_thresholds_follow_their_definition() -> None:
    draws = np.random.default_rng(6)
    scores = draws.integers(0, 40, 300).astype(float)  # many ties
    weights = calibrate_weights(300, 50)
    for alpha in (0.01, 0.05, 0.4):
        found = resampled_thresholds(scores, alpha, weights)
        share = threshold_rank(300, alpha) / 301
        for row, t in zip(weights, found, strict=True):
            candidates = [v for v in np.unique(scores) if row[-1] + row[:300][scores > v].sum() <= share]
            assert t == min(candidates)


def test_resampled_thresholds_reach_as_far_down_as_they_must() -> None:
    scores = np.arange(100.0)
    weights = np.full((1, 102), 1e-9)
    weights[0, 3] = 1.0  # all the weight on one low score
    assert resampled_thresholds(scores, 0.05, weights)[0] == 3.0


def test_nothing_exceeds_the_threshold_when_the_pseudo_observation_is_heavy() -> None:
    weights = np.array([[0.1, 0.1, 0.0, 0.8]])
    assert not (resampled_thresholds([1.0, 2.0], 0.5, weights) < 1e300).any()


def test_resampled_thresholds_lie_around_the_threshold() -> None:
    n, alpha, resamples = 400, 0.05, 8000
    k = threshold_rank(n, alpha)
    at_or_above = n - resampled_thresholds(np.arange(n), alpha, source_weights(n, resamples, seed=1))
    # The weight that exceeds the (j + 1)-th largest score is Beta(j + 1/2, n − j + 1/2).
    for j in (k - 8, k - 1, k, k + 8):
        chance = beta(j + 0.5, n - j + 0.5).cdf(k / (n + 1))
        assert (at_or_above > j).mean() == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / resamples))


def test_resampled_shares_do_not_depend_on_the_block() -> None:
    draws = np.random.default_rng(7)
    lower, upper = draws.normal(-1, 1, (2, 70)), draws.normal(1, 1, (2, 70))
    weights = evaluate_weights(70, 40)
    t = [draws.normal(size=40), draws.normal(size=40)]
    whole = resampled_shares(t, list(lower), list(upper), weights)
    assert resampled_shares(t, list(lower), list(upper), weights, block=9) == pytest.approx(whole)
    by_hand = [
        np.mean([weights[r, :70][(lower[s] <= t[s][r]) & (t[s][r] < upper[s])].sum() for s in range(2)])
        + weights[r, -1]
        for r in range(40)
    ]
    assert whole == pytest.approx(np.array(by_hand))


def test_tpr_interval_counts_the_threshold_s_own_error() -> None:
    draws = np.random.default_rng(8)
    clean, positive = draws.normal(size=300), draws.normal(norm.ppf(0.95), 1, 3000)
    low, high = tpr_interval(clean, positive, 0.05)
    rate = (positive > threshold(clean, 0.05)).mean()
    assert low <= rate <= high
    alone = 2 * 1.96 * np.sqrt(rate * (1 - rate) / 3000)
    # Delta method: the threshold's standard error is sqrt(α (1 − α) / m) / φ(t), times the density of the positives.
    moved = np.sqrt(0.05 * 0.95 / 300) / norm.pdf(norm.ppf(0.95)) * norm.pdf(0)
    assert high - low > 2.5 * alone
    assert high - low == pytest.approx(2 * 1.96 * np.hypot(moved, alone / 3.92), rel=0.35)


def test_tpr_interval_at_the_ends() -> None:
    low, high = tpr_interval(np.arange(1000), np.full(300, 5000), 0.05)
    assert high == 1
    assert 1 - low == pytest.approx(1 - beta(300.5, 0.5).ppf(0.025), rel=0.25)
    assert tpr_interval(np.arange(1000), np.full(300, -1), 0.05)[0] == 0


def test_intervals_are_deterministic() -> None:
    draws = np.random.default_rng(9)
    clean, positive = draws.normal(size=250), draws.normal(2, 1, 50)
    assert tpr_interval(clean, positive, 0.05) == tpr_interval(clean, positive, 0.05)


def test_percentile_interval_holds_its_estimate() -> None:
    values = np.linspace(0.1, 0.2, 1001)
    assert percentile_interval(values, 0.9, 0.15) == pytest.approx((0.105, 0.195))
    assert percentile_interval(values, 0.9, 0.0) == pytest.approx((0.0, 0.195))
