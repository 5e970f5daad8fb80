"""Unsupervised models of the bits of one predicted class: a Bernoulli likelihood, and distances to stored patterns.

Every layer counts the same, however wide it is: sums over the units of a layer are divided by their number, then
averaged over the layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...harness.tracing.bits import hamming, hamming_each, weighted_hamming
from ...harness.tracing.traces import Traces
from ..base.classes import class_counts, one_hot, present_classes
from .blocks import BitBlocks, unpack_as

# Patterns times units up to which one product with all patterns costs less than one for each class.
_TOGETHER = 1 << 19
# Unpacked units at a time: on a CPU they stay in the cache, elsewhere large products are what is fast.
_BLOCK, _LARGE_BLOCK = 1 << 18, 1 << 26


@dataclass(frozen=True)
class BernoulliBits:
    """Independent Bernoulli units for each class, as linear functions of the bits.

    Attributes:
        log_odds: float32 (classes, units), divided by the layer's number of units and by the number of layers.
        constant: float32 (classes,): the log likelihood of all bits 0, weighted in the same way.
    """

    log_odds: Tensor
    constant: Tensor

    def surprise(self, bits: Tensor, classes: Tensor) -> Tensor:
        """Mean negative log likelihood per unit, (n,), of bits (n, units), 0/1 or relaxed, given each image's class."""
        chosen = self.log_odds.to(bits.device)[classes].to(bits.dtype)
        return -((bits * chosen).sum(1) + self.constant.to(bits)[classes])


def class_frequencies(blocks: BitBlocks, groups: Tensor, classes: int, smoothing: float) -> Tensor:
    """Return how often each unit is on in each class, float32 (classes, units), strictly between 0 and 1.

    p = (ones of the class + smoothing * q) / (images of the class + smoothing), where q = (ones + 1/2) / (images + 1)
    over all classes; so a class without images is described by q.

    Args:
        blocks: bits of the images.
        groups: each image's class, −1 for none (``grouping.class_groups``).
        classes: number of classes.
        smoothing: how many images the prior weighs.
    """
    ones = torch.zeros(classes, blocks.width)
    start = 0
    for bits in blocks:
        ones += one_hot(groups[start : start + len(bits)], classes).T @ bits
        start += len(bits)
    counts = class_counts(groups, classes).unsqueeze(1)
    overall = (ones.sum(0) + 0.5) / (counts.sum() + 1)
    return (ones + smoothing * overall) / (counts + smoothing)


def fit_bernoulli(blocks: BitBlocks, groups: Tensor, classes: int, smoothing: float) -> BernoulliBits:
    """Estimate p(bit = 1 | class) with the frequency over all classes as the prior; see :func:`class_frequencies`."""
    chance = class_frequencies(blocks, groups, classes, smoothing)
    weight = layer_weights(blocks.units)
    return BernoulliBits(torch.logit(chance) * weight, (torch.log1p(-chance) * weight).sum(1))


def layer_weights(units: Sequence[int]) -> Tensor:
    """The weight of every unit when layers of these widths count the same; float32 (sum of units,), sums to 1."""
    return torch.cat([torch.full((width,), 1 / (width * len(units))) for width in units])


def margin_weights(blocks: BitBlocks, groups: Tensor, classes: int, smoothing: float) -> Tensor:
    """Return how far from its threshold each unit typically lies in each class, uint8 (classes, units), from 1 to 255.

    Bits flip where |z| is tiny. For z ~ N(m, s²) the unit is on with p = Φ(m / s), so its typical margin in standard
    deviations is |m / s| = |Φ⁻¹(p)|, which the class's on-frequency alone tells. A layer's largest margin becomes 255;
    whole numbers make the weighted distances exact. Arguments as of :func:`class_frequencies`.
    """
    chance = class_frequencies(blocks, groups, classes, smoothing).double()
    parts = []
    for margin in torch.split(torch.special.ndtri(chance).abs(), list(blocks.units), 1):
        largest = margin.amax(1, keepdim=True)
        share = torch.where(largest > 0, margin / largest.clamp(min=1e-12), 1.0)
        parts.append((255 * share).round_().clamp_(min=1).to(torch.uint8))
    return torch.cat(parts, 1)


@dataclass(frozen=True)
class StoredPatterns:
    """Packed bits of fit images of each class.

    Attributes:
        packed: for each tap uint8 (patterns, bytes).
        units: for each tap the number of units.
        groups: int64 (patterns,), the class of each pattern.
        weights: uint8 (classes, units of all taps) or ``None``: how much a differing unit counts in a layer, given the
            image's class (:func:`margin_weights`).
    """

    packed: list[Tensor]
    units: list[int]
    groups: Tensor
    weights: Tensor | None = None

    def distance(self, bits: Sequence[Tensor], classes: Tensor) -> Tensor:
        """Smallest layer-balanced share of differing units, float32 (n,), over the patterns of an image's class.

        Args:
            bits: for each tap packed rows, uint8 (n, bytes).
            classes: int64 (n,); a class without patterns is compared with all of them.
        """
        if self._few:
            everything = torch.zeros(len(classes), len(self.groups), device=classes.device)
            for rows, stored, units in zip(bits, self.packed, self.units, strict=True):
                everything += hamming(rows, stored, units) / (units * len(self.units))
            return everything.masked_fill_(self._foreign(classes), torch.inf).amin(1)
        nearest = torch.empty(len(classes), device=classes.device)
        for value in present_classes(classes).tolist():
            images, patterns = (classes == value).nonzero().squeeze(1), self._of(value)
            total = torch.zeros(len(images), len(patterns), device=classes.device)
            rows, stored = [part[images] for part in bits], [part[patterns] for part in self.packed]
            if self.weights is None:
                for apart, units in zip(hamming_each(rows, stored, self.units), self.units, strict=True):
                    total += apart / (units * len(self.units))
            else:
                for own, others, weights in zip(rows, stored, self.weights[value].split(self.units), strict=True):
                    total += weighted_hamming(own, others, weights) / (weights.sum() * len(self.units))
            nearest[images] = total.amin(1)
        return nearest

    def relaxed_distance(self, bits: Tensor, classes: Tensor) -> Tensor:
        """As :meth:`distance`, for relaxed bits (n, units of all taps), differentiable: |bit − pattern| is summed.

        The nearest pattern is looked up first; the gradient is that of the distance to it, as that of a minimum.
        """
        with torch.no_grad():
            nearest = self._nearest(bits, classes)
        if self.weights is None:
            weights = layer_weights(self.units).to(bits)
        else:
            weights = torch.stack([self._unit_weights(value) for value in classes.tolist()]).to(bits)
        found: Tensor = _Apart.apply(bits, self._unpacked(nearest, bits), weights)
        return found

    def _nearest(self, bits: Tensor, classes: Tensor) -> Tensor:
        """Return the pattern of an image's class that is nearest to its relaxed bits, int64 (n,)."""
        if self._few:
            weight = layer_weights(self.units).to(bits)
            stored = self._unpacked(slice(None), bits)
            total = (bits * weight) @ (1 - 2 * stored).T + stored @ weight
            return total.masked_fill_(self._foreign(classes), torch.inf).min(1).indices
        nearest = torch.empty_like(classes)
        for value in present_classes(classes).tolist():
            images, patterns = (classes == value).nonzero().squeeze(1), self._of(value).to(classes.device)
            nearest[images] = patterns[self._totals(bits[images], patterns, self._unit_weights(value)).min(1).indices]
        return nearest

    def _totals(self, bits: Tensor, patterns: Tensor, weight: Tensor) -> Tensor:
        """Return sums of weighted differences, less what is the same for every pattern, (n, patterns).

        Of bits b, a pattern s and weights w, w |b - s| is w b, which is left out, plus w s - 2 w b s.
        """
        weight = weight.to(bits)
        # The last row collects w s, so that a block of patterns is read once.
        left = torch.cat([-2 * (bits * weight), weight.unsqueeze(0)])
        total, room = left.new_zeros(len(left), len(patterns)), _BLOCK if bits.device.type == "cpu" else _LARGE_BLOCK
        for tap, columns in zip(self.packed, left.split(self.units, 1), strict=True):
            units, stored = columns.shape[1], tap.to(bits.device)
            size = max(1, room // units)
            for start in range(0, len(patterns), size):
                block = unpack_as(stored[patterns[start : start + size]], units, bits)
                total[:, start : start + size] += columns @ block.T
        return total[:-1] + total[-1]

    @property
    def _few(self) -> bool:
        """Whether all pairs are compared at once, whatever their classes: that is less work than class by class."""
        return self.weights is None and len(self.groups) * sum(self.units) <= _TOGETHER

    def _foreign(self, classes: Tensor) -> Tensor:
        """Return which patterns an image is not compared with, bool (n, patterns): those of other classes, if any."""
        others = self.groups.to(classes.device) != classes.unsqueeze(1)
        return others & ~others.all(1, keepdim=True)

    def _unit_weights(self, value: int) -> Tensor:
        """Of images of this class, float32 (units of all taps,); sums to 1."""
        if self.weights is None:
            return layer_weights(self.units)
        parts = self.weights[value].float().split(self.units)
        return torch.cat([part / (part.sum() * len(parts)) for part in parts])

    def _of(self, value: int) -> Tensor:
        chosen = (self.groups == value).nonzero().squeeze(1)
        return chosen if len(chosen) else torch.arange(len(self.groups), device=self.groups.device)

    def _unpacked(self, patterns: Tensor | slice, like: Tensor) -> Tensor:
        taps = zip(self.packed, self.units, strict=True)
        return torch.cat([unpack_as(packed.to(like.device)[patterns], units, like) for packed, units in taps], 1)


class _Apart(torch.autograd.Function):
    """Weighted sums of |bit - pattern|, (n,), of bits (n, units): what the operations give, without their copies."""

    @staticmethod
    def forward(ctx: Any, bits: Tensor, patterns: Tensor, weights: Tensor) -> Tensor:
        apart = bits - patterns
        ctx.save_for_backward(apart, weights)
        return apart.abs().mul_(weights).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        apart, weights = ctx.saved_tensors
        return apart.sign().mul_(weights).mul_(gradient.unsqueeze(1)), None, None


def store_patterns(clean: Traces, taps: Sequence[str], groups: Tensor, limit: int) -> StoredPatterns:
    """Keep the bits of at most ``limit`` images of each class (0: of all), drawn with ``clean.generator``."""
    kept = torch.zeros(len(groups), dtype=torch.bool)
    for value in present_classes(groups).tolist():
        members = (groups == value).nonzero().squeeze(1)
        if limit and len(members) > limit:
            members = members[torch.randperm(len(members), generator=clean.generator)[:limit]]
        kept[members] = True
    parts: list[list[Tensor]] = [[] for _ in taps]
    start = 0
    for part in clean.batches(512):
        rows = kept[start : start + len(part)]
        start += len(part)
        for collected, tap in zip(parts, taps, strict=True):
            collected.append(part.bits(tap)[rows])
    return StoredPatterns([torch.cat(p) for p in parts], [clean.units(tap) for tap in taps], groups[kept])
