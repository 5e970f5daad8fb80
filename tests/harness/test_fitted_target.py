"""The threshold that an attack against a detector aims below."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from aftershock.harness.run.fitted_target import FittedTarget


@pytest.mark.parametrize(("images", "expected"), [(1000, 950.0), (19, 18.0), (10, 9.0)])
def test_threshold_is_that_of_the_tables_or_the_largest_score(images: int, expected: float) -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    detector = SimpleNamespace(surrogate_kind="none")
    target = FittedTarget(detector, None, torch.arange(images), nothing, nothing)  # type: ignore[arg-type]
    assert target.threshold == expected
