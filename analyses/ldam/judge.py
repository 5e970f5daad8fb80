"""Realism by somebody who had no part in making the samples: a classifier of its own seed and size, and neighbours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...harness.core.seeds import forked_rng
from ...harness.data.types import ImageSplit
from ...harness.models.architectures import cnn
from ...harness.models.training import Recipe, train
from ...harness.tracing.recorder import discover
from ...harness.tracing.traced_model import TracedModel
from ...harness.tracing.traces import Need

_NEIGHBOURS = 5
# Maps and hidden units: unlike the built-in small CNN's, so that no judge is the network under study over again.
_WIDTH, _HIDDEN = 12, 48


@dataclass(frozen=True, eq=False)
class Judge:
    """Distances to held-out images in the features of an independent classifier, calibrated by other held-out images.

    The features are the pooled maps of all its layers, from edges to classes, each standardised over held-out images
    and each layer with the same weight. Neither the classifier nor the held-out images ever touched a chain.

    Attributes:
        classifier: trained on the fit images with a seed of its own.
        accuracy: on held-out images.
        reference: float64 (m, d), features of held-out images.
        calibration: float64 (k,), sorted distances of other held-out images to them.
        centre, spread: of each feature.
    """

    classifier: TracedModel
    accuracy: float
    reference: Tensor
    calibration: Tensor
    centre: Tensor
    spread: Tensor

    def distances(self, images: Tensor) -> Tensor:
        """Mean distance to the nearest reference images, float64 (n,)."""
        found = (_features(self.classifier, images) - self.centre) / self.spread
        near = torch.cdist(found, self.reference).topk(min(_NEIGHBOURS, len(self.reference)), 1, largest=False)
        return near.values.mean(1)

    def realism(self, distances: Tensor) -> Tensor:
        """The share of real held-out images that lie at least as far out, float64 (n,): 0.5 for a typical one."""
        closer = torch.searchsorted(self.calibration, distances.contiguous())
        return (len(self.calibration) - closer).double() / len(self.calibration)

    def ratio(self, distances: Tensor) -> Tensor:
        """Distances in units of the median real image's, (n,)."""
        return distances / self.calibration.median().clamp(min=1e-12)

    def reads(self, images: Tensor) -> Tensor:
        """The class that the independent classifier sees, int64 (n,)."""
        return self.classifier.codes((), images).predictions


def train_judge(
    images: Tensor, labels: Tensor, held_out: Tensor, truth: Tensor, classes: int, epochs: int,
    draws: Callable[..., torch.Generator], device: torch.device,
) -> Judge:  # fmt: skip
    """Train the classifier on fit images, and calibrate on two halves of the held-out ones (even and odd positions)."""
    seed = int(torch.randint(2**62, (1,), generator=draws("judge")))
    shape = int(images.shape[1]), int(images.shape[2]), int(images.shape[3])
    with forked_rng(seed):
        model = cnn(shape, classes, _WIDTH, _HIDDEN)
    train(model, ImageSplit(images, labels), Recipe(epochs=epochs, batch_size=min(64, len(images))), seed, device)
    model.to(device).eval().requires_grad_(False)
    own = TracedModel(model, discover(model, held_out[:2].to(device)), (), model)
    right = (own.codes((), held_out).predictions == truth).double().mean()
    features = _features(own, held_out)
    reference, other = features[::2], features[1::2]
    centre, spread = reference.mean(0), reference.std(0, correction=0)
    # A dead feature of the reference tells nothing about distances.
    spread = torch.where(spread > 1e-9, spread, torch.full_like(spread, torch.inf))
    spread = spread * _layer_sizes(own, held_out).sqrt()
    unset = Judge(own, float(right), (reference - centre) / spread, torch.empty(0), centre, spread)
    near = torch.cdist((other - centre) / spread, unset.reference)
    near = near.topk(min(_NEIGHBOURS, len(reference)), 1, largest=False).values.mean(1)
    return Judge(own, float(right), unset.reference, near.sort().values, centre, spread)


def _features(own: TracedModel, images: Tensor) -> Tensor:
    traces = own.codes((Need("pooled"),), images)
    return torch.cat([traces.pooled(tap.name).double() for tap in own.taps], 1)


def _layer_sizes(own: TracedModel, images: Tensor) -> Tensor:
    traces = own.codes((Need("pooled"),), images[:1])
    sizes = [traces.pooled(tap.name).shape[1] for tap in own.taps]
    return torch.cat([torch.full((size,), float(size), dtype=torch.float64) for size in sizes])
