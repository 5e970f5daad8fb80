"""Coordinates in which chains move freely although images end at 0 and 1, and the measure they keep without an energy.

Clipping at the borders would break detailed balance. Here an image is a smooth (or reflecting) function of free
coordinates instead.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ...harness.core.errors import UsageError

# Images nearer to 0 or 1 than this are moved there before they are turned into unbounded numbers.
EDGE = 1 / 64
# Above so many pixels the covariance is kept as a factor over images instead of a square root over pixels.
_DENSE = 4096
# Images times pixels of such a factor, at most: 1 GiB of float32, and twice that while it is made.
_LARGEST = 2**28


class Space(Protocol):
    """Free coordinates w (n, size) of images.

    Attributes:
        unbounded: whether a density falls off in them, so that the mean of w · ∇U / d is a temperature.
    """

    unbounded: bool

    @property
    def size(self) -> int: ...

    def images(self, w: Tensor) -> Tensor:
        """(n, channels, height, width) in [0, 1]; differentiable."""

    def potential(self, w: Tensor) -> Tensor:
        """Minus the logarithm of the reference density in these coordinates, float64 (n,)."""

    def draw(self, n: int, draws: torch.Generator) -> Tensor:
        """Independent draws from the reference measure (n, size), made on the CPU."""

    def tempered(self, w: Tensor, temperature: float) -> Tensor:
        """Draws from the reference measure, made draws from its density in these coordinates to the power 1 / T."""

    def expressible(self, images: Tensor) -> Tensor:
        """The nearest images that coordinates exist for; real ones pass through this before they are compared."""


def estimated_shrinkage(centred: Tensor) -> float:
    """Ledoit and Wolf's shrinkage (2004) of float64 (n, pixels) with means of 0.

    Beyond some thousand pixels from the n x n Gram matrix, whose squared norm is the covariance's: O(n² pixels).
    """
    n, pixels = centred.shape
    if pixels <= _DENSE:
        from sklearn.covariance import ledoit_wolf_shrinkage

        return float(ledoit_wolf_shrinkage(centred.float().numpy(), assume_centered=True))
    gram = centred @ centred.T
    # Squared norms of the covariance S, of S - mean variance · identity, and of the error of S; all divided by pixels.
    norm = float(gram.square().sum()) / n**2 / pixels
    apart = norm - (float(gram.diagonal().sum()) / n / pixels) ** 2
    fourth = float(torch.stack([row.square().sum().square() for row in centred]).sum()) / n / pixels
    return max(min((fourth - norm) / n, apart), 0.0) / apart if apart > 0 else 0.0


class Gaussian:
    """Images as the logistic function of a normal vector with the mean and covariance that data have there.

    The reference measure is what these two moments say about the data: colours and spatial frequencies, and no object.
    In whitened coordinates it is a standard normal vector, in which a Langevin chain mixes within tens of steps; the
    covariance is the preconditioner that makes it so.

    Args:
        images: (n, channels, height, width), n at least 2.
        shrinkage: how far the covariance is moved towards a multiple of the identity (Ledoit & Wolf 2004); ``None``
            estimates it.

    Raises:
        UsageError: for more numbers than a covariance can be kept of.
    """

    unbounded = True

    def __init__(self, images: Tensor, shrinkage: float | None = None) -> None:
        if images[0].numel() > _DENSE and images.numel() > _LARGEST:
            raise UsageError(
                f"The covariance of {len(images)} images of {images[0].numel()} numbers does not fit into memory: set "
                f'sampler.coordinates = "pixels", or images = {_LARGEST // images[0].numel()} or fewer.'
            )
        self.shape = tuple(images.shape[1:])
        centred = torch.logit(self.expressible(images).double()).flatten(1)
        self.mean = centred.mean(0)
        centred -= self.mean
        n, pixels = centred.shape
        if shrinkage is None:
            shrinkage = estimated_shrinkage(centred)
        shrinkage = min(max(shrinkage, 1e-3), 1.0)
        level = float(torch.linalg.vector_norm(centred)) ** 2 / centred.numel()
        if pixels <= _DENSE:
            covariance = (1 - shrinkage) / n * (centred.float().T @ centred.float()).double()
            covariance.diagonal().add_(shrinkage * max(level, 1e-6))
            factor = torch.linalg.cholesky(covariance).T
        else:
            # w has one coordinate per image and one per pixel; the sum has the same covariance.
            factor = centred * ((1 - shrinkage) / n) ** 0.5
        self.residual = (shrinkage * max(level, 1e-6)) ** 0.5 if pixels > _DENSE else 0.0
        self.factor = factor.float().to(images.device)
        self.mean = self.mean.float().to(images.device)

    def to(self, device: torch.device) -> Gaussian:
        """Moves it; returns itself."""
        self.factor, self.mean = self.factor.to(device), self.mean.to(device)
        return self

    @property
    def size(self) -> int:
        """The number of coordinates."""
        return int(self.factor.shape[0] + (self.factor.shape[1] if self.residual else 0))

    def images(self, w: Tensor) -> Tensor:
        """(n, channels, height, width) in (0, 1)."""
        rank = self.factor.shape[0]
        values = self.mean + w[:, :rank] @ self.factor
        if self.residual:
            values = values + self.residual * w[:, rank:]
        images: Tensor = torch.sigmoid(values).unflatten(1, self.shape)
        return images

    def potential(self, w: Tensor) -> Tensor:
        """Half the squared length, float64 (n,)."""
        return w.double().square().sum(1) / 2

    def draw(self, n: int, draws: torch.Generator) -> Tensor:
        """Standard normal (n, size)."""
        return torch.randn(n, self.size, generator=draws)

    def tempered(self, w: Tensor, temperature: float) -> Tensor:
        """Normal with the variance T."""
        return w * math.sqrt(temperature)

    def expressible(self, images: Tensor) -> Tensor:
        """Images a little away from 0 and 1."""
        return images.clamp(EDGE, 1 - EDGE)


class Pixels:
    """Pixels themselves, reflected at 0 and 1; the reference measure is uniform.

    Coordinates run over all numbers and are folded: a chain on the unfolded axis with a mirrored energy has, folded,
    exactly the reflected dynamics, drift included, and a Metropolis test stays exact.
    """

    unbounded = False

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = tuple(shape)

    @property
    def size(self) -> int:
        """The number of pixels and channels."""
        return int(torch.Size(self.shape).numel())

    def images(self, w: Tensor) -> Tensor:
        """(n, channels, height, width) in [0, 1]: a triangle wave of period 2."""
        images: Tensor = (1 - (1 - w.remainder(2)).abs()).unflatten(1, self.shape)
        return images

    def potential(self, w: Tensor) -> Tensor:
        """0 everywhere."""
        return w.double().sum(1) * 0

    def draw(self, n: int, draws: torch.Generator) -> Tensor:
        """Uniform in [0, 1]."""
        return torch.rand(n, self.size, generator=draws)

    def tempered(self, w: Tensor, temperature: float) -> Tensor:
        """The same: a uniform density is uniform at any temperature."""
        return w

    def expressible(self, images: Tensor) -> Tensor:
        """All images are."""
        return images
