"""Tiny models with images to attack: a linear one with closed forms, a small one trained on the digits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


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


@dataclass(frozen=True, eq=False)
class DigitsCase:
    """A small convolutional network and 80 test digits that it gets right, squeezed into [0.1, 0.9]."""

    model: nn.Module
    images: Tensor
    labels: Tensor

    @property
    def indices(self) -> range:
        return range(1200, 1200 + len(self.images))
