"""Plain noise: the perturbation that no detector should need to fear."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ...harness.core.errors import UsageError
from ...harness.core.ranges import NotNegative, Positive
from ...harness.core.seeds import Draws
from ..base import parameters as checks
from ..base.perturbation import CountingModel, Perturbation, PerturbationInfo
from .filters import split


def photons(images: Tensor, rate: float, draws: Draws) -> Tensor:
    """Photon counts over ``rate``: Poisson with mean ``images`` (in [0, 1]) and variance ``images`` / ``rate``."""
    # Drawn on the CPU, in float64: exact counts at any rate, and the same on every device.
    expected = images.detach().cpu().double() * rate
    counts = [torch.poisson(mean, generator=g) for mean, g in zip(expected, split(images, draws), strict=True)]
    return (torch.stack(counts) / rate).to(images)


def impulses(images: Tensor, amount: float, draws: Draws, whole_pixels: bool = True) -> Tensor:
    """Return images of which a share ``amount`` of the pixels (or of all elements) became 0 or 1 with equal chance."""
    u = draws.uniform(images[:, :1] if whole_pixels else images)
    salted = torch.where(u < amount / 2, torch.ones_like(images), images)
    return torch.where((u >= amount / 2) & (u < amount), torch.zeros_like(images), salted)


class Gaussian(Perturbation):
    """Independent normal noise on every element, clipped to [0, 1].

    Args:
        std: the standard deviation before clipping, above 0 (images lie in [0, 1]).

    Raises:
        UsageError: for another ``std``.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Gaussian noise",
        kind="noise",
        family="noise",
        gradients=False,
        stochastic=True,
        summary="Normal noise of a given standard deviation.",
    )

    def __init__(self, std: Positive) -> None:
        self.std = std

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        return (images + self.std * draws.normal(images)).clamp_(0, 1)


class Uniform(Perturbation):
    """Independent noise, uniform in [−eps, eps], on every element, clipped to [0, 1].

    Args:
        eps: the largest change, in [0, 1].

    Raises:
        UsageError: for another ``eps``.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Uniform noise",
        kind="noise",
        family="noise",
        norm="linf",
        gradients=False,
        stochastic=True,
        summary="Uniform noise within an L-inf budget.",
    )

    def __init__(self, eps: float) -> None:
        self.eps: float = checks.budget(eps)

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        return (images + draws.uniform(images).mul_(2).sub_(1) * self.eps).clamp_(0, 1)


class RandomSign(Perturbation):
    """Plus or minus eps with equal chance on every element, clipped to [0, 1]: the corners of the L-inf ball.

    It has the size of an L-inf attack without its direction.

    Args:
        eps: the change of every element, in [0, 1].

    Raises:
        UsageError: for another ``eps``.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Random sign noise",
        kind="noise",
        family="noise",
        norm="linf",
        gradients=False,
        stochastic=True,
        summary="Every element up or down by eps at random.",
    )

    def __init__(self, eps: float) -> None:
        self.eps: float = checks.budget(eps)

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        return (images + draws.signs(images) * self.eps).clamp_(0, 1)


class SaltAndPepper(Perturbation):
    """Pixels that become white or black with equal chance, in all channels at once.

    Args:
        amount: the chance of each pixel to be replaced, in [0, 1].

    Raises:
        UsageError: for another ``amount``.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Salt and pepper",
        kind="noise",
        family="noise",
        gradients=False,
        stochastic=True,
        summary="Sets a share of the pixels to white or black.",
    )

    def __init__(self, amount: NotNegative = 0.05) -> None:
        self.amount = amount
        if self.amount > 1:
            raise UsageError(f"amount = {amount!r}: give a share of the pixels, from 0 to 1.")

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        return impulses(images, self.amount, draws)


class Shot(Perturbation):
    """Photon noise: each element is a Poisson count with mean ``rate`` x, over ``rate`` and clipped to [0, 1].

    Args:
        rate: photons that a white element receives on average, above 0; fewer photons are more noise.

    Raises:
        UsageError: for another ``rate``.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Shot noise",
        kind="noise",
        family="noise",
        gradients=False,
        stochastic=True,
        summary="Poisson noise of a given number of photons.",
    )

    def __init__(self, rate: Positive = 100.0) -> None:
        self.rate = rate

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        return photons(images, self.rate, draws).clamp_(0, 1)


class Speckle(Perturbation):
    """Normal noise in proportion to each element, x (1 + std N(0, 1)), clipped to [0, 1].

    Args:
        std: the standard deviation relative to x, above 0.

    Raises:
        UsageError: for another ``std``.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Speckle noise",
        kind="noise",
        family="noise",
        gradients=False,
        stochastic=True,
        summary="Normal noise in proportion to the brightness.",
    )

    def __init__(self, std: Positive = 0.15) -> None:
        self.std = std

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        return (images + images * self.std * draws.normal(images)).clamp_(0, 1)
