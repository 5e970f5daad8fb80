"""What is measured on reconstructions, by classifiers that had no part in making them, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...harness.core.seeds import forked_rng
from ...harness.data.types import ImageSplit
from ...harness.models.architectures import cnn
from ...harness.models.training import Recipe, train
from ...harness.statistics.intervals import Estimate, Z, student_quantile, wilson
from ...harness.tracing.traced_model import TracedModel
from .networks import fresh
from .training import BATCH

# Measures that are shares of images.
SHARES = frozenset({"fresh_accuracy", "retrained_accuracy", "own_accuracy", "own_agreement"})


def estimate(values: Tensor, share: bool) -> Estimate:
    """The mean of (seeds, images) with an interval that takes both the seeds and the images for a sample.

    The half-widths over seeds (Student's t) and over images (Wilson's for a share) are added in quadrature, which is on
    the safe side: part of one is in the other.
    """
    values = values.double()
    mean, seeds = float(values.mean()), _over_seeds(values)
    if not share:
        return _around(mean, math.hypot(seeds, _over_images(values.mean(0))))
    ends = wilson(mean, values.shape[1])
    low, high = mean - math.hypot(seeds, mean - ends[0]), mean + math.hypot(seeds, ends[1] - mean)
    return Estimate(mean, max(low, 0.0), min(high, 1.0), "Student's t over seeds, Wilson over images")


def difference(values: Tensor, share: bool) -> Estimate:
    """The mean of paired differences (seeds, images), as :func:`estimate`.

    Two more images, one for and one against, keep the interval of a share from closing where no image differs.
    """
    values = values.double()
    paired = values.mean(0)
    if share:
        paired = torch.cat([paired, torch.tensor([1.0, -1.0], dtype=torch.float64)])
    return _around(float(values.mean()), math.hypot(_over_seeds(values), _over_images(paired)))


def _around(mean: float, reach: float) -> Estimate:
    return Estimate(mean, mean - reach, mean + reach, "Student's t over seeds, normal over images")


def _over_seeds(values: Tensor) -> float:
    seeds = len(values)
    return student_quantile(seeds - 1) * float(values.mean(1).std() / math.sqrt(seeds)) if seeds > 1 else 0.0


def _over_images(paired: Tensor) -> float:
    return float(Z * paired.std() / math.sqrt(len(paired))) if len(paired) > 1 else 0.0


@dataclass(frozen=True, eq=False)
class Judges:
    """Makes fresh classifiers.

    Attributes:
        untrained: the architecture of the classifier under study; without one, a small CNN stands in.
        epochs: of training.
        classes: how many.
        device: where.
    """

    untrained: TracedModel | None
    epochs: int
    classes: int
    device: torch.device

    def train(self, images: Tensor, labels: Tensor, draws: Callable[..., torch.Generator]) -> nn.Module:
        """A classifier with fresh weights, trained on ``images``; the same draws give the same classifier."""
        seed = int(torch.randint(2**62, (1,), generator=draws("judge")))
        if self.untrained is not None:
            model = fresh(self.untrained, draws("judge", "weights"), self.device).model
        else:
            with forked_rng(seed):
                shape = int(images.shape[1]), int(images.shape[2]), int(images.shape[3])
                model = cnn(shape, self.classes)
        recipe = Recipe(epochs=self.epochs, batch_size=64)
        train(model, ImageSplit(images, labels), recipe, seed, self.device)
        return model.eval().requires_grad_(False)


def logits_of(model: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """(n, classes), on the CPU."""
    with torch.no_grad():
        parts = [model(part.to(device)).float().cpu() for part in images.split(BATCH)]
    return torch.cat(parts)


def judged(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each image is classified correctly, 0 or 1, and its cross-entropy, (n,) each."""
    return (logits.argmax(1) == labels).float(), F.cross_entropy(logits, labels, reduction="none")


def squared_error(decoded: Tensor, images: Tensor) -> Tensor:
    """The mean squared error of each image, (n,)."""
    return (decoded - images).square().flatten(1).mean(1)
