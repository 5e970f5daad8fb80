"""Distance to the k-th nearest clean image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...harness.core.ranges import Count
from ...harness.tracing.traces import Need, Statistic
from ..base.detector import DetectorInfo
from ..base.splits import split_rows
from ..combine.columns import Combination
from ..combine.per_layer import Layerwise
from .nearest import References, nearest, unit_length

# Of the eligible fit images, at most this share becomes the reference; scales and weights come from the rest.
_REFERENCE = 0.8


class Neighbours(Layerwise):
    """Distance of the normalised features to their k-th nearest neighbour among correctly classified fit images.

    In several layers the distances are combined; their scales come from fit images outside the reference.

    Cost: O(reference * d) per image and layer, with d maps.

    Args:
        layers: taps to read: ``all``, ``last:N``, ``first:N``, or names.
        neighbours: k; the paper takes 50 for the whole training set of CIFAR-10. At most the reference's size counts.
        reference: how many fit images are kept, at most 80 % of them.
        statistic: what is kept of each feature map.
        normalise: scale feature vectors to length 1, as the paper does.
        combination: ``mean`` or ``max`` of the layers, or ``logistic`` (supervised).

    Raises:
        UsageError: for a parameter out of range.
    """

    name = "knn"
    info = DetectorInfo(
        title="Deep nearest neighbours",
        paper="Sun et al. 2022, Out-of-Distribution Detection with Deep Nearest Neighbors, arXiv 2204.06507",
        needs=(Need("pooled", "last:1"),),
        surrogate="exact",
        summary="Distance of the last layer's features to the k-th nearest clean image.",
    )

    def __init__(
        self,
        layers: str | list[str] = "last:1",
        neighbours: Count = 10,
        reference: Count = 5000,
        statistic: Statistic = "mean",
        normalise: bool = True,
        combination: Combination = "mean",
    ) -> None:
        super().__init__(layers, combination, "pooled", statistic, 1)
        self.neighbours, self.reference, self.normalise = neighbours, reference, normalise
        self._references = References(normalise)

    def _rows(self, groups: Tensor, generator: torch.Generator, sources: Tensor | None) -> tuple[Tensor, Tensor]:
        inside = (groups >= 0).nonzero().squeeze(1)
        return split_rows(inside, min(self.reference, round(_REFERENCE * len(inside))), generator, sources)

    def _fit_layer(self, features: Tensor, groups: Tensor, tap: str) -> dict[str, Any]:
        return {"reference": features.float().contiguous()}

    def _layer_scores(self, fitted: Mapping[str, Any], features: Tensor) -> Tensor:
        reference = self._references.of(fitted["reference"], features.device)
        features = unit_length(features) if self.normalise else features
        return nearest(features, reference, self.neighbours)[0][:, -1]
