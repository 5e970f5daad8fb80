"""An example of a plugin: a detector that reads pooled activations, and a noise."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from aftershock import (
    CountingModel,
    Detector,
    DetectorInfo,
    Draws,
    LiveTrace,
    Need,
    Perturbation,
    PerturbationInfo,
    Traces,
    UsageError,
)
from torch import Tensor

__all__ = ["ActivationNorm", "SaltAndPepper"]


class ActivationNorm(Detector):
    """How far an image's pooled activations are from the mean of clean images, averaged over layers.

    Per layer the Euclidean distance to the clean mean is divided by the mean of that distance over the clean images,
    so that no layer counts more because its activations are larger. A typical clean image scores about 1.

    Args:
        layers: ``all``, ``last:N``, ``first:N``, or the name of one tap.
    """

    info = DetectorInfo(
        title="Activation norm",
        needs=(Need("pooled"),),
        surrogate="exact",
        summary="Distance of the pooled activations to their clean mean, averaged over layers.",
    )

    def __init__(self, layers: str = "all") -> None:
        self._layers = layers
        self.taps: list[str] = []
        self.means: list[Tensor] = []
        self.scales: list[float] = []

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("pooled", taps=self._layers),)

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        """Learn each layer's mean, and the mean distance to it, in two passes that hold one batch at a time."""
        if not len(clean):
            raise UsageError("activation-norm needs at least 1 clean image to fit on: raise data.fit.")
        self.taps, self.means, self.scales = list(clean.tap_names()), [], []
        for tap in self.taps:
            mean = torch.stack([b.pooled(tap).double().sum(0) for b in clean.batches()]).sum(0) / len(clean)
            total = sum(float((b.pooled(tap).double() - mean).norm(dim=1).sum()) for b in clean.batches())
            self.means.append(mean)
            # A layer whose output never changes on clean images has no scale of its own.
            self.scales.append(total / len(clean) or 1.0)
        return self

    def score(self, traces: Traces) -> Tensor:
        """Float64, (n,)."""
        return self._distance([traces.pooled(tap) for tap in self.taps])

    def surrogate(self, live: LiveTrace) -> Tensor:
        """The score itself: it is differentiable."""
        return self._distance([live.pooled(tap) for tap in self.taps])

    def _distance(self, layers: list[Tensor]) -> Tensor:
        if not layers:
            raise UsageError("activation-norm is not fitted yet: call fit() or load_state() before score().")
        parts = [
            (values.double() - mean.to(values.device)).norm(dim=1) / scale
            for values, mean, scale in zip(layers, self.means, self.scales, strict=True)
        ]
        return torch.stack(parts).mean(0)


class SaltAndPepper(Perturbation):
    """Turns a share of the pixels black or white, with equal chance, all channels together.

    Args:
        share: the chance of each pixel, above 0 and at most 1.

    Raises:
        UsageError: for another ``share``.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Salt and pepper",
        kind="noise",
        family="noise",
        gradients=False,
        stochastic=True,
        summary="A share of the pixels turns black or white.",
    )

    def __init__(self, share: float) -> None:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise UsageError(f"share = {share!r}: give a number above 0 and at most 1.")
        self.share = float(share)

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        # One number per pixel, the same for all channels: below half the share black, above one minus that white.
        drawn = draws.uniform(images[:, :1])
        black, white = drawn < self.share / 2, drawn >= 1 - self.share / 2
        return images.masked_fill(black, 0.0).masked_fill(white, 1.0)
