"""A detector as an attack that knows it sees it: its true score, a differentiable stand-in, and its threshold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Observation:
    """What one differentiable pass shows an attacker.

    Attributes:
        logits: (n, classes), with their graph.
        suspicion: the detector's surrogate, (n,), with its graph; ``None`` where it offers none.
        score: called with the images that are wanted, bool (n,), asks the detector for its true scores of them, float64
            (k,), without a graph. What an attack does not need costs nothing.
        features: activations by tap that the detector reads (the logits where it reads nothing else), with their graph.
    """

    logits: Tensor
    suspicion: Tensor | None
    score: Callable[[Tensor], Tensor]
    features: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Guides:
    """Clean images that the model gets right and the detector lets pass: what feature matching aims at.

    Attributes:
        images: float32 in [0, 1], (k, channels, height, width).
        labels: their classes, int64, (k,).
        scores: the detector's scores of them, float64, (k,).
    """

    images: Tensor
    labels: Tensor
    scores: Tensor


StandIn = Callable[[Observation], Tensor]


class TargetDetector(Protocol):
    """A fitted detector with its calibrated threshold.

    Attributes:
        threshold: t at FPR 5 %; an image passes with score <= t.
        target_score: the median score of clean images: an image below it looks ordinary at every threshold.
        scale: a robust spread of clean scores (t minus the median, above 0).
        has_surrogate: whether :attr:`Observation.suspicion` is there.
        stand_ins: by name, what was learned of the detector from its true scores and from clean images: each gives
            differentiable suspicions (n,) for an observation, in the units of the detector's score.
        rehearsed: the parts of an attack that got clean images of another set past the detector, best first.
    """

    threshold: float
    target_score: float
    scale: float
    has_surrogate: bool
    stand_ins: Mapping[str, StandIn]
    rehearsed: Sequence[str]

    def observe(
        self, model: nn.Module, images: Tensor, temperature: float = 1.0, straight_through: bool = False,
        surrogate: bool = True,
    ) -> Observation:  # fmt: skip
        """Return one pass that can be differentiated.

        Args:
            model: the model whose passes are counted.
            images: float32 in [0, 1], requiring gradients.
            temperature: softens (above 1) or sharpens the surrogate's relaxation, where it has one.
            straight_through: hard codes forwards, relaxed ones backwards (BPDA; Athalye, Carlini, Wagner 2018).
            surrogate: whether :attr:`Observation.suspicion` is wanted; some surrogates take gradients on their way.
        """

    def query(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (n, classes) and true scores (n,), without gradients: all that a black-box attacker may ask."""

    def guides(self) -> Guides:
        """Clean images of other source sets; may be empty."""
