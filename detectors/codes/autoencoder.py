"""A small autoencoder as a code of activations.

Its data are read as a stream of batches, so a set may be larger than memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ...harness.core.errors import UsageError
from .latent import Batches, fit_pca

_IMQ_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
# Mini-batches in the buffer that an epoch is shuffled in.
_BUFFERED = 32
# Principal components that an autoencoder of many inputs is trained in, at least.
_COMPONENTS = 64


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
    """Train an autoencoder to reconstruct a stream of (n, inputs): :func:`fit_autoencoders` for a single one."""

    def stacked() -> Iterator[Tensor]:
        return (batch.unsqueeze(0) for batch in batches())

    return fit_autoencoders(
        stacked, 1, inputs, latent, hidden, epochs, generator, learning_rate, batch_size, penalty
    )[0]  # fmt: skip


def fit_autoencoders(
    batches: Batches,
    count: int,
    inputs: int,
    latent: int,
    hidden: tuple[int, ...],
    epochs: int,
    generator: torch.Generator,
    learning_rate: float = 1e-3,
    batch_size: int = 128,
    penalty: Callable[[Tensor], Tensor] | None = None,
) -> list[Autoencoder]:
    """Train autoencoders of one shape, each to reconstruct rows of its own under the squared error, side by side.

    They are independent of each other, but a step of all costs little more than a step of one. Adam, with a learning
    rate that falls along a cosine from epoch to epoch. Each epoch is shuffled within a buffer of 32 mini-batches.
    Weights and shuffles come from ``generator`` (CPU) and nothing else, and where the stream is cut into batches makes
    no difference.

    Args:
        batches: gives the rows of one epoch, (count, n, inputs), each time that it is called, on the device to train
            on.
        count: number of autoencoders.
        inputs, latent, hidden: the shape, as of :class:`Autoencoder`.
        epochs: passes over the rows.
        generator: see above.
        learning_rate: in the first epoch.
        batch_size: rows of a mini-batch.
        penalty: added to the mean squared errors; a function of a mini-batch's codes, (count, n, latent).

    Returns:
        the autoencoders in eval mode, their parameters frozen.

    Raises:
        ValueError: for a stream without rows, or a training that diverged.
    """
    # A caller may be inside no_grad or inference_mode, where nothing could be trained.
    with torch.inference_mode(False), torch.enable_grad():
        models = [Autoencoder(inputs, latent, hidden, generator) for _ in range(count)]
        weights: dict[str, Tensor] = {}
        optimiser: torch.optim.Adam | None = None
        loss = torch.tensor(math.nan)
        for epoch in range(epochs):
            rate = learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
            for rows in _shuffled(batches(), batch_size, generator):
                if optimiser is None:
                    flat, weights = _stacked(models, rows.device)
                    optimiser = torch.optim.Adam([flat], lr=rate, fused=True)
                optimiser.param_groups[0]["lr"] = rate
                codes = _applied(weights, "encoder", rows)
                loss = (_applied(weights, "decoder", codes) - rows).square().mean((1, 2)).sum()
                if penalty is not None:
                    loss = loss + penalty(codes).sum()
                optimiser.zero_grad(set_to_none=False)
                torch.autograd.backward(loss)
                optimiser.step()
        if epochs and optimiser is None:
            raise ValueError("an autoencoder is trained on at least one row")
        if epochs and not math.isfinite(loss.item()):
            raise ValueError("the autoencoder's training diverged: standardise its inputs or lower the learning rate")
        for index, model in enumerate(models):
            if weights:
                model.load_state_dict({name: value.detach()[index] for name, value in weights.items()})
        device = next(iter(weights.values())).device if weights else torch.device("cpu")
        return [model.to(device).eval().requires_grad_(False) for model in models]


def fit_in_components(
    batches: Batches, latent: int, hidden: tuple[int, ...], epochs: int, generator: torch.Generator, batch_size: int
) -> Autoencoder:
    """Train an autoencoder of many inputs in their leading principal components: 64, or four for each unit of the code.

    Most directions of thousands of inputs are noise. An autoencoder of a thousand rows of them learns that by heart: on
    other rows it explains less than one of the components, at several times the cost. The first and the last layer of
    the result are multiplied with the components, so that it takes the inputs themselves.

    Args:
        batches: gives the rows of one epoch, (n, inputs), each time that it is called; not all rows are the same.
        latent, hidden, epochs, generator, batch_size: as of :func:`fit_autoencoders`.

    Raises:
        ValueError: for a stream without rows, or a training that diverged.
    """
    axes = fit_pca(batches, max(_COMPONENTS, 4 * latent))
    # One factor for all: they keep their proportions, and have a mean square of 1.
    unit = axes.deviations.square().mean().sqrt()

    def coordinates() -> Iterator[Tensor]:
        return (axes.encode(batch) / unit for batch in batches())

    trained = fit_autoencoder(
        coordinates, len(axes.components), latent, hidden, epochs, generator, batch_size=batch_size
    )
    tensors = dict(trained.state_dict())
    first, last = "encoder.0", f"decoder.{2 * len(hidden)}"
    rows = tensors[f"{first}.weight"] @ axes.components / unit
    tensors |= {f"{first}.weight": rows, f"{first}.bias": tensors[f"{first}.bias"] - rows @ axes.mean}
    tensors |= {
        f"{last}.weight": axes.components.T @ tensors[f"{last}.weight"] * unit,
        f"{last}.bias": axes.decode(tensors[f"{last}.bias"] * unit),
    }
    return load_autoencoder(len(axes.mean), latent, hidden, tensors)


def _stacked(models: Sequence[Autoencoder], device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
    """Return all parameters as one vector to train, and the (models, ...) of each name, which are parts of it.

    The gradients of the parts are parts of the vector's: for small networks, an update of many tensors takes longer
    than the passes.
    """
    states = [model.state_dict() for model in models]
    stacks = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    flat = torch.cat([stack.flatten() for stack in stacks.values()]).to(device)
    flat.grad = torch.zeros_like(flat)
    sizes = [stack.numel() for stack in stacks.values()]
    parts: dict[str, Tensor] = {}
    for (name, stack), part, gradient in zip(stacks.items(), flat.split(sizes), flat.grad.split(sizes), strict=True):
        parts[name] = part.view_as(stack).requires_grad_()
        parts[name].grad = gradient.view_as(stack)
    return flat, parts


def _applied(weights: Mapping[str, Tensor], side: str, rows: Tensor) -> Tensor:
    """Return what the ``encoder`` or ``decoder`` of each model makes of its own rows, (models, n, units)."""
    layers = [name.removesuffix(".weight") for name in weights if name.startswith(side) and name.endswith(".weight")]
    for layer in layers:
        bias = weights[f"{layer}.bias"].unsqueeze(1)
        rows = torch.baddbmm(bias, rows, weights[f"{layer}.weight"].transpose(1, 2))
        if layer != layers[-1]:
            rows = rows.relu()
    return rows


def imq_mmd(codes: Tensor, prior: Tensor, variance: float) -> Tensor:
    """The squared maximum mean discrepancy of two samples (..., n, d) each: the unbiased estimate, (...).

    It may be negative.

    The kernel is the sum over s of C / (C + |x − y|²) with C = 2 · d · variance · s, the inverse multiquadratics of
    Wasserstein autoencoders (Tolstikhin et al. 2018, arXiv 1711.01558). One row has no pair and gives 0.
    """
    n, d = codes.shape[-2:]
    if n < 2:
        return codes.sum((-2, -1)) * 0
    both = torch.cat([codes, prior], -2)
    norms = both.square().sum(-1)
    squares = (norms.unsqueeze(-1) + norms.unsqueeze(-2) - 2 * (both @ both.mT)).clamp(min=0)
    kernel: Tensor = _InverseMultiquadrics.apply(squares, [2 * d * variance * scale for scale in _IMQ_SCALES])
    own = kernel[..., :n, :n].sum((-2, -1)) + kernel[..., n:, n:].sum((-2, -1)) - 2 * n * len(_IMQ_SCALES)
    return own / (n * (n - 1)) - 2 * kernel[..., :n, n:].mean((-2, -1))


class _InverseMultiquadrics(torch.autograd.Function):
    """The sum over constants c of c / (c + x), x not negative, with its derivative from the same pass over x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, constants: Sequence[float]) -> Tensor:
        total, slope = torch.zeros_like(x), torch.zeros_like(x)
        for constant in constants:
            inverse = (x + constant).reciprocal_()
            total.add_(inverse, alpha=constant)
            slope.addcmul_(inverse, inverse, value=-constant)
        ctx.save_for_backward(slope)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None


def _shuffled(batches: Iterable[Tensor], size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Mini-batches of ``size`` rows of (models, n, inputs), shuffled in a buffer that is filled and emitted whole."""
    held: list[Tensor] = []
    count, full = 0, size * _BUFFERED
    for batch in batches:
        rest = batch.float()
        while rest.shape[1]:
            part, rest = rest[:, : full - count], rest[:, full - count :]
            held.append(part)
            count += part.shape[1]
            if count == full:
                yield from _permuted(torch.cat(held, 1), size, generator)
                held, count = [], 0
    if count:
        yield from _permuted(torch.cat(held, 1), size, generator)


def _permuted(rows: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    order = torch.randperm(rows.shape[1], generator=generator, device=generator.device).to(rows.device)
    for part in torch.split(order, size):
        yield rows[:, part]
