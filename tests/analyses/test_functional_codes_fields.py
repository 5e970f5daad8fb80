"""Crops to the receptive field against a convolution whose field is known."""

from __future__ import annotations

import torch
from aftershock.analyses.functional_codes.analysis import FunctionalCodes
from aftershock.analyses.functional_codes.pictures import receptive_crops
from aftershock.harness.tracing.recorder import discover
from aftershock.harness.tracing.traced_model import TracedModel
from torch import nn


class Net(nn.Module):
    """Two maps: 3 x 3 sums and 5 x 5 sums, each minus a threshold; then a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 5, padding=2)
        self.dense = nn.Linear(2, 4)
        with torch.no_grad():
            self.conv.weight.fill_(1.0)
            self.conv.weight[0].zero_()
            self.conv.weight[0, 0, 1:4, 1:4] = 1.0
            self.get_parameter("conv.bias").fill_(-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.conv(x))
        return torch.relu(self.dense(h.mean((2, 3))))


def traced_model() -> TracedModel:
    model = Net().eval()
    return TracedModel(model, discover(model, torch.zeros(1, 1, 12, 12)))


def image_with_a_square(row: int, column: int) -> torch.Tensor:
    """Weak stripes everywhere, so that a crop is told from its surroundings, and a bright 3 x 3 square."""
    image = torch.linspace(0, 0.05, 144).reshape(1, 12, 12).clone()
    image[0, row - 1 : row + 2, column - 1 : column + 2] = 1.0
    return image


def test_the_crop_is_the_field_of_the_most_active_place() -> None:
    images = torch.stack([image_with_a_square(3, 7), image_with_a_square(8, 2)])
    made = traced_model()
    (tap, _) = (t.name for t in made.taps)
    small = receptive_crops(made, FunctionalCodes().needs, tap, 0, images)
    # The 3 x 3 field is the square itself.
    assert small is not None and small.shape == images.shape and bool((small == 1).all())
    wide = receptive_crops(made, FunctionalCodes().needs, tap, 1, images[:1])
    assert wide is not None
    # The 5 x 5 field covers the square: 9 of its 25 pixels, whichever place around it is the most active.
    assert 0.25 < float((wide == 1).float().mean()) < 0.5


def test_a_place_at_rest_still_has_a_field() -> None:
    dark = torch.zeros(1, 1, 12, 12)
    crops = receptive_crops(traced_model(), FunctionalCodes().needs, traced_model().taps[0].name, 0, dark)
    assert crops is not None and bool((crops == 0).all())


def test_a_dense_layer_has_no_places() -> None:
    made = traced_model()
    assert receptive_crops(made, FunctionalCodes().needs, made.taps[1].name, 0, torch.rand(2, 1, 12, 12)) is None


def test_nothing_of_the_model_changes() -> None:
    made = traced_model()
    before = {k: v.clone() for k, v in made.model.state_dict().items()}
    images = torch.rand(2, 1, 12, 12)
    crops = receptive_crops(made, FunctionalCodes().needs, made.taps[0].name, 0, images)
    # What is stored must not hang on a graph, nor may the caller's images.
    assert crops is not None and not crops.requires_grad and not images.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in made.model.state_dict().items())
    assert all(p.grad is None for p in made.model.parameters()) and not made.model.training
