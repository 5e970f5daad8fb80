"""Neuron activation patterns: the distance to known patterns of the predicted class (Olber et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch import Tensor

from ...harness.core.ranges import Natural, Positive, Share
from ...harness.tracing.bits import hamming, pack
from ...harness.tracing.traces import LiveTrace, Need, Statistic, Traces
from ..base.classes import class_groups, present_classes
from ..base.detector import Detector, DetectorInfo
from ..base.parameters import (
    check_fitted,
    check_images,
    check_layers,
    selection,
)
from .patterns import StoredPatterns

Combine = Literal["sum", "vote"]
_BATCH = 1024


class ActivationPatterns(Detector):
    """Smallest Hamming distances of thresholded pooled activations to patterns of the predicted class, over layers.

    In each layer the pooled maps of an image are on where they exceed the image's own ``quantile`` of that layer. The
    unique patterns of the correctly classified fit images are kept by class. An image's distance is the smallest share
    of differing maps to the patterns of its predicted class (of all classes where that one has none).

    The paper chooses pooling, quantile and a distance threshold for each layer with unknown inputs at hand, and caps
    the threshold at the 95% quantile of known distances. Here nothing unknown is seen: pooling and quantile are
    parameters, the same for all layers, and thresholds and scales come from the distances of fit images to the *other*
    fit images of their class.

    - ``sum``: mean over layers of the distances, each in standard deviations of known distances from their mean.
    - ``vote``: number of layers whose distance exceeds their threshold, plus a part in (0, 1) that grows with ``sum``
      and orders images with equally many votes.

    Cost, with m maps and k patterns of a class: a fit O(images k m), an image O(k m), both in matrix products of bits.

    Args:
        layers: taps to read: ``all``, ``last:N``, ``first:N``, or names.
        statistic: how a feature map is pooled: ``mean`` or ``max``.
        quantile: the share of a layer's maps that are off, in (0, 1).
        combine: see above.
        level: share of known distances below a layer's threshold for ``vote``, in (0, 1).
        patterns: patterns that are kept of each class and layer, a seeded draw; 0 keeps all.
        temperature: the surrogate puts sigmoid(excess over the quantile / (temperature × the layer's spread)) in the
            place of a bit.

    Raises:
        UsageError: for a parameter out of range.
    """

    info = DetectorInfo(
        title="Neuron activation patterns (NAP)",
        paper="Olber et al. 2023, Detection of Out-of-Distribution Samples Using Binary Neuron Activation Patterns, "
        "CVPR, arXiv 2212.14268",
        needs=(Need("pooled", "last:9"),),
        surrogate="straight-through",
        summary="Hamming distances of binarised pooled activations to known patterns of the predicted class.",
    )

    def __init__(
        self,
        layers: str | list[str] = "last:9",
        statistic: Literal["mean", "max"] = "mean",
        quantile: Share = 0.5,
        combine: Combine = "sum",
        level: Share = 0.95,
        patterns: Natural = 0,
        temperature: Positive = 0.1,
    ) -> None:
        self.layers = check_layers(layers)
        self.statistic: Statistic = statistic
        self.quantile = quantile
        self.combine = combine
        self.level = level
        self.patterns = patterns
        self.temperature = temperature
        self.fitted: dict[str, Any] = {}

    @property
    def needs(self) -> tuple[Need, ...]:
        """Pooled maps at ``layers``."""
        return (Need("pooled", selection(self.layers), statistic=self.statistic),)

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        """Collect patterns, scales and thresholds; ``perturbed`` is ignored.

        Raises:
            UsageError: without images.
        """
        check_images("nap", clean, 1)
        groups = class_groups(clean)
        self.fitted = {}
        for index, tap in enumerate(clean.tap_names()):
            rows, units, spread = self._binarised(clean, tap)
            distances = _known_distances(rows, groups, units)
            layer: dict[str, Any] = {"units": units, "spread": spread, **_scale(distances, self.level)}
            layer |= _unique_patterns(rows, groups, self.patterns, clean.generator)
            self.fitted[str(index)] = layer
        return self

    def score(self, traces: Traces) -> Tensor:
        """Return float64 (n,); see the class."""
        check_fitted("nap", self.fitted)
        parts: list[Tensor] = [traces.logits.new_empty(0, dtype=torch.float64)]
        for part in traces.batches(_BATCH):
            distances = []
            for index, tap in enumerate(part.tap_names()):
                packed = pack(_excess(part.pooled(tap), self.quantile) > 0)
                distances.append(self._stored(index).distance([packed], part.predictions).double())
            parts.append(self._combined(distances, _vote))
        return torch.cat(parts)

    def surrogate(self, live: LiveTrace) -> Tensor:
        """Return the score, with the gradient of sigmoids in the place of bits and votes.

        Of a few maps, one lies at the quantile itself and several close to it: softened bits rank images otherwise
        than hard ones do (a rank correlation of 0.4 on layers of 8 to 48 maps). So only the gradient is softened.
        """
        check_fitted("nap", self.fitted)
        classes = live.logits.argmax(1)
        soft, hard = [], []
        for index, tap in enumerate(live.tap_names()):
            excess = _excess(live.pooled(tap, self.statistic), self.quantile)
            width = self.temperature * live.temperature * self.fitted[str(index)]["spread"]
            both = torch.cat([torch.sigmoid(excess / width), (excess.detach() > 0).to(excess.dtype)])
            relaxed, exact = self._stored(index).relaxed_distance(both, classes.repeat(2)).split(len(classes))
            soft.append(relaxed)
            hard.append(exact)
        relaxed = self._combined(soft, lambda gap: torch.sigmoid(4 * gap / live.temperature))
        return relaxed + (self._combined(hard, _vote) - relaxed).detach()

    def _combined(self, distances: list[Tensor], vote: Callable[[Tensor], Tensor]) -> Tensor:
        """Return one number per image from the distances of each layer, (n,) each."""
        layers = [self.fitted[str(index)] for index in range(len(distances))]
        scaled = [(d - layer["mean"]) / layer["scale"] for d, layer in zip(distances, layers, strict=True)]
        total = torch.stack(scaled).mean(0)
        if self.combine == "sum":
            return total
        gaps = [(d - layer["threshold"]) / layer["scale"] for d, layer in zip(distances, layers, strict=True)]
        # An arctangent and not a sigmoid: it still tells large sums apart.
        return torch.stack([vote(gap) for gap in gaps]).sum(0) + 0.5 + torch.atan(total) / math.pi

    def _stored(self, index: int) -> StoredPatterns:
        layer = self.fitted[str(index)]
        return StoredPatterns([layer["packed"]], [layer["units"]], layer["groups"])

    def _binarised(self, clean: Traces, tap: str) -> tuple[Tensor, int, float]:
        """Return packed rows of all fit images, the number of maps, and the standard deviation of the pooled values."""
        packed, units, total, squares, count = [], 0, 0.0, 0.0, 0
        for part in clean.batches(_BATCH):
            excess = _excess(part.pooled(tap), self.quantile)
            packed.append(pack(excess > 0))
            units, count = excess.shape[1], count + excess.numel()
            total, squares = total + float(excess.double().sum()), squares + float(excess.double().square().sum())
        spread = math.sqrt(max(0.0, squares / count - (total / count) ** 2))
        return torch.cat(packed), units, spread if spread > 0 else 1.0


def _vote(gap: Tensor) -> Tensor:
    """1 where a distance is above its threshold, by more than rounding."""
    return (gap > 1e-6).to(gap.dtype)


def _excess(pooled: Tensor, quantile: float) -> Tensor:
    """By how much each map (n, maps) exceeds its image's quantile of the layer."""
    if not len(pooled):
        return pooled
    return pooled - torch.quantile(pooled, quantile, dim=1, keepdim=True)


def _known_distances(rows: Tensor, groups: Tensor, units: int) -> Tensor:
    """Of every fit image whose class has another: the smallest share of differing maps to the others, float64."""
    found = [torch.empty(0, dtype=torch.float64)]
    for value in present_classes(groups).tolist():
        members = rows[groups == value]
        if len(members) < 2:
            continue
        for start in range(0, len(members), _BATCH):
            part = members[start : start + _BATCH]
            distance = hamming(part, members, units)
            own = torch.arange(len(part))
            distance[own, start + own] = units + 1
            found.append(distance.amin(1).double() / units)
    return torch.cat(found)


def _scale(distances: Tensor, level: float) -> dict[str, float]:
    """Mean, standard deviation and ``level`` quantile of known distances; distances as they are where there are none.

    A layer whose distances do not vary keeps its unit, as in ``grouping.scale_of``.
    """
    if not len(distances):
        return {"mean": 0.0, "scale": 1.0, "threshold": 0.0}
    ordered = distances.sort().values
    threshold = float(ordered[min(len(ordered) - 1, math.ceil(level * len(ordered)) - 1)])
    deviation = float(distances.std(correction=0))
    return {"mean": float(distances.mean()), "scale": deviation if deviation > 1e-9 else 1.0, "threshold": threshold}


def _unique_patterns(rows: Tensor, groups: Tensor, limit: int, generator: torch.Generator) -> dict[str, Tensor]:
    packed, owners = [], []
    for value in present_classes(groups).tolist():
        unique = torch.unique(rows[groups == value], dim=0)
        if limit and len(unique) > limit:
            unique = unique[torch.randperm(len(unique), generator=generator)[:limit].sort().values]
        packed.append(unique)
        owners.append(torch.full((len(unique),), value))
    return {"packed": torch.cat(packed), "groups": torch.cat(owners)}
