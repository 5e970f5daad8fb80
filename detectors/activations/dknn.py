"""Deep k-nearest neighbours (Papernot and McDaniel 2018): do the neighbours in every layer support the prediction?"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from ...harness.core.ranges import Count, Positive, Share
from ...harness.tracing.traces import LiveTrace, Need, Traces
from ..base.classes import class_groups
from ..base.detector import Detector, DetectorInfo
from ..base.parameters import (
    check_fitted,
    check_images,
    check_layers,
    selection,
)
from ..base.splits import split_rows
from .nearest import References, nearest, unit_length

_BATCH = 256
# A neighbour fades out over this share of the distance to the last one.
_SOFTNESS = 0.1


class DeepNeighbours(Detector):
    """One minus the credibility of the prediction, plus the share of disagreeing neighbours.

    In every layer the k nearest reference images (of those that the model classifies correctly, by cosine after the
    reference's mean is taken away) are found; the nonconformity of a class is the number of neighbours, over all
    layers, of another class. The credibility of the prediction is the share of held-out clean images, with their true
    class, at least as nonconforming. Beyond the most nonconforming held-out image it is 0 for everybody; the share
    of disagreeing neighbours added to it orders those images and never contradicts it. Range: [0, 2]. Credibility is
    asked of the model's own prediction; the paper lets the neighbours predict.

    The surrogate counts neighbours softly: a reference image weighs sigmoid((r_k − r) / (0.1 r_k)).

    Cost: O(layers * reference * d) per image.

    Args:
        layers: taps to read: ``all``, ``last:N``, ``first:N``, or names.
        neighbours: k per layer; 75 in the paper, for tens of thousands of reference images.
        reference: how many fit images are kept at most.
        held_out: the share of the correctly classified fit images that calibrates instead.
        temperature: softens (above 1) or sharpens the surrogate's neighbours.

    Raises:
        UsageError: for a parameter out of range.
    """

    info = DetectorInfo(
        title="Deep k-nearest neighbours",
        paper="Papernot and McDaniel 2018, Deep k-Nearest Neighbors: Towards Confident, Interpretable and Robust Deep "
        "Learning, arXiv 1803.04765",
        needs=(Need("pooled"),),
        surrogate="relaxed",
        summary="How little the labels of an image's neighbours in every layer support its prediction.",
    )

    def __init__(
        self,
        layers: str | list[str] = "all",
        neighbours: Count = 20,
        reference: Count = 3000,
        held_out: Share = 0.25,
        temperature: Positive = 1.0,
    ) -> None:
        self.layers = check_layers(layers)
        self.neighbours, self.reference, self.held_out = neighbours, reference, held_out
        self.temperature = temperature
        self.fitted: list[dict[str, Any]] = []
        self._references = References()
        self.labels = torch.empty(0, dtype=torch.int64)
        self.calibration = torch.empty(0, dtype=torch.float64)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Pooled maps at ``layers``."""
        return (Need("pooled", selection(self.layers)),)

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        """Keep the reference and calibrate; ``perturbed`` is ignored.

        Raises:
            UsageError: for fewer than two clean images.
        """
        check_images("dknn", clean)
        groups = class_groups(clean)
        inside = (groups >= 0).nonzero().squeeze(1)
        count = min(self.reference, max(1, round((1 - self.held_out) * len(inside))))
        rows, fresh = split_rows(inside, count, clean.generator, clean.sources)
        # Without this cap a small reference would leave thousands of images to calibrate on.
        fresh = fresh[: max(1, round(self.held_out * len(inside)))]
        self.labels = groups[rows]
        self.fitted, counts = [], torch.zeros(len(fresh), dtype=torch.float64)
        for tap in clean.tap_names():
            values = clean.pooled(tap)
            kept = values[rows].double()
            fitted = {"centre": kept.mean(0), "reference": unit_length(kept - kept.mean(0)).float().contiguous()}
            self.fitted.append(fitted)
            parts = zip(values[fresh].split(_BATCH), groups[fresh].split(_BATCH), strict=True)
            counts += torch.cat([self._disagreeing(fitted, x, y) for x, y in parts])
        self.calibration = counts.sort().values
        return self

    def score(self, traces: Traces) -> Tensor:
        """Return float64 (n,) in [0, 2]; see the class."""
        check_fitted("dknn", self.fitted)
        parts = [traces.logits.new_empty(0, dtype=torch.float64)]
        for part in traces.batches(_BATCH):
            parts.append(self._suspicion(self._counts(part)))
        return torch.cat(parts)

    def credibility(self, traces: Traces) -> Tensor:
        """Return the credibility of each prediction, float64 (n,) in [0, 1]."""
        check_fitted("dknn", self.fitted)
        return self._credibility(self._counts(traces))

    def surrogate(self, live: LiveTrace) -> Tensor:
        """Return the score from softly counted neighbours, interpolated between whole counts, (n,)."""
        check_fitted("dknn", self.fitted)
        predictions = live.logits.detach().argmax(1)
        layers = zip(live.tap_names(), self.fitted, strict=True)
        counts = torch.stack([self._soft(f, live.pooled(tap), predictions, live.temperature) for tap, f in layers])
        total = counts.sum(0)
        low = total.detach().floor()
        below, above = self._suspicion(low), self._suspicion(low + 1)
        return below + (total - low) * (above - below)

    def _counts(self, traces: Traces) -> Tensor:
        layers = zip(traces.tap_names(), self.fitted, strict=True)
        return torch.stack([self._disagreeing(f, traces.pooled(tap), traces.predictions) for tap, f in layers]).sum(0)

    def _suspicion(self, counts: Tensor) -> Tensor:
        share = counts / (len(self.fitted) * min(self.neighbours, len(self.labels)))
        return 1 - self._credibility(counts) + share

    def _credibility(self, counts: Tensor) -> Tensor:
        calibration = self.calibration.to(counts.device)
        fewer = torch.searchsorted(calibration, counts.contiguous())
        return 1 - fewer.double() / len(calibration)

    def _disagreeing(self, fitted: dict[str, Any], features: Tensor, classes: Tensor) -> Tensor:
        """Return how many of the nearest reference images are of another class, float64 (n,)."""
        queries = unit_length(features.double() - fitted["centre"])
        _, found = nearest(queries, self._references.of(fitted["reference"], queries.device), self.neighbours)
        return (self.labels[found] != classes.unsqueeze(1)).sum(1).double()

    def _soft(self, fitted: dict[str, Any], features: Tensor, classes: Tensor, temperature: float) -> Tensor:
        device = features.device
        queries = unit_length(features.double() - fitted["centre"].to(device))
        prepared = self._references.of(fitted["reference"], device)
        last, reference = nearest(queries.detach(), prepared, self.neighbours)[0][:, -1:], prepared.rows(slice(None))
        # All rows have length 1 (a zero row: 0), which makes distances a product.
        squares = queries.square().sum(1, keepdim=True) + reference.square().sum(1) - 2 * queries @ reference.T
        distances = squares.clamp(min=1e-12).sqrt()
        softness = _SOFTNESS * self.temperature * temperature
        weights = torch.sigmoid((last - distances) / (softness * last.clamp(min=1e-6)))
        other = (self.labels.to(device) != classes.unsqueeze(1)).double()
        share = (weights * other).sum(1) / weights.sum(1).clamp(min=1e-300)
        return share * min(self.neighbours, len(self.labels))
