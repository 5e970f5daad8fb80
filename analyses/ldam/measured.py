"""What :mod:`~aftershock.analyses.ldam` measures: groups of images under settings, and what is known of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...harness.statistics.intervals import Estimate, student
from .energy import Target
from .measures import Array, diversity, effective_size, over_targets, split_rhat
from .sampler import Chains

Kind = Literal["langevin", "ascent", "reference", "data"]
# Names of the settings that are no chains.
PLAIN, SMOOTH, REFERENCE = "activation maximisation", "activation maximisation, TV and jitter", "reference measure"
TOP, RANDOM = "top data images", "random data images"
# By name: what it is, and what a person would call its unit.
MEASURES = {
    "activation_sd": "activation, standard deviations from the data's mean",
    "activation_percentile": "share of data images with a lower activation",
    "discriminator": "the frozen discriminator's logit",
    "diversity_features": "distance between chains in the network's features, relative to random data images",
    "diversity_pixels": "distance between chains in pixels, relative to random data images",
    "realism": "share of held-out images that lie at least as far from other data (independent judge)",
    "distance_ratio": "the judge's distance to data, relative to a median held-out image's",
    "transfer": "share that an independent classifier reads as the target's class",
    "total_variation": "mean difference of neighbouring pixels",
    "high_frequency": "share of spectral power above half the Nyquist frequency",
}

_SHARES = frozenset({"activation_percentile", "realism", "transfer", "high_frequency"})
_NEVER_BELOW_0 = frozenset({"diversity_features", "diversity_pixels", "distance_ratio", "total_variation"})


def shown(measure: str, found: Estimate) -> Estimate:
    """With ends that the measure can have; whatever is computed further needs them as they were."""
    if measure in _SHARES:
        return found.within(0, 1)
    return found.within(0, math.inf) if measure in _NEVER_BELOW_0 else found


def langevin_name(weight: float) -> str:
    """The name of a setting."""
    return f"Langevin, weight {weight:g}"


@dataclass(frozen=True, eq=False)
class Group:
    """The images of one target under one setting.

    Attributes:
        target: what they are drawn to.
        setting: its name.
        kind: where they come from.
        weight: of the discriminator; NaN where it had no say.
        images: (chains, kept, channels, height, width), on the CPU; independent images are chains of one.
        measures: by name, mean over chains with its interval, which may reach beyond what the measure can be.
        chain_values: by name, (chains,).
        pair_values: by name of a diversity, (chains, chains).
        rhat, size: worst R-hat and effective sample size over what is watched; NaN for no chains.
        acceptance, virial, step: means over chains; NaN for no chains, the virial also for bounded coordinates.
        trace: (steps, chains), the activation on the way, after the burn-in; empty for no chains.
    """

    target: Target
    setting: str
    kind: Kind
    weight: float
    images: Tensor
    measures: dict[str, Estimate] = field(default_factory=dict)
    chain_values: dict[str, Array] = field(default_factory=dict)
    pair_values: dict[str, Tensor] = field(default_factory=dict)
    rhat: float = math.nan
    size: float = math.nan
    acceptance: float = math.nan
    virial: float = math.nan
    step: float = math.nan
    trace: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    def diagnosed(self, chains: Chains, rows: Tensor, unbounded: bool) -> Group:
        """The same with what the kernel says of this group's chains; ``unbounded``: their coordinates."""
        watched = chains.watched[:, rows]
        # A discriminator that is not there is no number all the way.
        columns = [c for c in watched.permute(2, 0, 1) if not bool(c.isnan().all())]
        values = [c.numpy() for c in (*columns, chains.potentials[:, rows])]
        found = [(split_rhat(c), effective_size(c)) for c in values]
        return replace(
            self,
            rhat=max((r for r, _ in found if not math.isnan(r)), default=math.nan),
            size=min((s for _, s in found if not math.isnan(s)), default=math.nan),
            acceptance=float(chains.acceptance[rows].mean()),
            step=float(chains.step[rows].mean()),
            virial=float(chains.virial[rows].mean()) if unbounded else math.nan,
            trace=watched[:, :, 0],
        )


@dataclass(frozen=True)
class Learning:
    """How a discriminator did while it was trained.

    Attributes:
        real: mean logit of real images, by round.
        fake: mean logit of chain samples, by round.
    """

    real: Sequence[float]
    fake: Sequence[float]


@dataclass(frozen=True, eq=False)
class Averaging:
    """Last SGD weights against their average.

    Attributes:
        steps: of SGD.
        rate: learning rate.
        accuracy: by network (``last``, ``average``, ``before``): held-out accuracy.
        groups: by (network, target name, weight).
        differences: by (weight, measure): average minus last, paired by chain.
        p_values: of those differences that are tested, after Holm's correction for all of them.
    """

    steps: int
    rate: float
    accuracy: Mapping[str, Estimate]
    accuracy_difference: Estimate
    groups: Mapping[tuple[str, str, float], Group]
    differences: Mapping[tuple[float, str], Estimate]
    p_values: Mapping[tuple[float, str], float | None]


@dataclass(frozen=True)
class Reading:
    """How well a score tells a perturbation's successes from other images.

    Attributes:
        label: the perturbation's.
        score: the discriminator's or the judge's.
        against: clean images, or noise of the same size.
        area: AUROC with its interval; above 0.5 where the successes look less real. NaN where there is a reason.
        successes, others: how many images.
        reason: why there is no number.
    """

    label: str
    score: str
    against: str
    area: Estimate
    successes: int
    others: int
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Sampled:
    """Everything that was found.

    Attributes:
        targets: in order.
        settings: names in the order of rows.
        groups: by (target name, setting).
        weights: of the discriminator.
        learning: of the discriminator; ``None`` where no weight is above 0.
        judge_accuracy: of the independent classifier on held-out images.
        chains: per target and setting.
        averaging: the case study; ``None`` where it is turned off.
        attacks: what the discriminator and the judge make of perturbed images.
        asked_attacks: perturbations there were; ``None`` where none was to be asked about.
        facts: other numbers: temperature, steps, burn-in, method, coordinates.
    """

    targets: Sequence[Target]
    settings: Sequence[str] = ()
    groups: Mapping[tuple[str, str], Group] = field(default_factory=dict)
    weights: Sequence[float] = ()
    learning: Learning | None = None
    judge_accuracy: float = math.nan
    chains: int = 0
    averaging: Averaging | None = None
    attacks: Sequence[Reading] = ()
    asked_attacks: int | None = None
    facts: Mapping[str, float | str] = field(default_factory=dict)

    def over(self, setting: str, measure: str) -> Estimate:
        """The mean over targets, with ends that the measure can have.

        The chains of all targets begin in the same states (and the reference measure is the same images for all), so
        that a chain's mean over targets is one observation. Data images are others for each target.
        """
        groups = [g for t in self.targets if measure in (g := self.groups[t.name, setting]).measures]
        if any(g.kind == "data" for g in groups):
            return shown(measure, over_targets([g.measures[measure] for g in groups]))
        if any(measure in g.pair_values for g in groups):
            return shown(measure, diversity(torch.stack([g.pair_values[measure] for g in groups]).mean(0)))
        return shown(measure, student(_mean([g.chain_values[measure] for g in groups])))

    def change(self, one: str, other: str, measure: str) -> Estimate:
        """``other`` minus ``one``, settings of chains, paired by the chains' starts; a mean over targets first."""
        sides = [[self.groups[t.name, s].chain_values.get(measure) for t in self.targets] for s in (one, other)]
        pairs = [new - old for old, new in zip(*sides, strict=True) if old is not None and new is not None]
        return student(_mean(pairs))

    def of(self, kind: Kind) -> list[str]:
        """Settings of a kind."""
        first = self.targets[0].name
        return [s for s in self.settings if self.groups[first, s].kind == kind]


def _mean(values: Sequence[Array]) -> Array:
    return np.asarray(np.mean(values, 0)) if values else np.empty(0)
