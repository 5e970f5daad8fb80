"""Plain noise: the perturbation that no detector should need to fear."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..harness.seeds import Draws
from . import checks
from .base import CountingModel, Perturbation, PerturbationInfo


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

    def __init__(self, std: float) -> None:
        self.std = checks.number("std", std, exclusive=True)

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
