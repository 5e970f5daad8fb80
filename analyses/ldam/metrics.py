"""Measures groups of images: how active, how real, how diverse."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...harness.statistics.intervals import Estimate, student
from ...harness.tracing.traces import Need
from .discriminator import logits_of
from .energy import Activations, Scale, total_variation
from .judge import Judge
from .measured import TOP, Group
from .measures import (
    between_chains,
    cosine_distances,
    diversity,
    high_frequency,
    percentiles,
    pixel_distances,
)


@dataclass(frozen=True, eq=False)
class Metrics:
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
    discriminator: nn.Module | None
    judge: Judge
    device: torch.device

    def measure(self, group: Group, reference: tuple[float, float] = (1.0, 1.0)) -> None:
        """Fill in a group's measures; ``reference``: feature and pixel distances that count as 1."""
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
            values["discriminator"] = logits_of(self.discriminator, flat, self.device)
        if group.target.kind == "logit":
            values["transfer"] = (self.judge.reads(flat) == group.target.index).double()
        for name, found in values.items():
            group.chain_values[name] = found.reshape(chains, kept).mean(1).numpy()
            group.measures[name] = student(group.chain_values[name])
        chain = torch.arange(chains).repeat_interleave(kept)
        apart = (cosine_distances(self.features(flat)), pixel_distances(flat))
        for name, distances, unit in zip(("diversity_features", "diversity_pixels"), apart, reference, strict=True):
            group.pair_values[name] = between_chains(distances, chain) / unit
            group.measures[name] = diversity(group.pair_values[name])
        if group.setting == TOP:
            # The most extreme of many images are no sample of anything.
            group.measures.update({n: Estimate(e.value) for n, e in group.measures.items()})

    def reference_distances(self, images: Tensor) -> tuple[float, float]:
        """Mean distances of real images (n, channels, height, width), in features and in pixels."""
        chain = torch.arange(len(images))
        found = (cosine_distances(self.features(images)), pixel_distances(images))
        features, pixels = (diversity(between_chains(d, chain)).value for d in found)
        return max(features, 1e-12), max(pixels, 1e-12)


@dataclass(frozen=True, eq=False)
class Features:
    """The pooled codes of a network's last tap: what its logits are read from."""

    activations: Activations

    def __call__(self, images: Tensor) -> Tensor:
        """Images (n, ...) to (n, maps), on the CPU."""
        own = self.activations.traced_model
        tap = own.taps[-1].name
        return own.codes((Need("pooled", "last:1"),), images).pooled(tap)
