"""The detector that flags nothing, as an attack sees it: what passes it is all that fools the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...base.target import Guides, Observation, StandIn


@dataclass(eq=False)
class NoDetector:
    """See :class:`~aftershock.attacks.base.target.TargetDetector`; its score is always 0."""

    threshold: float = 1.0
    target_score: float = 0.0
    scale: float = 1.0
    has_surrogate: bool = False
    stand_ins: Mapping[str, StandIn] = field(default_factory=dict)
    rehearsed: Sequence[str] = ()

    def observe(
        self, model: nn.Module, images: Tensor, temperature: float = 1.0, straight_through: bool = False,
        surrogate: bool = True,
    ) -> Observation:  # fmt: skip
        """See the protocol."""
        logits = model(images)
        return Observation(logits, None, lambda wanted: _zeros(images[wanted]), {"logits": logits})

    def query(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the protocol."""
        with torch.no_grad():
            return model(images), _zeros(images)

    def guides(self) -> Guides:
        """See the protocol; there are none."""
        none = torch.empty(0)
        return Guides(none, none.long(), none.double())


def _zeros(images: Tensor) -> Tensor:
    return torch.zeros(len(images), dtype=torch.float64, device=images.device)
