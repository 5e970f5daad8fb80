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
    target = FittedTarget(detector, None, torch.arange(images), nothing, nothing, nothing)  # type: ignore[arg-type]
    assert target.threshold == expected


def test_guides_are_the_images_that_the_detector_lets_pass() -> None:
    images, labels = torch.arange(4).float().view(4, 1, 1, 1), torch.arange(4)
    scores = torch.tensor([0.0, 950.0, 951.0, torch.nan])
    detector = SimpleNamespace(surrogate_kind="none")
    target = FittedTarget(detector, None, torch.arange(1000), images, labels, scores)  # type: ignore[arg-type]
    guides = target.guides()
    assert guides.labels.tolist() == [0, 1] and torch.equal(guides.images, images[:2])
