"""Exact tests of pass rates against enumerations, SciPy's Fisher test and their own level."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from aftershock.harness.statistics.pass_rates import squares_p, sum_p
from scipy import stats


def assignments(passes: np.ndarray, n: int) -> np.ndarray:
    """Passes of each image in the first n evaluations, over all assignments of evaluations (k, images) to samples."""
    by_image = [
        [passes[list(picked), image].sum() for picked in combinations(range(len(passes)), n)]
        for image in range(passes.shape[1])
    ]
    return np.array(list(product(*by_image)))


@pytest.mark.parametrize("seed", range(6))
def test_they_count_the_assignments_that_are_at_least_as_extreme(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, m = 2, 3
    passes = (rng.random((n + m, 3)) < [0.3, 0.6, 0.9]).astype(np.int64)
    first, total = passes[:n].sum(0), passes.sum(0)
    everywhere = assignments(passes, n)
    sums, mine = everywhere.sum(1), first.sum()
    expected = min(1.0, 2 * min((sums <= mine).mean(), (sums >= mine).mean()))
    assert sum_p(first, total - first, (n, m)) == pytest.approx(expected, abs=1e-10)

    def squares(of: np.ndarray) -> np.ndarray:
        rate = total / (n + m)
        variance = rate * (1 - rate) * (1 / n + 1 / m)
        drawn = variance > 0
        parts = ((of / n - (total - of) / m) ** 2)[..., drawn] / variance[drawn]
        return np.rint(8 * parts).sum(-1)

    expected = (squares(everywhere) >= squares(first)).mean()
    assert squares_p(first, total - first, (n, m)) == pytest.approx(expected, abs=1e-10)


def test_one_image_is_fishers_exact_test() -> None:
    table = [[3, 17], [11, 9]]
    less, greater = (stats.fisher_exact(table, side).pvalue for side in ("less", "greater"))
    found = sum_p(np.array([3]), np.array([11]), (20, 20))
    assert found == pytest.approx(2 * min(less, greater), abs=1e-12)


def test_rates_near_zero_have_the_level_that_is_asked_for() -> None:
    """One evaluation against twenty, few passes: a normal approximation has four times the level there."""
    rng = np.random.default_rng(0)
    rates = np.full(64, 0.03)
    found = np.array(
        [sum_p(rng.binomial(1, rates), rng.binomial(20, rates), (1, 20)) for _ in range(2000)],
    )
    assert (found < 0.01).mean() <= 0.01 + 3 * np.sqrt(0.01 / 2000)


def test_differences_in_either_direction_are_found_and_images_that_never_change_are_not() -> None:
    half = np.repeat([18, 2], 30)
    assert sum_p(half, half[::-1], (20, 20)) == pytest.approx(1)
    assert squares_p(half, half[::-1], (20, 20)) < 1e-10
    constant = np.repeat([20, 0], 30)
    assert sum_p(constant, constant, (20, 20)) == squares_p(constant, constant, (20, 20)) == pytest.approx(1)
    assert sum_p(constant, constant[::-1] * 0, (20, 20)) < 1e-10
