"""A small autoencoder as a code of activations.

Its data are read as a stream of batches, so a set may be larger than memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from ...harness.core.errors import UsageError
from .latent import Batches

_IMQ_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
# Mini-batches in the buffer that an epoch is shuffled in.
_BUFFERED = 32


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
