"""Trains all decoders of one seed side by side: the same initial weights, mini-batches and steps for every source."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...harness.core.model_state import one_thread, untouched
from ...harness.core.seeds import forked_rng
from ...harness.tracing.traced_model import TracedModel
from ...harness.tracing.traces import TapInfo
from .networks import Decoder, encode, fresh

BATCH = 128
# Below so many numbers in a mini-batch several threads only wait for each other.
_SMALL = 2**16
Encoder = Literal["own", "reference", "random"]


@dataclass(frozen=True)
class Source:
    """Where the codes that are decoded come from.

    Attributes:
        name: for people.
        kind: ``cladec``, ``refae`` or ``random``.
        encoder: the classifier under study, a network trained together with the decoder, or an untrained one.
        alpha: the weight of the classification loss.
    """

    name: str
    kind: str
    encoder: Encoder
    alpha: float = 0.0


REFERENCE = Source("RefAE", "refae", "reference")
RANDOM = Source("random encoder", "random", "random")


def cladec(alpha: float) -> Source:
    """The classifier's codes, decoded with weight ``alpha`` on the class."""
    return Source(f"ClaDec, α = {alpha:g}", "cladec", "own", alpha)


@dataclass(frozen=True)
class Budget:
    """How every decoder is trained."""

    epochs: int
    batch_size: int
    learning_rate: float
    width: int


Key = tuple[str, Source]


@dataclass(eq=False)
class Trained:
    """What one seed trained.

    Attributes:
        encoders: by tap and source.
        decoders: by tap and source.
        curves: mean squared error of every epoch's training images, by tap and source.
    """

    encoders: dict[Key, TracedModel] = field(default_factory=dict)
    decoders: dict[Key, Decoder] = field(default_factory=dict)
    curves: dict[Key, list[float]] = field(default_factory=dict)

    def reconstruct(self, tap: str, source: Source, images: Tensor) -> Tensor:
        """Images (n, channels, height, width) after encoding and decoding, on the CPU."""
        decoder, encoder = self.decoders[tap, source], self.encoders[tap, source]
        device = next(decoder.parameters()).device
        parts = [images[:0].cpu()]
        with torch.no_grad():
            for part in images.split(BATCH):
                parts.append(decoder(encode(encoder, part.to(device), (tap,))[tap]).cpu())
        return torch.cat(parts)


def train_decoders(
    own: TracedModel,
    untrained: TracedModel | None,
    images: Tensor,
    targets: Tensor,
    taps: Sequence[TapInfo],
    sources: Sequence[Source],
    budget: Budget,
    draws: Callable[..., torch.Generator],
    device: torch.device,
    progress: Callable[[float], None] = lambda share: None,
) -> Trained:
    """Train one decoder for every tap and source, and the RefAE's encoders with theirs.

    The loss is (1 - alpha) x mean squared error + alpha x cross-entropy of the classifier under study on the
    reconstruction. RefAE and the random encoder start from the same weights: they differ in the training alone.

    Args:
        own: the classifier under study; it stays as it is.
        untrained: its architecture untrained; needed by the reference and the random encoder.
        images: (n, channels, height, width) in [0, 1].
        targets: the classes that the reconstructions shall keep, (n,).
        taps: whose activations are decoded.
        sources: what is compared.
        budget: the same for all.
        draws: a seeded generator by name.
        device: where to train.
        progress: told the share that is done.
    """
    names, mean = [tap.name for tap in taps], images.mean(0)
    made = Trained()
    random = None if untrained is None else fresh(untrained, draws("encoder"), device)
    optimisers: dict[Key, torch.optim.Optimizer] = {}
    for tap in taps:
        start = int(torch.randint(2**62, (1,), generator=draws("decoder", tap.name)))
        for source in sources:
            key = tap.name, source
            with forked_rng(start):
                decoder = Decoder(tap.shape, mean, budget.width).to(device)
            made.decoders[key], made.curves[key] = decoder, []
            learned = list(decoder.parameters())
            if source.encoder == "own" or untrained is None or random is None:
                made.encoders[key] = own
            elif source.encoder == "random":
                made.encoders[key] = random
            else:
                made.encoders[key] = fresh(untrained, draws("encoder"), device)
                learned += list(made.encoders[key].model.parameters())
            optimisers[key] = torch.optim.Adam(learned, budget.learning_rate)
    size = min(budget.batch_size, len(images))
    per_epoch = len(images) // size
    total, step, order = budget.epochs * per_epoch, 0, draws("batches")
    references = [made.encoders[k].model for k in optimisers if k[1].encoder == "reference"]
    frozen = [own] if random is None else [own, random]
    small = size * images[0].numel() < _SMALL
    cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    with one_thread(small), cudnn, untouched(own.model), torch.enable_grad():
        for model in references:
            _learning(model)
        for _ in range(budget.epochs):
            errors = {key: torch.zeros((), device=device) for key in optimisers}
            for rows in torch.randperm(len(images), generator=order)[: per_epoch * size].split(size):
                batch, wanted = images[rows].to(device), targets[rows].to(device)
                with torch.no_grad():
                    codes = {id(f): encode(f, batch, names) for f in frozen}
                # Half a cosine down to 0, as classifiers are trained here.
                rate = budget.learning_rate * 0.5 * (1 + math.cos(math.pi * step / total))
                for key, optimiser in optimisers.items():
                    tap_name, source = key
                    encoder = made.encoders[key]
                    known = codes.get(id(encoder))
                    code = (known or encode(encoder, batch, (tap_name,)))[tap_name]
                    decoded = made.decoders[key](code)
                    error = F.mse_loss(decoded, batch)
                    loss = (1 - source.alpha) * error
                    if source.alpha:
                        loss = loss + source.alpha * F.cross_entropy(own.model(decoded), wanted)
                    for group in optimiser.param_groups:
                        group["lr"] = rate
                    optimiser.zero_grad()
                    torch.autograd.backward(loss)
                    optimiser.step()
                    errors[key] += error.detach()
                step += 1
                progress(step / total)
            for key, error_sum in errors.items():
                made.curves[key].append(float(error_sum) / per_epoch)
    for network in (*references, *made.decoders.values()):
        network.eval().requires_grad_(False)
    return made


def _learning(model: nn.Module) -> None:
    """Training mode, so that batch norm learns its statistics, but no dropout: nothing shall be lost on the way."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
