"""Holm's correction against his own procedure and its neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from aftershock.harness.statistics.multiple_testing import holm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control


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
