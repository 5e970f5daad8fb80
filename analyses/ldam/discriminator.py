"""The regulariser that is learnt: a small convolutional network that tells images from chain samples, then frozen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...harness.core.seeds import forked_rng
from .diagnostics import validate_finite
from .energy import Energy
from .sampler import Plan, Schedule, langevin
from .space import Space

# Mini-batches of either kind.
_BATCH = 64
_REPLAY = 4096


class Discriminator(nn.Module):
    """Images (n, channels, height, width) in [0, 1] to logits (n,), positive for "an image of the data set".

    Strided convolutions until at most 4 pixels are left on a side. Its activation is smooth, for chains follow its
    gradient, and nothing in it depends on the rest of a batch.
    """

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        channels, height, wide = shape
        stages: list[nn.Module] = []
        maps, more = channels, width
        while min(height, wide) > 4:
            stages += [nn.Conv2d(maps, more, 4, 2, 1), nn.SiLU()]
            maps, more, height, wide = more, min(2 * more, 4 * width), height // 2, wide // 2
        stages += [nn.Conv2d(maps, more, 3, padding=1), nn.SiLU()]
        maps = more
        self.stages = nn.Sequential(*stages, nn.AdaptiveAvgPool2d((min(height, 4), min(wide, 4))), nn.Flatten())
        self.linear = nn.Linear(maps * min(height, 4) * min(wide, 4), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n,)."""
        logits: Tensor = self.linear(self.stages(2 * x - 1))
        return logits[:, 0]


@dataclass(frozen=True)
class Rounds:
    """How a discriminator is trained against moving chains.

    Attributes:
        count: of chains moving and the discriminator learning, in turns.
        moves: Langevin steps of every chain in a round.
        updates: steps of Adam in a round.
        width: maps of the first convolution.
        learning_rate: of Adam.
        penalty: of the squared slope at real images and at samples (R1 and R2; Mescheder et al. 2018).
        every: so many updates the penalty is taken, times as many.
        restart: the share of chains that begin anew from the reference measure in each round.
    """

    count: int
    moves: int
    updates: int
    width: int
    learning_rate: float = 2e-3
    penalty: float = 0.1
    every: int = 4
    restart: float = 0.05


@dataclass(eq=False)
class TrainedDiscriminator:
    """A frozen discriminator, and how it was doing while it learnt.

    Attributes:
        network: in eval mode, without gradients of its parameters.
        real, fake: mean logits of real images and of samples, by round.
    """

    network: Discriminator
    real: list[float]
    fake: list[float]


def make(shape: tuple[int, ...], width: int, draws: torch.Generator, device: torch.device) -> Discriminator:
    """A discriminator with fresh weights."""
    with forked_rng(int(torch.randint(2**62, (1,), generator=draws))):
        return Discriminator(shape, width).to(device)


def learn(
    network: Discriminator, optimiser: torch.optim.Optimizer, real: Tensor, fake: Tensor, penalty: float
) -> tuple[float, float]:
    """One step: tell real images from samples (both (n, ...), on the network's device); returns their mean logits."""
    with torch.enable_grad():
        both = torch.cat([real, fake]).detach().requires_grad_(penalty > 0)
        logits = network(both)
        said, told = logits[: len(real)], logits[len(real) :]
        loss = F.softplus(-said).mean() + F.softplus(told).mean()
        if penalty:
            (slope,) = torch.autograd.grad(logits.sum(), both, create_graph=True)
            loss = loss + penalty / 2 * slope.square().flatten(1).sum(1).mean()
        optimiser.zero_grad()
        torch.autograd.backward(loss, inputs=list(network.parameters()))
        optimiser.step()
    return float(said.detach().mean()), float(told.detach().mean())


def train_discriminator(
    energy: Energy, space: Space, images: Tensor, rounds: Rounds, step: float, draws: Callable[..., torch.Generator],
    device: torch.device, progress: Callable[[float], None] = lambda share: None,
) -> TrainedDiscriminator:  # fmt: skip
    """Train a discriminator on data against the samples of chains that follow it, and freeze it.

    These chains are unadjusted and always take ``step`` as it is: nothing is measured on them, and a
    step size that adapts would take longer to settle than a round lasts.

    Args:
        energy: of the chains (their targets and weights); its discriminator is set while it is trained, and afterwards.
        space: their coordinates.
        images: data (n, channels, height, width).
        rounds: how.
        step: the chains' step size.
        draws: a seeded generator by name.
        device: where to train.
        progress: told the share that is done.

    Raises:
        UsageError: for chains that run away.
    """
    network = make(tuple(images.shape[1:]), rounds.width, draws("discriminator"), device)
    energy.discriminator = network
    optimiser = torch.optim.Adam(network.parameters(), rounds.learning_rate, betas=(0.5, 0.99))
    chains = len(energy.target)
    noise, picks = draws("lessons", "noise"), draws("lessons", "images")
    w = space.draw(chains, draws("lessons", "start")).to(device)
    replay = space.images(w).detach().cpu()
    plan = Plan(rounds.moves, rounds.moves, 1, Schedule(step))
    trained = TrainedDiscriminator(network, [], [])
    for number in range(rounds.count):
        anew = torch.rand(chains, generator=picks) < rounds.restart
        w[anew.to(device)] = space.draw(int(anew.sum()), noise).to(device)
        network.requires_grad_(False)
        w = langevin(energy, w, plan, noise).end
        validate_finite(step, w)
        network.requires_grad_(True)
        current = space.images(w).detach().cpu()
        replay = torch.cat([replay, current])
        if len(replay) > _REPLAY:
            replay = replay[torch.randperm(len(replay), generator=picks)[:_REPLAY]]
        real, fake = 0.0, 0.0
        for turn in range(rounds.updates):
            slope = rounds.penalty * rounds.every if turn % rounds.every == 0 else 0.0
            size = min(_BATCH, len(images))
            ours = images[torch.randint(len(images), (size,), generator=picks)]
            now = current[torch.randint(len(current), (size // 2,), generator=picks)]
            before = replay[torch.randint(len(replay), (size - size // 2,), generator=picks)]
            # Noise last: where most pixels are 0, they would all lie at one value that no chain ever takes.
            ours = space.expressible(ours) + (torch.rand(ours.shape, generator=picks) - 0.5) / 255
            ours = ours.clamp(0, 1)
            said, told = learn(network, optimiser, ours.to(device), torch.cat([now, before]).to(device), slope)
            real, fake = real + said / rounds.updates, fake + told / rounds.updates
        trained.real.append(real)
        trained.fake.append(fake)
        validate_finite(step, torch.tensor([real, fake]))
        progress((number + 1) / rounds.count)
    network.eval().requires_grad_(False)
    return trained


def logits_of(network: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """Float64 (n,), on the CPU."""
    with torch.no_grad():
        parts = [network(part.to(device)).double().cpu() for part in images.split(4 * _BATCH)]
    return torch.cat([torch.empty(0, dtype=torch.float64), *parts])
