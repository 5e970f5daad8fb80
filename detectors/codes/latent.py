"""Latent codes of activations: standardised units, principal components, and a small autoencoder.

Everything here reads its data as a stream of batches, so a set may be larger than memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ...harness.core.errors import UsageError

Batches = Callable[[], Iterable[Tensor]]

# Up to this number of units the covariance matrix is held whole; above, components come from a subspace iteration.
_COVARIANCE_UNITS = 2048
_OVERSAMPLING = 16
_MAX_PASSES = 12
_IMQ_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
# Mini-batches in the buffer that an epoch is shuffled in.
_BUFFERED = 32


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


class Autoencoder(nn.Module):
    """A fully connected autoencoder with ReLUs between its layers; without hidden layers it is linear.

    The parameters are 0 until they are drawn (``generator``) or loaded; the global random state is not touched.

    Args:
        inputs: units of the input, which should be standardised.
        latent: units of the code.
        hidden: sizes of the encoder's hidden layers; the decoder mirrors them.
        generator: draws the weights (Kaiming uniform); biases stay 0.
    """

    def __init__(
        self, inputs: int, latent: int, hidden: tuple[int, ...] = (), generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.inputs, self.latent, self.hidden = inputs, latent, tuple(hidden)
        sizes = (inputs, *self.hidden, latent)
        self.encoder = _layers(sizes, generator)
        self.decoder = _layers(sizes[::-1], generator)

    def encode(self, x: Tensor) -> Tensor:
        """Codes (n, latent) of (n, inputs)."""
        code: Tensor = self.encoder(x)
        return code

    def decode(self, z: Tensor) -> Tensor:
        """Return the reconstructions (n, inputs) of codes (n, latent)."""
        reconstruction: Tensor = self.decoder(z)
        return reconstruction

    def forward(self, x: Tensor) -> Tensor:
        """Return reconstructions of (n, inputs)."""
        return self.decode(self.encode(x))


def load_autoencoder(inputs: int, latent: int, hidden: tuple[int, ...], tensors: Mapping[str, Tensor]) -> Autoencoder:
    """Return an autoencoder with given weights, on their device, in eval mode, without gradients of its parameters.

    Raises:
        UsageError: if the weights are not those of such a network; nothing is built then.
    """
    sizes = (inputs, *hidden, latent)
    wanted = sum(2 * a * b + a + b for a, b in pairwise(sizes))
    found = sum(value.numel() for value in tensors.values())
    if wanted != found:
        raise UsageError(f"An autoencoder of {sizes} has {wanted:,} weights, but its state holds {found:,}.")
    made = Autoencoder(inputs, latent, hidden)
    made.load_state_dict(dict(tensors))
    device = next(iter(tensors.values())).device
    return made.to(device).eval().requires_grad_(False)


def _layers(sizes: tuple[int, ...], generator: torch.Generator | None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (wide, narrow) in enumerate(pairwise(sizes)):
        # On the meta device nothing is drawn; a plain nn.Linear would take numbers from the global state.
        layer = nn.Linear(wide, narrow, device="meta").to_empty(device="cpu")
        nn.init.zeros_(layer.bias)
        if generator is None:
            nn.init.zeros_(layer.weight)
        else:
            last = i == len(sizes) - 2
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="linear" if last else "relu", generator=generator)
        layers += [layer] if i == len(sizes) - 2 else [layer, nn.ReLU()]
    return nn.Sequential(*layers)


def fit_autoencoder(
    batches: Batches,
    inputs: int,
    latent: int,
    hidden: tuple[int, ...],
    epochs: int,
    generator: torch.Generator,
    learning_rate: float = 1e-3,
    batch_size: int = 128,
    penalty: Callable[[Tensor], Tensor] | None = None,
) -> Autoencoder:
    """Train an autoencoder to reconstruct a stream of (n, inputs) under the squared error.

    Adam, with a learning rate that falls along a cosine from epoch to epoch. Each epoch is shuffled within a buffer of
    32 mini-batches. Weights and shuffles come from ``generator`` (CPU) and nothing else, and where the stream is cut
    into batches makes no difference.

    Args:
        batches: gives the rows of one epoch each time that it is called, on the device to train on.
        penalty: added to the mean squared error; a function of a mini-batch's codes (n, latent).

    Returns:
        the autoencoder in eval mode, its parameters frozen.

    Raises:
        ValueError: for a stream without rows, or a training that diverged.
    """
    # A caller may be inside no_grad or inference_mode, where nothing could be trained.
    with torch.inference_mode(False), torch.enable_grad():
        model = Autoencoder(inputs, latent, hidden, generator)
        optimiser: torch.optim.Adam | None = None
        loss = torch.tensor(math.nan)
        for epoch in range(epochs):
            rate = learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
            for rows in _shuffled(batches(), batch_size, generator):
                if optimiser is None:
                    model.to(rows.device)
                    optimiser = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
                optimiser.param_groups[0]["lr"] = rate
                codes = model.encode(rows)
                loss = nn.functional.mse_loss(model.decode(codes), rows)
                if penalty is not None:
                    loss = loss + penalty(codes)
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
    if epochs and optimiser is None:
        raise ValueError("an autoencoder is trained on at least one row")
    if epochs and not math.isfinite(loss.item()):
        raise ValueError("the autoencoder's training diverged: standardise its inputs or lower the learning rate")
    return model.eval().requires_grad_(False)


def imq_mmd(codes: Tensor, prior: Tensor, variance: float) -> Tensor:
    """The squared maximum mean discrepancy of two samples (n, d) each: the unbiased estimate, which may be negative.

    The kernel is the sum over s of C / (C + |x − y|²) with C = 2 · d · variance · s, the inverse multiquadratics of
    Wasserstein autoencoders (Tolstikhin et al. 2018, arXiv 1711.01558). One row has no pair and gives 0.
    """
    n, d = codes.shape
    if n < 2:
        return codes.sum() * 0
    both = torch.cat([codes, prior])
    norms = both.square().sum(1)
    squares = (norms.unsqueeze(1) + norms - 2 * (both @ both.T)).clamp(min=0)
    constants = 2 * d * variance * squares.new_tensor(_IMQ_SCALES)[:, None, None]
    kernel = (constants / (constants + squares)).sum(0)
    within = kernel[:n, :n].sum() + kernel[n:, n:].sum() - 2 * n * len(_IMQ_SCALES)
    return within / (n * (n - 1)) - 2 * kernel[:n, n:].mean()


def _shuffled(batches: Iterable[Tensor], size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Mini-batches of ``size`` rows, shuffled within a buffer that is filled, emitted whole and filled again."""
    held: list[Tensor] = []
    count, full = 0, size * _BUFFERED
    for batch in batches:
        rest = batch.float()
        while len(rest):
            part, rest = rest[: full - count], rest[full - count :]
            held.append(part)
            count += len(part)
            if count == full:
                yield from _permuted(torch.cat(held), size, generator)
                held, count = [], 0
    if count:
        yield from _permuted(torch.cat(held), size, generator)


def _permuted(rows: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    order = torch.randperm(len(rows), generator=generator, device=generator.device).to(rows.device)
    for part in torch.split(order, size):
        yield rows[part]
