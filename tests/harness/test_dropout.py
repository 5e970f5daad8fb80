"""Dropout of views: masks by image and seed, whatever else is in the batch."""

from __future__ import annotations

import pytest
import torch
from aftershock.harness.core.errors import UsageError
from aftershock.harness.tracing.dropout import ImageDropout
from torch import Tensor, nn


def dropped(model: nn.Module, images: Tensor, seed: int = 0) -> Tensor:
    with torch.no_grad(), ImageDropout(model.eval(), seed) as dropping:
        dropping.begin(images)
        found: Tensor = model(images)
    return found


def test_an_image_has_its_masks_whatever_the_batch() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Dropout(0.3))
    images = torch.rand(9, 2, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    whole = dropped(model, images)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    assert torch.equal(dropped(model, images[order]), whole[order])
    assert torch.equal(torch.cat([dropped(model, images[i : i + 1]) for i in range(9)]), whole)
    assert not torch.equal(dropped(model, images, seed=1), whole)
    assert torch.equal(model(images), images.flatten(1)), "outside the block nothing is dropped"


def test_shares_and_scales_are_those_of_dropout() -> None:
    images = torch.ones(200, 4, 10, 10) + torch.arange(200).view(-1, 1, 1, 1) / 1000
    found = dropped(nn.Dropout(0.25), images)
    zero = (found == 0).float().mean()
    # 80,000 units: the standard error of the share is 0.0015.
    assert abs(float(zero) - 0.25) < 0.008
    torch.testing.assert_close(found[found != 0], (images / 0.75)[found != 0])
    maps = dropped(nn.Dropout2d(0.5), images)
    per_map = (maps == 0).flatten(2).float().mean(2)
    assert set(per_map.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(dropped(nn.Dropout(0.0), images), images)
    assert not dropped(nn.Dropout(1.0), images).any()


def test_layers_that_do_more_than_drop_are_refused() -> None:
    with pytest.raises(UsageError, match="AlphaDropout"):
        ImageDropout(nn.Sequential(nn.AlphaDropout(0.1)), 0)
