"""Intervals over seeds: closed forms and limits; their coverage is simulated in tests/simulation/test_seeds.py."""

from __future__ import annotations

import numpy as np
import pytest
from aftershock.harness.statistics.seeds import seed_interval
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t


def test_one_seed_adds_nothing() -> None:
    assert seed_interval(0.41, 0.52, [0.47]) == (0.41, 0.52)


def test_seeds_must_fit_their_interval() -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        seed_interval(0.1, 0.2, [])
    with pytest.raises(ValueError, match="outside"):
        seed_interval(0.1, 0.2, [0.3, 0.4])


def test_equal_seeds_add_nothing_where_the_images_are_not_counted() -> None:
    assert seed_interval(0.41, 0.52, [0.47] * 3) == pytest.approx((0.41, 0.52))
    assert seed_interval(0.0, 0.02, [0.0] * 3) == (0.0, 0.02)
    assert seed_interval(0.98, 1.0, [1.0] * 3) == (0.98, 1.0)


def logit(share: float) -> float:
    return float(np.log(share / (1 - share)))


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_images_and_seeds_add_in_quadrature_on_the_logit_scale(level: float) -> None:
    per_seed = [0.28, 0.30, 0.35]
    m = float(np.mean(per_seed))
    reach = t.ppf((1 + level) / 2, 2) * np.std(per_seed, ddof=1) / np.sqrt(3) / (m * (1 - m))
    low, high = seed_interval(m - 0.03, m + 0.04, per_seed, level)
    assert logit(m) - logit(low) == pytest.approx(np.hypot(logit(m) - logit(m - 0.03), reach))
    assert logit(high) - logit(m) == pytest.approx(np.hypot(logit(m + 0.04) - logit(m), reach))


def test_seeds_at_0_widen_the_interval_by_what_they_cannot_show() -> None:
    low, high = seed_interval(0.0, 0.005, [0.0] * 3, images=500)
    assert low == 0
    # Half an image as the mean, and sqrt(1 / 2) images as the deviation of a seed.
    reach = t.ppf(0.975, 2) * np.sqrt(0.5 / 3) / (0.5 * 0.999)
    assert logit(high) == pytest.approx(logit(0.001) + np.hypot(reach, logit(0.005) - logit(0.001)), abs=1e-9)
    assert 0.02 < high < 0.05
    assert seed_interval(0.995, 1.0, [1.0] * 3, images=500) == pytest.approx((1 - high, 1.0))
    # In the middle the images' resolution does not matter.
    plain, counted = (seed_interval(0.41, 0.52, [0.44, 0.47, 0.50], images=n) for n in (None, 500))
    assert counted == pytest.approx(plain, abs=1e-3)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=2, max_size=6),
    st.floats(0, 0.5),
    st.floats(0, 0.5),
    st.sampled_from([None, 40]),
)
def test_the_interval_holds_that_of_the_images_and_mirrors_it(
    counts: list[int], below: float, above: float, images: int | None
) -> None:
    per_seed = [count / 40 for count in counts]
    m = float(np.mean(per_seed))
    low, high = max(0.0, m - below), min(1.0, m + above)
    found = seed_interval(low, high, per_seed, images=images)
    assert 0 <= found[0] <= low <= high <= found[1] <= 1
    mirrored = seed_interval(1 - high, 1 - low, [1 - share for share in per_seed], images=images)
    assert mirrored == pytest.approx((1 - found[1], 1 - found[0]), abs=1e-6)
