"""A detector whose robust accuracy is known: an attack that does not get past it does not work in this process.

Model and detector are linear, so that the answer is arithmetic: of the upper half of an image the model reads the
mean, of the lower half the detector does, and two fifths of what the budget allows each of them are enough to fool the
one and to pass the other. No image stands an attack that works; one that stands says that the attack does nothing, or
that code beside it has disturbed it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor, nn

from ....attacks.base.perturb_batch import perturb_batch
from ....attacks.base.watched_model import Limits
from ....detectors.base.detector import Detector, DetectorInfo
from ...core.seeds import generator
from ...tracing.recorder import discover
from ...tracing.traced_model import TracedModel
from ...tracing.traces import LiveTrace, Traces
from ..fitted_target import FittedTarget

if TYPE_CHECKING:
    from ....attacks.base.perturbation import Perturbation
    from ...data.types import Dataset

# The share of the canary's images that stand: an attack that works leaves none.
KNOWN_VALUE = 0.0
_IMAGES, _CALIBRATE = 16, 200
# What is needed, of what the budget allows; and the room that the range of images leaves.
_SHARE, _ROOM = 0.4, 0.45
# Logits of a class that no image is near.
_FAR = -5.0


class _Network(nn.Module):
    """Two classes by the mean of the upper half, and an offset of all logits by the mean of the lower half."""

    def __init__(self, classes: int, need: float) -> None:
        super().__init__()
        self.classes, self.need = classes, need
        self.relu = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        upper, lower = _halves(images)
        lead = (upper.mean((1, 2)) - 0.5) * (2 / self.need)
        offset: Tensor = (self.relu(lower.mean((1, 2))) - 0.5) / self.need
        logits = torch.full((len(images), self.classes), _FAR, device=images.device)
        near = torch.stack([lead, -lead], 1)
        return torch.cat([near, logits[:, 2:]], 1) + offset[:, None]


class Canary(Detector):
    """Reads the offset of the network's logits; its surrogate is its score."""

    info: ClassVar[DetectorInfo] = DetectorInfo(title="canary", needs=(), surrogate="exact")

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        return self

    def score(self, traces: Traces) -> Tensor:
        return traces.logits.double().mean(1)

    def surrogate(self, live: LiveTrace) -> Tensor:
        return live.logits.mean(1)


@dataclass(frozen=True, eq=False)
class _Case:
    """Images with their classes: of every other one the model's mean must fall, of the rest it must rise."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, count: int, shape: tuple[int, int, int], need: float, offset: float) -> Self:
        """Make images whose mean of the detector's values lies ``offset`` above the middle."""
        labels = torch.arange(count) % 2
        images = torch.rand(count, *shape, generator=generator(0, "canary")) * 0.1 * need
        means = torch.where(labels == 0, 0.5 + need, 0.5 - need), torch.full((count,), 0.5 + offset)
        for half, mean in zip(_halves(images), means, strict=True):
            half += (mean - half.mean((1, 2)))[:, None, None]
        return cls(images, labels)


def _halves(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixels of the upper and of the lower half, (n, channels, k) each, as views."""
    pixels = images.flatten(2)
    middle = pixels.shape[2] // 2
    return pixels[:, :, :middle], pixels[:, :, middle:]


def reach(norm: str | None, eps: float | None, values: int) -> float | None:
    """Return how far a budget moves the means of both halves of an image at once; ``None`` where that is not known."""
    if not eps:
        return None
    moves = {"linf": eps, "l2": eps / math.sqrt(values), "l1": eps / values}
    return min(moves[norm], _ROOM) if norm in moves else None


def canary_standing(
    perturbation: Perturbation, dataset: Dataset, limits: Limits, device: torch.device
) -> tuple[float, str] | None:
    """Return the share of the canary's images that stand an attack, and what stopped the attack, if anything did.

    ``None`` where the attack has no budget from which the answer is known.
    """
    move = reach(perturbation.norm, perturbation.eps, math.prod(dataset.shape))
    if move is None or len(dataset.classes) < 2 or math.prod(dataset.shape[1:]) < 2:
        return None
    need = _SHARE * move
    network = _Network(len(dataset.classes), need).to(device).eval()
    case = _Case.of(_IMAGES, dataset.shape, need, need)
    passing = _Case.of(_IMAGES, dataset.shape, need, -need)
    model = TracedModel(network, discover(network, case.images.to(device)))
    detector = Canary()
    # Ordinary images lie up to half of that below the threshold.
    calibrate = (torch.linspace(-0.5, 0, _CALIBRATE, dtype=torch.float64)) + _mean_of_far(len(dataset.classes))
    target = FittedTarget(
        detector, model, calibrate, passing.images.to(device), passing.labels,
        model.score(detector, passing.images.to(device))[1],
    )  # fmt: skip
    try:
        made = perturb_batch(
            perturbation, network, case.images, case.labels, range(_IMAGES), seed=0, target=target, limits=limits
        )  # fmt: skip
    except Exception as error:
        return 1.0, " ".join(f"{type(error).__name__}: {error}".split())[:200]
    scores = target.query(network, made.images.to(device))[1].cpu()
    return float((~(made.success & (scores <= target.threshold))).double().mean()), ""


def _mean_of_far(classes: int) -> float:
    return _FAR * (classes - 2) / classes
