"""The sign-flip test against SciPy's binomial test, enumeration and the normal limit."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from aftershock.harness.statistics.sign_flip import mcnemar_p, sign_flip_p
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm


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
        sign_flip_p(np.array([0.5]))


def test_many_pairs_at_once_are_the_pairs_one_by_one() -> None:
    better, worse = (np.ravel(counts) for counts in np.meshgrid(np.arange(25), np.arange(0, 60, 3)))
    expected = [sign_flip_p(np.repeat([1, -1], [b, w])) for b, w in zip(better, worse, strict=True)]
    assert mcnemar_p(better - worse, better + worse) == pytest.approx(np.array(expected), rel=1e-9)
