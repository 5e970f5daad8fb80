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
from ...harness.tracing.traced_model import Instruments
from .networks import fresh
from .training import BATCH

_Z = 1.959963984540054
# Measures that are shares of images.
SHARES = frozenset({"fresh_accuracy", "retrained_accuracy", "own_accuracy", "own_agreement"})


@dataclass(frozen=True)
class Estimate:
    """A mean over images and seeds with its 95 % interval."""

    mean: float
    low: float
    high: float

    def percent(self) -> str:
        """For a sentence about a share."""
        return f"{100 * self.mean:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    @property
    def ends(self) -> tuple[float, float, float]:
        """For a table or a claim."""
        return self.mean, self.low, self.high

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def estimate(values: Tensor, share: bool) -> Estimate:
    """The mean of (seeds, images) with an interval that takes both the seeds and the images for a sample.

    The half-widths over seeds (Student's t) and over images (Wilson's for a share) are added in quadrature, which is on
    the safe side: part of one is in the other.
    """
    values = values.double()
    mean, count = float(values.mean()), values.shape[1]
    seeds = _over_seeds(values)
    if not share:
        reach = math.hypot(seeds, _over_images(values.mean(0)))
        return Estimate(mean, mean - reach, mean + reach)
    centre = (mean + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(max(mean * (1 - mean), 0) / count + _Z**2 / (4 * count**2))
    low = mean - math.hypot(seeds, mean - (centre - half))
    high = mean + math.hypot(seeds, centre + half - mean)
    return Estimate(mean, max(low, 0.0), min(high, 1.0))


def difference(values: Tensor, share: bool) -> Estimate:
    """The mean of paired differences (seeds, images), as :func:`estimate`.

    Two more images, one for and one against, keep the interval of a share from closing where no image differs.
    """
    values = values.double()
    mean = float(values.mean())
    paired = values.mean(0)
    if share:
        paired = torch.cat([paired, torch.tensor([1.0, -1.0], dtype=torch.float64)])
    reach = math.hypot(_over_seeds(values), _over_images(paired))
    return Estimate(mean, mean - reach, mean + reach)


def _over_seeds(values: Tensor) -> float:
    from scipy.stats import t

    seeds = len(values)
    if seeds < 2:
        return 0.0
    return float(t.ppf(0.975, seeds - 1) * values.mean(1).std() / math.sqrt(seeds))


def _over_images(paired: Tensor) -> float:
    return float(_Z * paired.std() / math.sqrt(len(paired))) if len(paired) > 1 else 0.0


@dataclass(frozen=True, eq=False)
class Judges:
    """Makes fresh classifiers.

    Attributes:
        untrained: the architecture of the classifier under study; without one, a small CNN stands in.
        epochs: of training.
        classes: how many.
        device: where.
    """

    untrained: Instruments | None
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
