"""The models and images of ``support.attack_cases``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from support.attack_cases import DigitsCase, Linear, LinearCase
from torch import nn


@pytest.fixture(scope="session")
def linear() -> LinearCase:
    random = torch.Generator().manual_seed(3)
    weight = torch.randn(48, generator=random)
    images = torch.rand(200, 3, 4, 4, generator=random) * 0.4 + 0.3
    model = Linear(weight, float(-0.5 * weight.sum()))
    with torch.no_grad():
        value = model(images)[:, 1]
    return LinearCase(model, images, (value > 0).long(), value.abs())


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
