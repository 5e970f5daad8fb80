"""What :mod:`~aftershock.analyses.ldam` computes, before it is put in words, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...harness.tracing.traces import Need
from .discriminator import Taught, logits_of
from .energy import Activations, Scale, Target, total_variation
from .judge import Judge
from .measures import (
    Array,
    Estimate,
    between_chains,
    cosine_distances,
    diversity,
    effective_size,
    high_frequency,
    over_chains,
    over_targets,
    percentiles,
    pixel_distances,
    split_rhat,
)
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


@dataclass(eq=False)
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

    def diagnose(self, chains: Chains, rows: Tensor, unbounded: bool) -> None:
        """Take over what the kernel says of this group's chains; ``unbounded``: their coordinates."""
        watched = chains.watched[:, rows]
        # A discriminator that is not there is no number all the way.
        columns = [c for c in watched.permute(2, 0, 1) if not bool(c.isnan().all())]
        series = [c.numpy() for c in (*columns, chains.potentials[:, rows])]
        found = [(split_rhat(c), effective_size(c)) for c in series]
        self.rhat = max((r for r, _ in found if not math.isnan(r)), default=math.nan)
        self.size = min((s for _, s in found if not math.isnan(s)), default=math.nan)
        self.acceptance, self.step = (float(v[rows].mean()) for v in (chains.acceptance, chains.step))
        self.virial = float(chains.virial[rows].mean()) if unbounded else math.nan
        self.trace = watched[:, :, 0]


@dataclass(frozen=True, eq=False)
class Meter:
    """Measures groups of images.

    Attributes:
        activations: of all targets in the network under study.
        scale: of each over data.
        data: activations of data, float64 (m, targets).
        features: the network's pooled codes before its logits, images to (n, d).
        discriminator: frozen.
        judge: independent.
        device: where the network lies.
    """

    activations: Activations
    scale: Scale
    data: Tensor
    features: Features
    discriminator: Taught | None
    judge: Judge
    device: torch.device

    def measure(self, group: Group, yardstick: tuple[float, float] = (1.0, 1.0)) -> None:
        """Fill in a group's measures; ``yardstick``: feature and pixel distances that count as 1."""
        chains, kept = group.images.shape[:2]
        flat = group.images.flatten(0, 1)
        column = self.activations.targets.index(group.target)
        raw = self.activations.of(flat, self.device)
        distance = self.judge.distances(flat)
        values = {
            "activation_sd": self.scale(raw)[:, column],
            "activation_percentile": percentiles(raw[:, column], self.data[:, column]),
            "realism": self.judge.realism(distance),
            "distance_ratio": self.judge.ratio(distance),
            "total_variation": total_variation(flat).double(),
            "high_frequency": high_frequency(flat),
        }
        if self.discriminator is not None:
            values["discriminator"] = logits_of(self.discriminator.network, flat, self.device)
        if group.target.kind == "logit":
            values["transfer"] = (self.judge.reads(flat) == group.target.index).double()
        for name, found in values.items():
            group.chain_values[name] = found.reshape(chains, kept).mean(1).numpy()
            group.measures[name] = over_chains(group.chain_values[name])
        chain = torch.arange(chains).repeat_interleave(kept)
        apart = (cosine_distances(self.features(flat)), pixel_distances(flat))
        for name, distances, unit in zip(("diversity_features", "diversity_pixels"), apart, yardstick, strict=True):
            group.pair_values[name] = between_chains(distances, chain) / unit
            group.measures[name] = diversity(group.pair_values[name])
        if group.setting == TOP:
            # The most extreme of many images are no sample of anything.
            group.measures = {n: Estimate(e.mean, math.nan, math.nan) for n, e in group.measures.items()}

    def yardstick(self, images: Tensor) -> tuple[float, float]:
        """Mean distances of real images (n, channels, height, width), in features and in pixels."""
        chain = torch.arange(len(images))
        found = (cosine_distances(self.features(images)), pixel_distances(images))
        features, pixels = (diversity(between_chains(d, chain)).mean for d in found)
        return max(features, 1e-12), max(pixels, 1e-12)


@dataclass(frozen=True, eq=False)
class Features:
    """The pooled codes of a network's last tap: what its logits are read from."""

    activations: Activations

    def __call__(self, images: Tensor) -> Tensor:
        """Images (n, ...) to (n, maps), on the CPU."""
        own = self.activations.instruments
        tap = own.taps[-1].name
        return own.codes((Need("pooled", "last:1"),), images).pooled(tap)


@dataclass(eq=False)
class Study:
    """Everything that was found.

    Attributes:
        targets: in order.
        settings: names in the order of rows.
        groups: by (target name, setting).
        weights: of the discriminator.
        taught: the discriminator; ``None`` where no weight is above 0.
        judge_accuracy: of the independent classifier on held-out images.
        chains: per target and setting.
        averaging: the case study; ``None`` where it is turned off.
        attacks: what the discriminator and the judge make of perturbed images.
        asked_attacks: perturbations there were; ``None`` where nobody was to ask.
        facts: other numbers for words: temperature, pull, step, method.
    """

    targets: Sequence[Target]
    settings: list[str] = field(default_factory=list)
    groups: dict[tuple[str, str], Group] = field(default_factory=dict)
    weights: Sequence[float] = ()
    taught: Taught | None = None
    judge_accuracy: float = math.nan
    chains: int = 0
    averaging: Averaging | None = None
    attacks: list[Reading] = field(default_factory=list)
    asked_attacks: int | None = None
    facts: dict[str, float | str] = field(default_factory=dict)

    def add(self, group: Group) -> None:
        """Keep a group."""
        if group.setting not in self.settings:
            self.settings.append(group.setting)
        self.groups[group.target.name, group.setting] = group

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
        return shown(measure, over_chains(_mean([g.chain_values[measure] for g in groups])))

    def change(self, one: str, other: str, measure: str) -> Estimate:
        """``other`` minus ``one``, settings of chains, paired by the chains' starts; a mean over targets first."""
        sides = [[self.groups[t.name, s].chain_values.get(measure) for t in self.targets] for s in (one, other)]
        pairs = [new - old for old, new in zip(*sides, strict=True) if old is not None and new is not None]
        return over_chains(_mean(pairs))

    def of(self, kind: Kind) -> list[str]:
        """Settings of a kind."""
        first = self.targets[0].name
        return [s for s in self.settings if self.groups[first, s].kind == kind]


def _mean(values: Sequence[Array]) -> Array:
    return np.asarray(np.mean(values, 0)) if values else np.empty(0)


@dataclass(eq=False)
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
    accuracy: dict[str, Estimate]
    accuracy_difference: Estimate
    groups: dict[tuple[str, str, float], Group] = field(default_factory=dict)
    differences: dict[tuple[float, str], Estimate] = field(default_factory=dict)
    p_values: dict[tuple[float, str], float | None] = field(default_factory=dict)


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
