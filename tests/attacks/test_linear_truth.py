"""The closed form that controls rely on, against a linear programme and against many draws."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from scipy.optimize import linprog
from support.linear_truth import most_gain


@pytest.mark.parametrize("seed", range(12))
def test_in_linf_it_is_the_optimum_of_the_linear_programme(seed: int) -> None:
    draw = np.random.default_rng(seed)
    w, v, eps = draw.normal(size=9), draw.normal(size=9), 0.1
    v[draw.integers(9)] = 0
    for slack in (-2 * eps * np.abs(v).sum(), *draw.uniform(-1, 1, 5) * eps * np.abs(v).sum()):
        solved = linprog(-w, A_ub=v[None], b_ub=[slack], bounds=[(-eps, eps)] * 9)
        expected = -solved.fun if solved.success else -np.inf
        assert most_gain(w, v, slack, eps, "linf") == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_change_within_the_budget_gains_more_and_some_come_near(norm: Literal["linf", "l2"]) -> None:
    draw = np.random.default_rng(0)
    w, v, eps, slack = np.array([1.0, -0.5]), np.array([0.8, 0.3]), 0.2, 0.03
    angles = np.linspace(0, 2 * np.pi, 4001)
    ring = np.stack([np.cos(angles), np.sin(angles)], 1)
    size = np.abs(ring).max(1) if norm == "linf" else np.linalg.norm(ring, axis=1)
    changes = eps * draw.uniform(0.2, 1, (50, 1, 1)) ** 0.1 * (ring / size[:, None])
    changes = np.concatenate([changes.reshape(-1, 2), eps * ring / size[:, None]])
    allowed = changes[changes @ v <= slack]
    found = most_gain(w, v, slack, eps, norm)
    assert (allowed @ w).max() <= found + 1e-9
    assert (allowed @ w).max() == pytest.approx(found, rel=0.01)
