"""Images as files hold them: on the grid of levels, within the budget, and counted in the worst case."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from aftershock.attacks.base.perturb_batch import rounded
from aftershock.harness.core.registry import DATASETS
from aftershock.harness.data.types import data_levels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn


class Bright(nn.Module):
    """Class 1 where the mean is above one half."""

    def forward(self, images: Tensor) -> Tensor:
        value = images.flatten(1).mean(1) - 0.5
        return torch.stack([-value, value], 1)


LABELS = torch.zeros(4, dtype=torch.int64)


def drawn(seed: int, levels: int | None = None) -> Tensor:
    values = torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(seed))
    return values if levels is None else (values * (levels - 1)).round() / (levels - 1)


def on_grid(images: Tensor, levels: int) -> bool:
    scaled = images.double() * (levels - 1)
    return bool(((scaled - scaled.round()).abs() < 1e-4).all()) and bool(((images >= 0) & (images <= 1)).all())


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 256), st.floats(0, 0.6), st.booleans())
def test_rounded_images_are_on_the_grid_and_within_the_budget(seed: int, levels: int, eps: float, data: bool) -> None:
    """Clean images lie on the grid (data) or anywhere; perturbed ones anywhere within the budget."""
    clean = drawn(seed, levels if data else None)
    perturbed = (clean + eps * (2 * drawn(seed + 1) - 1)).clamp(0, 1)
    made = rounded(Bright(), clean, perturbed, LABELS, levels, eps, "linf")
    assert on_grid(made.images, levels)
    steps = levels - 1
    # Where any level lies within the budget, such a one was taken.
    reach = eps + 2e-7
    possible = ((clean.double() - reach) * steps).ceil() <= ((clean.double() + reach) * steps).floor()
    moved = (made.images.double() - clean.double()).abs()
    assert bool((moved[possible] <= eps * (1 + 1e-4) + 1e-6).all())
    assert data is False or bool(possible.all())
    # And none is further from what was perturbed than a step, plus what the budget takes.
    assert bool(((made.images - perturbed).abs() <= 1 / steps + 1e-5).all())
    with torch.no_grad():
        assert torch.equal(made.predictions, Bright()(made.images).argmax(1))
    assert torch.equal(made.success, made.predictions != LABELS)
    assert torch.allclose(made.norms["linf"].double(), moved.flatten(1).amax(1), atol=1e-6)


def test_the_nearest_level_is_taken_where_the_budget_allows_it() -> None:
    clean = torch.full((4, 1, 3, 3), 100 / 255)
    perturbed = clean + 8.4 / 255
    near = rounded(Bright(), clean, perturbed, LABELS, eps=10 / 255, norm="linf").images
    assert torch.allclose(near * 255, torch.full_like(near, 108.0), atol=1e-3)
    # A budget that is not a whole number of levels is not exceeded: 108.4 goes down to 107.
    down = rounded(Bright(), clean, perturbed, LABELS, eps=7.9 / 255, norm="linf").images
    assert torch.allclose(down * 255, torch.full_like(down, 107.0), atol=1e-3)
    # Of two levels none that is beyond it by a hair, which would not count.
    clean = torch.full((4, 1, 3, 3), 0.5)
    kept = rounded(Bright(), clean, clean + 0.3, LABELS, 2, 0.49995, "linf").images
    assert torch.equal(kept, torch.ones_like(kept))
    clean = torch.full((4, 1, 3, 3), 0.25)
    kept = rounded(Bright(), clean, clean + 0.3, LABELS, 2, 0.74995, "linf").images
    assert torch.equal(kept, torch.zeros_like(kept))
    clean = torch.full((4, 1, 3, 3), 100 / 255)
    # A level exactly on the edge is within, whatever float32 makes of the edge.
    for eps in (1, 2, 4, 8, 16, 32):
        edge = rounded(Bright(), clean, clean + eps / 255, LABELS, eps=eps / 255, norm="linf").images
        assert torch.allclose(edge * 255, torch.full_like(edge, 100.0 + eps), atol=1e-3)
    # In the other norms it is the nearest level.
    far = rounded(Bright(), clean, perturbed, LABELS, eps=0.01, norm="l2").images
    assert torch.allclose(far * 255, torch.full_like(far, 108.0), atol=1e-3)


def test_rounding_may_undo_or_make_a_success() -> None:
    clean = torch.full((4, 1, 3, 3), 127 / 255)
    undone = rounded(Bright(), clean, torch.full_like(clean, 0.5001), LABELS, levels=3)
    assert torch.allclose(undone.images, torch.full_like(clean, 0.5)) and not undone.success.any()
    made = rounded(Bright(), clean, torch.full_like(clean, 0.4995), LABELS, levels=4)
    assert torch.allclose(made.images, torch.full_like(clean, 1 / 3)) and not made.success.any()
    up = rounded(Bright(), clean, torch.full_like(clean, 0.51), LABELS, levels=4)
    assert torch.allclose(up.images, torch.full_like(clean, 2 / 3)) and up.success.all()


@pytest.mark.parametrize("levels", [2, 3, 5, 9, 16, 17, 64, 128, 256])
def test_data_levels_are_the_smallest_grid(levels: int) -> None:
    values = torch.arange(levels).float() / (levels - 1)
    assert data_levels(values.view(1, 1, 1, -1)) == levels
    # uint8 images that were divided by 255, as the harness reads them.
    if levels == 256:
        assert data_levels(torch.arange(256, dtype=torch.uint8).to(torch.float32).div_(255)) == 256


def test_data_levels_of_data_sets() -> None:
    digits = DATASETS.get("digits")(None).load()
    assert data_levels(digits.train.images(slice(64))) == 17
    assert data_levels(digits.train.images(slice(64)).round()) == 2
    random = np.random.default_rng(0)
    assert data_levels(torch.from_numpy(random.integers(0, 256, (64, 1, 8, 8)).astype(np.float32) / 255)) == 256
    # Normalised or continuous data are on no grid.
    assert data_levels(torch.from_numpy(random.random((8, 1, 8, 8), np.float32))) is None
    assert data_levels(digits.train.images(slice(64)) * 0.9 + 0.03) is None


def test_images_on_a_grid_stay_as_they_are() -> None:
    for levels in (2, 17, 256):
        images = drawn(5, levels)
        made = rounded(Bright(), images, images, LABELS, levels, 0.0, "linf")
        assert torch.allclose(made.images, images, atol=1e-7)
        assert float(made.norms["linf"].max()) < 1e-6
