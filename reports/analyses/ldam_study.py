"""What :mod:`.ldam` computes, before it is put in words, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ...harness.trace import Need
from .ldam_discriminator import Taught, logits_of
from .ldam_energy import Activations, Scale, Target, total_variation
from .ldam_judge import Judge
from .ldam_measures import (
    Array,
    Estimate,
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
from .ldam_sampler import Chains

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
        measures: by name, mean over chains with its interval.
        chain_values: by name, (chains,).
        rhat, size: worst R-hat and effective sample size over what is watched; NaN for no chains.
        acceptance, virial, step: means over chains; NaN for no chains.
        trace: (steps, chains), the activation on the way, after the burn-in; empty for no chains.
    """

    target: Target
    setting: str
    kind: Kind
    weight: float
    images: Tensor
    measures: dict[str, Estimate] = field(default_factory=dict)
    chain_values: dict[str, Array] = field(default_factory=dict)
    rhat: float = math.nan
    size: float = math.nan
    acceptance: float = math.nan
    virial: float = math.nan
    step: float = math.nan
    trace: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    def diagnose(self, chains: Chains, rows: Tensor) -> None:
        """Take over what the kernel says of this group's chains."""
        watched = chains.watched[:, rows]
        columns = [c for c in watched.permute(2, 0, 1).numpy() if math.isfinite(float(c.sum()))]
        found = [(split_rhat(c), effective_size(c)) for c in (*columns, chains.potentials[:, rows].numpy())]
        self.rhat = max((r for r, _ in found if math.isfinite(r)), default=math.nan)
        self.size = min((s for _, s in found if math.isfinite(s)), default=math.nan)
        self.acceptance, self.virial, self.step = (
            float(v[rows].mean()) for v in (chains.acceptance, chains.virial, chains.step)
        )
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
            found_mean = over_chains(group.chain_values[name])
            group.measures[name] = found_mean.within(0, 1) if name in _SHARES else found_mean
        chain = torch.arange(chains).repeat_interleave(kept)
        apart = (cosine_distances(self.features(flat)), pixel_distances(flat))
        for name, distances, unit in zip(("diversity_features", "diversity_pixels"), apart, yardstick, strict=True):
            one = diversity(distances, chain)
            group.measures[name] = Estimate(one.mean / unit, one.low / unit, one.high / unit)

    def yardstick(self, images: Tensor) -> tuple[float, float]:
        """Mean distances of real images (n, channels, height, width), in features and in pixels."""
        chain = torch.arange(len(images))
        found = (cosine_distances(self.features(images)), pixel_distances(images))
        features, pixels = (diversity(d, chain).mean for d in found)
        return max(features, 1e-12), max(pixels, 1e-12)


@dataclass(frozen=True, eq=False)
class Features:
    """The pooled codes of a network's last tap: what its logits are read from."""

    activations: Activations

    def __call__(self, images: Tensor) -> Tensor:
        """Images (n, ...) to (n, maps), on the CPU."""
        own = self.activations.instruments
        tap = own.taps[-1].name
        return own.codes(_Last(), images).pooled(tap)


@dataclass(frozen=True)
class _Last:
    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("pooled", "last:1"),)


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
        fitted: images that the network's activations, the reference measure and the discriminator know.
        held_out: images that the judge measures by.
        chains: per target and setting.
        averaging: the case study; ``None`` where it is turned off.
        attacks: what the discriminator and the judge make of perturbed images.
        facts: other numbers for words: temperature, pull, step, method.
    """

    targets: Sequence[Target]
    settings: list[str] = field(default_factory=list)
    groups: dict[tuple[str, str], Group] = field(default_factory=dict)
    weights: Sequence[float] = ()
    taught: Taught | None = None
    judge_accuracy: float = math.nan
    fitted: int = 0
    held_out: int = 0
    chains: int = 0
    averaging: Averaging | None = None
    attacks: list[Reading] = field(default_factory=list)
    asked_attacks: int = 0
    facts: dict[str, float | str] = field(default_factory=dict)

    def add(self, group: Group) -> None:
        """Keep a group."""
        if group.setting not in self.settings:
            self.settings.append(group.setting)
        self.groups[group.target.name, group.setting] = group

    def over(self, setting: str, measure: str) -> Estimate:
        """The mean over targets."""
        found = [self.groups[t.name, setting].measures.get(measure) for t in self.targets]
        mean = over_targets([f for f in found if f is not None])
        return mean.within(0, 1) if measure in _SHARES else mean

    def worst_rhat(self, setting: str) -> float:
        """The largest R-hat of a setting over targets."""
        return max((self.groups[t.name, setting].rhat for t in self.targets), default=math.nan)

    def of(self, kind: Kind) -> list[str]:
        """Settings of a kind."""
        first = self.targets[0].name
        return [s for s in self.settings if self.groups[first, s].kind == kind]


@dataclass(eq=False)
class Averaging:
    """Last SGD weights against their average.

    Attributes:
        steps: of SGD.
        rate: learning rate.
        accuracy: by network (``last``, ``average``, ``before``): held-out accuracy.
        groups: by (network, target name, weight).
        differences: by (weight, measure): average minus last, paired by chain.
    """

    steps: int
    rate: float
    accuracy: dict[str, Estimate]
    accuracy_difference: Estimate
    groups: dict[tuple[str, str, float], Group] = field(default_factory=dict)
    differences: dict[tuple[float, str], Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """How well a score tells a perturbation's successes from other images.

    Attributes:
        label: the perturbation's.
        score: the discriminator's or the judge's.
        against: clean images, or noise of the same size.
        area: AUROC with its interval; above 0.5 where the successes look less real.
        successes, others: how many images.
    """

    label: str
    score: str
    against: str
    area: Estimate
    successes: int
    others: int
