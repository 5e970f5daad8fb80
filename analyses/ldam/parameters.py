"""The named parts of LDAM's parameters, each a table in a suite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from ...harness.core.errors import UsageError
from ...harness.core.ranges import Count, Natural, Positive
from .discriminator import Rounds
from .sampler import Decay, Method, Plan, Schedule

Coordinates = Literal["gaussian", "pixels"]
# Chains begin with large steps: the polynomial schedule's offset and power (Welling & Teh 2011 want 0.5 to 1).
_POWER, _OFFSET = 0.55, 100.0


@dataclass(frozen=True)
class Sampler:
    """How chains sample.

    Args:
        chains: Chains of each target and weight.
        steps: Steps of every chain, burn-in included.
        burn_in: Steps that are not kept.
        thin: Number of steps per state that is kept.
        step: Step size, in units of the reference measure's variance (``gaussian``) or of pixels squared (``pixels``);
            by default 0.02 or 0.0004.
        schedule: ``constant``, or ``polynomial``: step · (1 + t / 100)^-0.55.
        method: ``ula``, or ``mala`` with a Metropolis test and a step size that adapts during the burn-in.
        coordinates: Coordinates of the chains, with the reference measure.
    """

    chains: Annotated[int, Ge(2)] = 6
    steps: Count = 200
    burn_in: Natural = 100
    thin: Count = 20
    step: Positive | None = None
    schedule: Decay = "constant"
    method: Method = "ula"
    coordinates: Coordinates = "gaussian"

    def __post_init__(self) -> None:
        if self.steps - self.burn_in < max(self.thin, 4):
            raise UsageError(
                f"steps = {self.steps} leaves nothing to keep after burn_in = {self.burn_in} and thin = {self.thin}: "
                "raise steps."
            )

    @property
    def plan(self) -> Plan:
        """What the kernel takes."""
        size = self.step if self.step is not None else (0.02 if self.coordinates == "gaussian" else 4e-4)
        power = _POWER if self.schedule == "polynomial" else 0.0
        return Plan(self.steps, self.burn_in, self.thin, Schedule(size, power, _OFFSET), self.method)


@dataclass(frozen=True)
class DiscriminatorTraining:
    """How the discriminator is trained.

    Args:
        rounds: Rounds of training; chains move and it learns in turns.
        moves: Steps of the chains in a round.
        updates: Steps of the discriminator in a round.
        width: Maps of its first convolution.
    """

    rounds: Count = 60
    moves: Count = 2
    updates: Count = 10
    width: Count = 16

    @property
    def schedule(self) -> Rounds:
        """What the training takes."""
        return Rounds(self.rounds, self.moves, self.updates, self.width)


@dataclass(frozen=True)
class Ascent:
    """Plain activation maximisation, a baseline.

    Args:
        steps: Steps of gradient ascent.
        rate: Step size in pixels.
    """

    steps: Count = 60
    rate: Positive = 0.02


@dataclass(frozen=True)
class Averaging:
    """The case study of averaged weights.

    Args:
        steps: Steps of SGD; 0 leaves the case study out.
        rate: Learning rate.
    """

    steps: Natural = 120
    rate: Positive = 0.02
