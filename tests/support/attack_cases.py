"""Tiny models with images to attack: a linear one with closed forms, a small one trained on the digits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from aftershock.attacks.base.perturb_batch import PerturbedBatch, perturb_batch
from aftershock.attacks.base.perturbation import CountingModel, Perturbation
from aftershock.harness.core.seeds import Draws
from torch import Tensor, nn


class Case(Protocol):
    """A model and images that it gets right, with their positions in their set."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def images(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def indices(self) -> Sequence[int]: ...


def run(
    case: Case, perturbation: Perturbation, model: nn.Module | None = None, seed: int = 0, batch_size: int = 128
) -> PerturbedBatch:
    """Perturb all images of a case."""
    return perturb_batch(perturbation, model or case.model, case.images, case.labels, case.indices, seed, batch_size)


def apply(perturbation: Perturbation, images: Tensor, seed: int = 0, indices: Sequence[int] | None = None) -> Tensor:
    """What a perturbation makes of images, before the harness looks at it."""
    labels = torch.zeros(len(images), dtype=torch.int64)
    draws = Draws(seed, range(len(images)) if indices is None else indices)
    return perturbation.perturb(CountingModel(nn.Flatten()), images, labels, draws)


class Rounded(nn.Module):
    """A network that rounds its input to 32 steps: its scores change as before, its gradient is 0 everywhere."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(torch.round(images * 32) / 32)
        return logits


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
