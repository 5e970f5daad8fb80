"""A detector whose score is linear in the image, as an attack that knows it sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from aftershock.attacks.base.target import Guides, Observation, StandIn
from torch import Tensor, nn


@dataclass(eq=False)
class LinearDetector:
    """Flags images whose score v·x lies above a threshold."""

    weight: Tensor
    threshold: float
    images: Tensor
    labels: Tensor
    has_surrogate: bool = True
    target_score: float = -1e9
    scale: float = 1.0
    stand_ins: Mapping[str, StandIn] = field(default_factory=dict)
    rehearsed: Sequence[str] = ()

    def score(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight

    def observe(
        self, model: nn.Module, images: Tensor, temperature: float = 1.0, straight_through: bool = False,
        surrogate: bool = True,
    ) -> Observation:  # fmt: skip
        value = self.score(images)
        told = value.detach().double()
        suspicion = value if self.has_surrogate else None
        return Observation(model(images), suspicion, lambda wanted: told[wanted], {"pixels": images.flatten(1)})

    def query(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return model(images), self.score(images).double()

    def guides(self) -> Guides:
        return Guides(self.images, self.labels, self.score(self.images).double())
