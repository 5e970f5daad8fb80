"""Medians of censored values against what can be worked out by hand, and the exact sign test."""

from __future__ import annotations

import math

import numpy as np
import pytest
from aftershock.harness.statistics.survival import median, sign_test
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=40))
def test_without_censoring_it_is_the_lower_median(values: list[float]) -> None:
    found = median(np.array(values), np.zeros(len(values), dtype=bool))
    assert found.value == sorted(values)[(len(values) - 1) // 2]
    assert found.low <= found.value <= found.high


def test_the_curve_of_kaplan_and_meier_by_hand() -> None:
    # Left after 1: 5/6; after 3 (four at risk): 5/8; after 4 (three at risk): 5/12.
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    censored = np.array([False, True, False, False, True, False])
    assert median(values, censored).value == 4.0
    # A censored value counts as longer than an equal one.
    assert median(np.array([1.0, 1.0, 2.0]), np.array([True, False, False])).value == 2.0


def test_of_mostly_censored_values_only_a_lower_bound_is_known() -> None:
    found = median(np.array([1.0, 3.0, 3.0, 3.0]), np.array([False, True, True, True]))
    assert found.value == 3.0 and math.isinf(found.high)


def test_several_values_of_an_image_are_resampled_together() -> None:
    draw = np.random.default_rng(0)
    one = np.exp(draw.normal(size=(200, 1)))
    alone, repeated = (median(np.repeat(one, k, 1), np.zeros((200, k), dtype=bool)) for k in (1, 5))
    # Five copies of the same number say no more than one.
    assert (alone.low, alone.high) == pytest.approx((repeated.low, repeated.high))
    missing = np.where(np.arange(200)[:, None] < 100, one, np.nan)
    left = median(missing, np.zeros((200, 1), dtype=bool))
    assert left.value == median(one[:100], np.zeros((100, 1), dtype=bool)).value
    assert math.isnan(median(missing[100:], np.zeros((100, 1), dtype=bool)).value)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_the_sign_test_is_the_binomial_test_of_pairs_that_differ(pairs: list[tuple[int, int]]) -> None:
    # 3 stands for what lies beyond everything that was looked at.
    first, second = (np.where(np.array(v) == 3, np.inf, np.array(v, dtype=float)) for v in zip(*pairs, strict=True))
    p, more = sign_test(first, second)
    larger, smaller = int((first > second).sum()), int((first < second).sum())
    assert more == larger - smaller
    expected = binomtest(larger, larger + smaller).pvalue if larger + smaller else 1.0
    assert p == pytest.approx(expected)
