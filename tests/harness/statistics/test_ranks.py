"""Tests of pairs against SciPy, enumeration and closed forms; ranks as a function of the set of rows."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from aftershock.harness.statistics.holm import holm
from aftershock.harness.statistics.ranks import RowSample, pair_p, pairwise_p, ranks, ranks_of_p, sign_flip_p
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, false_discovery_control, norm, t

# The sign-flip test


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 50))
def test_sign_flip_with_one_seed_is_mcnemars_exact_test(better: int, worse: int, same: int) -> None:
    p = sign_flip_p(np.repeat([1, -1, 0], [better, worse, same]))
    expected = binomtest(better, better + worse, 0.5).pvalue if better + worse else 1.0
    assert p == pytest.approx(expected, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-5, 5), max_size=10))
def test_sign_flip_counts_all_assignments_of_signs(differences: list[int]) -> None:
    observed = abs(sum(differences))
    sums = [abs(sum(signed)) for signed in itertools.product(*((d, -d) for d in differences))]
    expected = sum(value >= observed for value in sums) / len(sums)
    assert sign_flip_p(np.array(differences, dtype=np.int64)) == pytest.approx(expected, rel=1e-12)


def test_sign_flip_of_a_hundred_thousand_images() -> None:
    draws = np.random.default_rng(0)
    one = draws.choice([-1, 0, 1], 100_000, p=[0.14, 0.71, 0.15])
    expected = binomtest(int((one == 1).sum()), int((one != 0).sum()), 0.5).pvalue
    assert sign_flip_p(one) == pytest.approx(expected, rel=1e-6)
    start = time.process_time()
    five = draws.integers(-5, 6, 100_000) + (draws.random(100_000) < 0.01)
    five = five.clip(-5, 5)
    # With this many images the sum is normal, to about the continuity correction of half a step.
    total, deviation = abs(five.sum()), np.sqrt((five**2).sum())
    assert sign_flip_p(five) == pytest.approx(2 * norm.sf((total - 0.5) / deviation), rel=1e-3)
    assert time.process_time() - start < 5.0


def test_sign_flip_of_nothing_and_of_all() -> None:
    assert sign_flip_p(np.zeros(0, np.int64)) == sign_flip_p(np.zeros(9, np.int64)) == 1
    assert sign_flip_p(np.full(20, 3)) == pytest.approx(2.0**-19)
    with pytest.raises(ValueError, match="whole numbers"):
        sign_flip_p(np.array([0.5]))  # type: ignore[arg-type]


# Holm's correction


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.5))
def test_holm_rejects_what_its_steps_reject(p_values: list[float], level: float) -> None:
    """Holm's procedure as he wrote it: go up the ordered values and stop at the first that is too large."""
    rejected = set()
    for step, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[i] * (len(p_values) - step) > level:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(p_values)) if p is not None and p <= level} == rejected


def test_holm() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    values = np.random.default_rng(3).random(20) ** 3
    corrected = np.array(holm(values.tolist()), dtype=float)
    # Stricter than Benjamini and Hochberg, milder than Bonferroni.
    assert (corrected >= false_discovery_control(values) - 1e-12).all()
    assert (corrected <= np.minimum(1, 20 * values) + 1e-12).all()


# Pairs of rows


def sample(accuracies: list[float], images: int = 200, seed: int = 0, spread: float = 0.03) -> RowSample:
    """A row whose resamples have a known spread around each seed's accuracy."""
    draws = np.random.default_rng(seed)
    robust = np.array([np.arange(images) < round(a * images) for a in accuracies])
    return RowSample(robust, robust.mean(1, keepdims=True) + draws.normal(0, spread, (len(accuracies), 500)))


def test_one_seed_is_a_normal_test_of_the_resampled_difference() -> None:
    # Few images differ in the wide sample, so the exact test is far below the normal one.
    a, b = sample([0.60], spread=0.1), sample([0.45], seed=1, spread=0.1)
    z = 0.15 / np.std(a.resampled - b.resampled, ddof=1)
    assert pair_p(a, b) == pytest.approx(2 * norm.sf(z), rel=1e-9)
    assert pair_p(b, a) == pytest.approx(pair_p(a, b), rel=1e-12)


def test_the_exact_test_is_a_lower_limit() -> None:
    a, b = sample([0.5], images=12, spread=1e-6), sample([0.25], images=12, seed=1, spread=1e-6)
    assert pair_p(a, b) == sign_flip_p(a.robust.sum(0) - b.robust.sum(0)) == pytest.approx(0.25)


def test_two_and_more_seeds_add_the_spread_of_the_paired_differences() -> None:
    a, b = sample([0.62, 0.58, 0.66], spread=0.05), sample([0.45, 0.47, 0.46], seed=1, spread=0.05)
    per_seed = a.robust.mean(1) - b.robust.mean(1)
    variance = np.var((a.resampled - b.resampled).mean(0), ddof=1)
    p = pair_p(a, b)
    reached = norm.isf(p / 2) ** 2 * variance + t.isf(p / 2, 2) ** 2 * per_seed.var(ddof=1) / 3
    assert reached == pytest.approx(per_seed.mean() ** 2, rel=1e-9)
    assert p > 2 * norm.sf(per_seed.mean() / np.sqrt(variance))


def test_images_without_spread_leave_students_t() -> None:
    a, b = sample([0.62, 0.58, 0.66], spread=0), sample([0.45, 0.47, 0.46], spread=0)
    per_seed = a.robust.mean(1) - b.robust.mean(1)
    expected = 2 * t.sf(per_seed.mean() / (per_seed.std(ddof=1) / np.sqrt(3)), 2)
    assert pair_p(a, b) == pytest.approx(expected, rel=1e-9)


def test_equal_rows_and_rows_without_any_spread() -> None:
    a, b = sample([0.5, 0.6]), sample([0.6, 0.5], seed=1)
    assert pair_p(a, a) == pair_p(a, b) == 1
    apart = sample([0.9], spread=0), sample([0.1], spread=0)
    assert pair_p(*apart) == sign_flip_p(apart[0].robust.sum(0) - apart[1].robust.sum(0))


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
