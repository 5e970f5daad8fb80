"""Coordinates in which chains move freely although images end at 0 and 1, and the measure they keep without an energy.

Clipping at the borders would break detailed balance. Here an image is a smooth (or reflecting) function of free
coordinates instead.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

# Images nearer to 0 or 1 than this are moved there before they are turned into unbounded numbers.
EDGE = 1 / 64
# Above so many pixels the covariance is kept as a factor over images instead of a square root over pixels.
_DENSE = 4096


class Space(Protocol):
    """Free coordinates w (n, size) of images."""

    @property
    def size(self) -> int: ...

    def images(self, w: Tensor) -> Tensor:
        """(n, channels, height, width) in [0, 1]; differentiable."""

    def potential(self, w: Tensor) -> Tensor:
        """Minus the logarithm of the reference density in these coordinates, float64 (n,)."""

    def draw(self, n: int, draws: torch.Generator) -> Tensor:
        """Independent draws from the reference measure (n, size), made on the CPU."""

    def expressible(self, images: Tensor) -> Tensor:
        """The nearest images that coordinates exist for; real ones pass through this before they are compared."""


class Gaussian:
    """Images as the logistic function of a normal vector with the mean and covariance that data have there.

    The reference measure is what these two moments say about the data: colours and spatial frequencies, and no object.
    In whitened coordinates it is a standard normal vector, in which a Langevin chain mixes within tens of steps; the
    covariance is the preconditioner that makes it so.

    Args:
        images: (n, channels, height, width), n at least 2.
        shrinkage: how far the covariance is moved towards a multiple of the identity (Ledoit & Wolf 2004); ``None``
            estimates it.
    """

    def __init__(self, images: Tensor, shrinkage: float | None = None) -> None:
        self.shape = tuple(images.shape[1:])
        values = torch.logit(self.expressible(images).double()).flatten(1)
        self.mean = values.mean(0)
        centred = values - self.mean
        n, pixels = centred.shape
        if shrinkage is None:
            from sklearn.covariance import ledoit_wolf_shrinkage

            shrinkage = float(ledoit_wolf_shrinkage(centred.float().numpy(), assume_centered=True))
        shrinkage = min(max(shrinkage, 1e-3), 1.0)
        level = float(centred.square().mean())
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

    def expressible(self, images: Tensor) -> Tensor:
        """Images a little away from 0 and 1."""
        return images.clamp(EDGE, 1 - EDGE)


class Pixels:
    """Pixels themselves, reflected at 0 and 1; the reference measure is uniform.

    Coordinates run over all numbers and are folded: a chain on the unfolded axis with a mirrored energy has, folded,
    exactly the reflected dynamics, drift included, and a Metropolis test stays exact.
    """

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

    def expressible(self, images: Tensor) -> Tensor:
        """All images are."""
        return images
