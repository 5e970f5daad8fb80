"""Linear codes of activations: standardised units and principal components.

Everything here reads its data as a stream of batches, so a set may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Batches = Callable[[], Iterable[Tensor]]

# Up to this number of units the covariance matrix is held whole; above, components come from a subspace iteration.
_COVARIANCE_UNITS = 2048
_OVERSAMPLING = 16
_MAX_PASSES = 12


@dataclass(frozen=True, eq=False)
class Standardiser:
    """Units brought to mean 0 and standard deviation 1; a unit that never varied becomes 0.

    Attributes:
        mean: float32 (d,).
        scale: float32 (d,): one over the standard deviation, 0 for a constant unit.
    """

    mean: Tensor
    scale: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Standardise (n, d)."""
        return (x - self.mean) * self.scale


def fit_standardiser(batches: Iterable[Tensor]) -> Standardiser:
    """Means and (population) standard deviations of the units of a stream of (n, d).

    Batches are merged in float64 by Chan, Golub and LeVeque's formula (1979). A standard deviation below float32's
    resolution at the unit's mean is taken for 0.

    Raises:
        ValueError: for a stream without rows.
    """
    count = 0
    mean = deviation = torch.empty(0)
    for batch in batches:
        n = len(batch)
        if not n:
            continue
        values = batch.double()
        own = values.mean(0)
        squares = (values - own).square().sum(0)
        if not count:
            mean, deviation = own, squares
        else:
            shift = own - mean
            mean = mean + shift * (n / (count + n))
            deviation = deviation + squares + shift.square() * (count * n / (count + n))
        count += n
    if not count:
        raise ValueError("a standardiser is fitted on at least one row")
    spread = (deviation / count).sqrt()
    varies = spread > (1e-7 * mean.abs()).clamp(min=1e-12)
    return Standardiser(mean.float(), torch.where(varies, 1 / spread, 0.0).float())


@dataclass(frozen=True, eq=False)
class PCA:
    """Principal components.

    Attributes:
        mean: float32 (d,).
        components: float32 (k, d), orthonormal, by falling deviation; the largest loading of each is positive.
        deviations: float32 (k,): the (population) standard deviation along each component, all above 0.
    """

    mean: Tensor
    components: Tensor
    deviations: Tensor

    def encode(self, x: Tensor) -> Tensor:
        """Coordinates (n, k) of (n, d) along the components."""
        return (x - self.mean) @ self.components.T

    def decode(self, z: Tensor) -> Tensor:
        """Return the points (n, d) at coordinates (n, k)."""
        return z @ self.components + self.mean


def fit_pca(batches: Batches, components: int) -> PCA:
    """Return the leading principal components of a stream of (n, d), read two or more times; nothing depends on a seed.

    Up to 2,048 units they are exact (the covariance in float64); above, they come from a subspace iteration
    (Halko, Martinsson and Tropp 2011, algorithm 4.4) that stops when their variances have settled, with memory
    for d · (components + 16) numbers beside a batch.

    Args:
        batches: gives the same rows each time that it is called.
        components: how many; fewer come back where the data vary in fewer directions.

    Raises:
        ValueError: for a stream without rows, and for fewer than one component.
    """
    if components < 1:
        raise ValueError("fit_pca finds at least one component")
    count = 0
    total = torch.empty(0)
    for batch in batches():
        total = batch.double().sum(0) if not count else total + batch.double().sum(0)
        count += len(batch)
    if not count:
        raise ValueError("principal components are fitted on at least one row")
    mean = total / count
    d = len(mean)
    wanted = min(components, d, count)
    if d <= _COVARIANCE_UNITS:
        covariance = torch.zeros(d, d, dtype=torch.float64, device=mean.device)
        for batch in batches():
            centred = batch.double() - mean
            covariance += centred.T @ centred
        eigenvalues, vectors = torch.linalg.eigh(covariance / count)
        variances, axes = eigenvalues.flip(0)[:wanted], vectors.T.flip(0)[:wanted]
    else:
        variances, axes = _subspace_iteration(batches, mean, count, wanted)
    deviations = variances.clamp(min=0).sqrt()
    floor = max(1e-6 * float(deviations[0]), 1e-7 * float(mean.abs().max()), 1e-12)
    kept = deviations > floor
    axes, deviations = axes[kept], deviations[kept]
    if len(axes):
        largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
        axes = axes * torch.where(largest < 0, -1.0, 1.0)
    return PCA(mean.float(), axes.float(), deviations.float())


def _subspace_iteration(batches: Batches, mean: Tensor, count: int, wanted: int) -> tuple[Tensor, Tensor]:
    """Leading eigenvalues (k,) and eigenvectors (k, d) of the covariance, without forming it."""
    width = min(wanted + _OVERSAMPLING, len(mean))
    start = torch.randn(len(mean), width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.linalg.qr(start.to(mean.device)).Q
    before = torch.zeros(wanted, dtype=torch.float64, device=mean.device)
    offset, variances, axes = mean.float(), before, basis.T[:wanted]
    for _ in range(_MAX_PASSES):
        image = torch.zeros_like(basis)
        narrow = basis.float()
        for batch in batches():
            centred = batch.float() - offset
            image += (centred.T @ (centred @ narrow)).double()
        image /= count
        # Rayleigh-Ritz within the subspace; then its image is the next one.
        values, rotation = torch.linalg.eigh((basis.T @ image + image.T @ basis) / 2)
        variances = values.flip(0)[:wanted]
        axes = (basis @ rotation).T.flip(0)[:wanted]
        if bool(((variances - before).abs() <= 1e-5 * variances.abs() + 1e-30).all()):
            break
        before = variances
        basis = torch.linalg.qr(image).Q
    return variances, axes
