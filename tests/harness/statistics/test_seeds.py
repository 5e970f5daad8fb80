"""Intervals over seeds: closed forms and limits; their coverage is simulated in tests/simulation/test_ranks.py."""

from __future__ import annotations

import numpy as np
import pytest
from aftershock.harness.statistics.seeds import seed_interval
from scipy.stats import t


def test_one_seed_adds_nothing() -> None:
    assert seed_interval(0.41, 0.52, [0.47]) == (0.41, 0.52)


def test_seeds_must_fit_their_interval() -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        seed_interval(0.1, 0.2, [])
    with pytest.raises(ValueError, match="outside"):
        seed_interval(0.1, 0.2, [0.3, 0.4])


def test_equal_seeds_add_nothing() -> None:
    assert seed_interval(0.41, 0.52, [0.47] * 3) == pytest.approx((0.41, 0.52))
    assert seed_interval(0.0, 0.02, [0.0] * 3) == pytest.approx((0.0, 0.02))


def test_images_and_seeds_add_in_quadrature() -> None:
    per_seed = [0.48, 0.50, 0.55]
    mean, reach = np.mean(per_seed), t.ppf(0.975, 2) * np.std(per_seed, ddof=1) / np.sqrt(3)
    low, high = seed_interval(mean - 0.03, mean + 0.04, per_seed)
    assert (mean - low, high - mean) == pytest.approx((np.hypot(0.03, reach), np.hypot(0.04, reach)))
