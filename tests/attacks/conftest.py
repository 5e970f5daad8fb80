"""Tiny models and images for the attacks: a linear one with closed forms, a small one trained on the digits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    # Models this small only lose by threads, badly so where cores are shared.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Linear(nn.Module):
    """Two classes with logits (0, w·x + b): every attack on it has a closed form."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(torch.tensor(bias))

    def forward(self, images: Tensor) -> Tensor:
        value = images.flatten(1) @ self.weight + self.bias
        return torch.stack([torch.zeros_like(value), value], 1)


@dataclass(frozen=True, eq=False)
class LinearCase:
    """A linear model, 200 images in [0.3, 0.7] (so that small budgets never clip), and |w·x + b| of each."""

    model: Linear
    images: Tensor
    labels: Tensor
    margins: Tensor

    @property
    def indices(self) -> range:
        return range(len(self.images))


@pytest.fixture(scope="session")
def linear() -> LinearCase:
    random = torch.Generator().manual_seed(3)
    weight = torch.randn(48, generator=random)
    images = torch.rand(200, 3, 4, 4, generator=random) * 0.4 + 0.3
    model = Linear(weight, float(-0.5 * weight.sum()))
    with torch.no_grad():
        value = model(images)[:, 1]
    return LinearCase(model, images, (value > 0).long(), value.abs())


@dataclass(frozen=True, eq=False)
class DigitsCase:
    """A small convolutional network and 80 test digits that it gets right, squeezed into [0.1, 0.9]."""

    model: nn.Module
    images: Tensor
    labels: Tensor

    @property
    def indices(self) -> range:
        return range(1200, 1200 + len(self.images))


@pytest.fixture(scope="session")
def digits() -> DigitsCase:
    x, y = load_digits(return_X_y=True)
    images = torch.from_numpy((x / 16 * 0.8 + 0.1).astype(np.float32)).view(-1, 1, 8, 8)
    labels = torch.from_numpy(y.astype(np.int64))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(192, 32), nn.ReLU(),
            nn.Linear(32, 10),
        )  # fmt: skip
        optimiser = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(120):
            rows = torch.randperm(1200)[:128]
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        right = (model(images[1200:]).argmax(1) == labels[1200:]).nonzero().squeeze(1)[:80] + 1200
    return DigitsCase(model, images[right], labels[right])
