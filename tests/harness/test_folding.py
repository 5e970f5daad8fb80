"""A quick copy of a model: the same logits and gradients, or none at all."""

from __future__ import annotations

import pytest
import torch
from aftershock.harness.models.architectures import cnn, resnet20
from aftershock.harness.models.folding import folded
from torch import Tensor, nn


def lived(model: nn.Module) -> nn.Module:
    """A model whose batch norms have seen data."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return model.eval()


class Block(nn.Module):
    """A convolution whose output goes through batch norm in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.way == "doubled":
            y = self.norm(y) + y
        elif self.way == "changed":
            y = self.norm(y.mul_(2))
        elif self.way == "twice":
            y = self.norm(self.norm(y))
        elif self.way == "drawn":
            y = self.norm(y) * torch.rand(1)
        elif self.way == "contiguous":
            y = self.norm(y).view(len(x), -1).view(len(x), 6, 8, 8)
        else:
            y = self.norm(y)
        logits: Tensor = self.head(y.relu().mean((2, 3)))
        return logits


def norms_of(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(("make", "shape"), [(resnet20, (3, 32, 32)), (cnn, (1, 8, 8))])
def test_a_copy_has_the_same_logits_and_gradients(make: object, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    model = lived(make(shape, 10))  # type: ignore[operator]
    images = torch.rand(12, *shape)
    quick = folded(model, images[:8])
    assert quick is not None and norms_of(quick) == 0
    found = []
    for network in (model, quick):
        x = images.clone().requires_grad_()
        logits = network(x)
        (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum(), x)
        found.append((logits.detach(), gradient))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-2, atol=1e-3 * float(found[0][1].abs().max()))


def test_the_model_itself_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model = lived(Block("plain")).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert folded(model, torch.rand(4, 3, 8, 8)) is not None
    assert model.training and norms_of(model) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


# How many batch norms the copy still has, or none for no copy.
@pytest.mark.parametrize(
    ("way", "left"),
    [("plain", 0), ("drawn", 0), ("changed", 1), ("twice", 1), ("doubled", None), ("contiguous", None)],
)
def test_what_cannot_be_folded_is_left_alone(way: str, left: int | None) -> None:
    torch.manual_seed(0)
    model, images = lived(Block(way)), torch.rand(6, 3, 8, 8)
    quick = folded(model, images)
    if left is None:
        assert quick is None
        return
    assert quick is not None and norms_of(quick) == left
    with torch.no_grad():
        torch.manual_seed(1)
        expected = model(images)
        torch.manual_seed(1)
        torch.testing.assert_close(quick(images), expected, rtol=1e-4, atol=1e-5)


def test_a_layer_with_hooks_keeps_what_they_see() -> None:
    torch.manual_seed(0)
    model = lived(Block("plain"))
    seen: list[Tensor] = []
    model.get_submodule("conv").register_forward_hook(lambda module, inputs, output: seen.append(output))
    quick = folded(model, torch.rand(4, 3, 8, 8))
    assert quick is not None and norms_of(quick) == 1 and seen


def test_a_model_without_convolutions_has_no_copy() -> None:
    assert folded(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.rand(4, 3, 2, 2)) is None
