"""Paired comparisons against closed forms, other libraries and planted truths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from aftershock.harness.statistics.paired import Scored, delong, normal_difference, roc_points
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

Floats = NDArray[np.float64]


def scored(positive: Floats, negative: Floats, first: int = 0) -> Scored:
    """Scores of images that have nothing in common."""
    n, m = len(positive), len(negative)
    return Scored(positive, negative, np.arange(n) + first, np.arange(m) + first + n)


def textbook(a: Scored, b: Scored) -> tuple[float, float]:
    """DeLong, DeLong and Clarke-Pearson's test, kernel by kernel: the difference and its standard error."""
    v10, v01, areas = [], [], []
    for side in (a, b):
        kernel = (side.positive[:, None] > side.negative) + 0.5 * (side.positive[:, None] == side.negative)
        v10.append(kernel.mean(1))
        v01.append(kernel.mean(0))
        areas.append(kernel.mean())
    s10, s01 = np.cov(v10), np.cov(v01)
    s = s10 / len(a.positive) + s01 / len(a.negative)
    return float(areas[0] - areas[1]), math.sqrt(s[0, 0] + s[1, 1] - 2 * s[0, 1])


def pair(seed: int, n: int = 300, m: int = 200, gain: float = 0.3) -> tuple[Scored, Scored]:
    """Two scores of the same images that are correlated; the second separates better by ``gain``."""
    draws = np.random.default_rng(seed)
    positive, negative = draws.normal(1, 1, n), draws.normal(0, 1, m)
    first = scored(positive + draws.normal(0, 0.5, n), negative + draws.normal(0, 0.5, m))
    return first, scored(positive + gain + draws.normal(0, 0.5, n), negative + draws.normal(0, 0.5, m))


@pytest.mark.parametrize("seed", range(5))
def test_delong_is_the_textbooks(seed: int) -> None:
    first, second = pair(seed)
    difference, error = textbook(first, second)
    found = delong([first], [second])
    assert found.value == pytest.approx(difference, abs=1e-12)
    labels = np.repeat([1, 0], [300, 200])
    areas = [roc_auc_score(labels, np.concatenate([s.positive, s.negative])) for s in (first, second)]
    assert found.value == pytest.approx(areas[0] - areas[1], abs=1e-12)
    # Sums per source image have one mean; the textbook's two sets have one each.
    assert (found.high - found.low) / 2 / norm.ppf(0.975) == pytest.approx(error, rel=0.01)
    assert found.p == pytest.approx(2 * norm.sf(abs(difference) / error), rel=0.1)
    back = delong([second], [first])
    assert (back.value, back.p) == pytest.approx((-found.value, found.p))


def test_what_two_scores_have_in_common_cancels() -> None:
    first, _ = pair(0)
    assert delong([first], [first]).p == 1
    # A score by any rising function of another one orders the images alike.
    same = Scored(np.exp(first.positive), np.exp(first.negative), first.positive_source, first.negative_source)
    assert delong([first], [same]).p == 1
    apart = scored(first.positive, first.negative, first=10_000)
    independent = delong([first], [apart])
    assert independent.value == 0 and independent.high - independent.low > 0.05


def test_images_in_both_sets_are_one_observation() -> None:
    """A perturbed image and its clean version share what makes the image odd."""
    draws = np.random.default_rng(3)
    wrong, reps, n = 0, 300, 60
    for _ in range(reps):
        odd = draws.normal(0, 3, n)
        sides = [
            Scored(odd + 1 + draws.normal(0, 1, n), odd + draws.normal(0, 1, n), np.arange(n), np.arange(n))
            for _ in range(2)
        ]
        wrong += delong([sides[0]], [sides[1]]).p <= 0.05
    assert 0.02 <= wrong / reps <= 0.09


def test_seeds_of_the_same_images_are_not_more_images() -> None:
    first, second = pair(1)
    one, three = delong([first], [second]), delong([first] * 3, [second] * 3)
    assert three.p == pytest.approx(one.p)
    assert three.value == pytest.approx(one.value)


def test_a_planted_gain_is_found_and_a_far_one_has_a_p_value() -> None:
    (first, second), (other, far) = pair(2, gain=0.8), pair(2, gain=4.0)
    assert delong([first], [second]).p < 0.001
    assert 0 < delong([other], [far]).p < 1e-15


@pytest.mark.parametrize("ties", [False, True])
def test_roc_points_are_scikit_learns(ties: bool) -> None:
    draws = np.random.default_rng(7)
    positive, negative = draws.normal(1, 1, 50), draws.normal(0, 1, 70)
    if ties:
        positive, negative = positive.round(), negative.round()
    fpr, tpr, cuts = roc_points(positive, negative)
    expected = roc_curve(np.repeat([1, 0], [50, 70]), np.concatenate([positive, negative]), drop_intermediate=False)
    assert np.allclose(fpr, expected[0]) and np.allclose(tpr, expected[1])
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1], cuts[-1]) == (0, 0, 1, 1, -np.inf)
    for f, t, cut in zip(fpr, tpr, cuts, strict=True):
        assert (f, t) == (pytest.approx((negative > cut).mean()), pytest.approx((positive > cut).mean()))


def test_independent_figures_are_compared_by_their_intervals() -> None:
    found = normal_difference((0.6, 0.5, 0.7), (0.4, 0.3, 0.5))
    error = 0.1 / norm.ppf(0.975)
    assert found.p == pytest.approx(2 * norm.sf(0.2 / (error * math.sqrt(2))))
    assert (found.low, found.high) == pytest.approx((0.2 - 0.1 * math.sqrt(2), 0.2 + 0.1 * math.sqrt(2)))
    assert normal_difference((0.5, 0.4, 0.6), (0.5, 0.1, 0.9)).p == 1
    # The end that faces the other figure decides.
    assert normal_difference((0.6, 0.55, 0.9), (0.4, 0.1, 0.45)).p < 0.01


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Scored(np.zeros(2), np.zeros(2), np.arange(3), np.arange(2)),
        lambda: Scored(np.zeros(0), np.zeros(2), np.arange(0), np.arange(2)),
        lambda: Scored(np.array([np.nan]), np.zeros(1), np.arange(1), np.arange(1)),
        lambda: roc_points([], [1.0]),
        lambda: delong([], []),
    ],
)
def test_what_is_no_comparison_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        wrong()  # type: ignore[operator]
