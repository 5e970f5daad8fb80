"""Pairs of rows against closed forms; ranks as a function of the set of rows."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from aftershock.harness.statistics.detection import evaluate_weights
from aftershock.harness.statistics.ranks import (
    _THRESHOLD_DF,
    RowSample,
    pair_p,
    pairwise_p,
    ranks,
    ranks_of_p,
    sign_flip_p,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, t


def sample(accuracies: list[float], images: int = 200, seed: int = 0, spread: float = 0.03) -> RowSample:
    """A row whose resamples have a known spread around each seed's accuracy."""
    draws = np.random.default_rng(seed)
    robust = np.array([np.arange(images) < round(a * images) for a in accuracies])
    return RowSample(robust, robust.mean(1, keepdims=True) + draws.normal(0, spread, (len(accuracies), 500)))


def variances(a: RowSample, b: RowSample) -> tuple[float, float]:
    """The variance of the difference by the images, at fixed thresholds, and what resamples have beyond it."""
    difference = a.robust.mean(0) - b.robust.mean(0)
    n = len(difference)
    # Dirichlet weights with the parameters 1, ..., 1, 1/2, 1/2.
    of_images = ((difference**2).sum() / (n + 1) - (difference.sum() / (n + 1)) ** 2) / (n + 2)
    return float(of_images), float(np.var((a.resampled - b.resampled).mean(0), ddof=1) - of_images)


def reached(a: RowSample, b: RowSample, p: float) -> float:
    """The squared difference that is significant at ``p``, written from the definition."""
    of_images, of_thresholds = variances(a, b)
    total = norm.isf(p / 2) ** 2 * of_images + t.isf(p / 2, _THRESHOLD_DF) ** 2 * of_thresholds
    seeds = len(a.robust)
    if seeds > 1:
        per_seed = a.robust.mean(1) - b.robust.mean(1)
        total += t.isf(p / 2, seeds - 1) ** 2 * per_seed.var(ddof=1) / seeds
    return float(total)


def test_one_seed_adds_images_and_thresholds() -> None:
    # Few images differ in the wide sample, so the exact test is far below the other.
    a, b = sample([0.60], spread=0.1), sample([0.45], seed=1, spread=0.1)
    p = pair_p(a, b)
    assert reached(a, b, p) == pytest.approx(0.15**2, rel=1e-9)
    z = 0.15 / np.std(a.resampled - b.resampled, ddof=1)
    assert 2 * norm.sf(z) < p < 2 * t.sf(z, _THRESHOLD_DF)
    assert pair_p(b, a) == pytest.approx(p, rel=1e-12)


def test_resamples_of_images_alone_leave_nothing_to_thresholds() -> None:
    n, weights = 400, evaluate_weights(400, 20_000)
    robust = np.random.default_rng(0).random((2, 1, n)) < [[[0.5]], [[0.4]]]
    of_images, of_thresholds = variances(*(RowSample(r, r @ weights[:, :n].T + weights[:, -1]) for r in robust))
    # 20,000 resamples know a variance to 1 %.
    assert abs(of_thresholds) < 0.04 * of_images


def test_the_exact_test_is_a_lower_limit() -> None:
    a, b = sample([0.5], images=12, spread=1e-6), sample([0.25], images=12, seed=1, spread=1e-6)
    assert sign_flip_p(a.robust.sum(0) - b.robust.sum(0)) == pytest.approx(0.25)
    assert pair_p(a, b) == pytest.approx(0.25)


def test_two_and_more_seeds_add_the_spread_of_the_paired_differences() -> None:
    a, b = sample([0.62, 0.58, 0.66], spread=0.05), sample([0.45, 0.47, 0.46], seed=1, spread=0.05)
    p = pair_p(a, b)
    assert reached(a, b, p) == pytest.approx((a.robust.mean() - b.robust.mean()) ** 2, rel=1e-9)
    one_seed = pair_p(*(RowSample(row.robust[:1], row.resampled.mean(0, keepdims=True)) for row in (a, b)))
    assert p > 3 * one_seed


def test_images_without_spread_leave_students_t() -> None:
    a, b = sample([0.62, 0.58, 0.66], spread=0), sample([0.45, 0.47, 0.46], spread=0)
    per_seed = a.robust.mean(1) - b.robust.mean(1)
    expected = 2 * t.sf(per_seed.mean() / (per_seed.std(ddof=1) / np.sqrt(3)), 2)
    assert pair_p(a, b) == pytest.approx(expected, rel=1e-9)


def test_equal_rows_and_rows_without_any_spread() -> None:
    a, b = sample([0.5, 0.6]), sample([0.6, 0.5], seed=1)
    assert pair_p(a, a) == pair_p(a, b) == 1
    apart = sample([0.9], spread=0), sample([0.1], spread=0)
    exact = sign_flip_p(apart[0].robust.sum(0) - apart[1].robust.sum(0))
    assert 0 < exact < 1e-40
    assert pair_p(*apart) == pytest.approx(exact, rel=1e-9)


def test_rows_must_fit() -> None:
    with pytest.raises(ValueError, match="differ"):
        pair_p(sample([0.5]), sample([0.5, 0.5]))
    with pytest.raises(ValueError, match="differ"):
        pair_p(sample([0.5]), sample([0.5], images=10))
    with pytest.raises(ValueError, match="seeds"):
        RowSample(np.ones((2, 9), np.bool_), np.ones((1, 9)))
    with pytest.raises(ValueError, match="needs"):
        RowSample(np.ones((2, 0), np.bool_), np.ones((2, 9)))


def random_rows(n: int, images: int, seeds: int, seed: int, resamples: int = 60) -> list[RowSample]:
    draws = np.random.default_rng(seed)
    levels = draws.choice([0.2, 0.3, 0.5, 0.8], n)
    found = []
    for level in levels:
        robust = draws.random((seeds, images)) < level
        weights = draws.dirichlet(np.ones(images), resamples)
        found.append(RowSample(robust, robust @ weights.T))
    return found


def mean_accuracies(rows: list[RowSample]) -> np.ndarray:
    return np.array([row.robust.mean() for row in rows])


@pytest.mark.parametrize("seeds", [1, 3])
def test_all_pairs_at_once_are_the_pairs_one_by_one(seeds: int) -> None:
    rows = random_rows(6, 80, seeds, 1)
    p = pairwise_p(rows)
    for i, j in itertools.product(range(6), repeat=2):
        expected = pair_p(rows[i], rows[j]) if i != j else 1.0
        assert p[i, j] == pytest.approx(expected, rel=1e-6)
        assert p[i, j] >= sign_flip_p(rows[i].robust.sum(0) - rows[j].robust.sum(0)) * (1 - 1e-12)


# Ranks


def test_ranks_count_the_significantly_better_rows() -> None:
    # Clear steps: 0.9 and 0.88 cannot be told apart, nor 0.5 and 0.49.
    rows = [sample([a], images=400, seed=i, spread=0.02) for i, a in enumerate([0.49, 0.9, 0.1, 0.5, 0.88])]
    assert ranks([0.49, 0.9, 0.1, 0.5, 0.88], rows).tolist() == [3, 1, 5, 3, 1]


def test_ranks_never_fall_down_the_list() -> None:
    # The third is compared so imprecisely that only the first is better; the second has two that are better.
    p = np.ones((4, 4))
    for i, j in ((0, 2), (1, 2), (0, 3)):
        p[i, j] = p[j, i] = 1e-6
    assert ranks_of_p(np.array([0.9, 0.8, 0.6, 0.5]), p).tolist() == [1, 1, 3, 3]
    # Equal rows share the largest count.
    assert ranks_of_p(np.array([0.9, 0.8, 0.6, 0.6]), p).tolist() == [1, 1, 3, 3]
    assert ranks_of_p(np.array([0.9, 0.8, 0.6, 0.6])[::-1], p[::-1, ::-1]).tolist() == [3, 3, 1, 1]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 3), st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_ranks_do_not_depend_on_the_order_of_rows(n: int, seeds: int, seed: int, shuffle: st.DrawFn) -> None:
    rows = random_rows(n, 60, seeds, seed)
    order = list(range(n))
    shuffle.shuffle(order)  # type: ignore[attr-defined]
    accuracies = mean_accuracies(rows)
    found = ranks(accuracies, rows)
    assert ranks(accuracies[order], [rows[i] for i in order]).tolist() == found[order].tolist()
    assert found.min() == 1
    assert (np.diff(found[np.argsort(-accuracies)]) >= 0).all()
    for value in np.unique(accuracies):
        assert len(set(found[accuracies == value].tolist())) == 1


def test_ranks_of_few_rows() -> None:
    assert ranks([], []).tolist() == []
    assert ranks([0.4], random_rows(1, 20, 1, 0)).tolist() == [1]
    with pytest.raises(ValueError, match="2 accuracies for 1 rows"):
        ranks([0.4, 0.3], random_rows(1, 20, 1, 0))
    with pytest.raises(ValueError, match="finite"):
        ranks([np.nan], random_rows(1, 20, 1, 0))


@pytest.mark.parametrize("seeds", [1, 3])
def test_two_hundred_rows_are_ranked_in_seconds(seeds: int) -> None:
    draws = np.random.default_rng(0)
    levels = draws.uniform(0.1, 0.9, 200)
    # Seeds that agree about most images, as those of one detector do.
    own = draws.random((200, 1, 1000)) + draws.uniform(-0.02, 0.02, (200, seeds, 1000))
    robust = own < levels[:, None, None]
    rows = [RowSample(one, one.mean(1, keepdims=True) + draws.normal(0, 0.02, (seeds, 1000))) for one in robust]
    start = time.process_time()
    found = ranks(mean_accuracies(rows), rows)
    assert found.max() > 10
    assert time.process_time() - start < 8.0  # about 2 s; the margin is for slow machines
