"""Kernel density given the predicted class, and Bayesian uncertainty from dropout (Feinman et al. 2017)."""

from __future__ import annotations

import math
import warnings
from typing import Annotated, Any, Literal, Self

import torch
from annotated_types import Ge
from torch import Tensor

from ...harness.core.ranges import Count, NotNegative
from ...harness.tracing.extra_passes import View
from ...harness.tracing.traces import LiveTrace, Need, Statistic, Traces
from ..base.classes import class_groups
from ..base.detector import Detector, DetectorInfo, Surrogate
from ..base.parameters import (
    check_fitted,
    check_images,
    check_layers,
    check_perturbed,
    selection,
)
from ..base.splits import exclude_training_sources, split_rows
from ..combine.columns import Combination, fit_columns, join_columns

_BATCH = 128
# Of the eligible fit images, at most this share makes the densities; scales and weights come from the rest.
_DENSITY = 0.7
# Bandwidths tried, as multiples of the median distance to the nearest image of the same class.
_BANDWIDTHS = tuple(2.0 ** (i / 2) for i in range(-6, 7))


class KernelDensity(Detector):
    """Minus the log-density of an image's features among fit images of its predicted class, with dropout's spread.

    The density is a mean of Gaussian kernels over the correctly classified fit images of the class; a class without
    fit images takes all of them. Unless it is given, the bandwidth is the one of 13 that gives the fit images the
    highest leave-one-out likelihood within their classes (the paper tunes it by hand: 0.26 for CIFAR-10).

    With ``dropout_passes`` the variance of the softmax over that many forwards with active dropout is a second
    component, as in the paper; a model without dropout gives 0 for every image, with a warning, and the density alone
    counts. ``combination = "logistic"`` is the paper's logistic regression over both, supervised.

    The surrogate is exact without dropout passes. One live pass shows no variance; with passes it holds that
    component at its clean mean.

    Cost: O(reference * d) per image; the bandwidth O(reference² * d) once.

    Args:
        layer: the tap whose pooled maps are the features; the paper's last hidden layer.
        bandwidth: of the Gaussian kernel; 0 chooses it.
        reference: how many fit images are kept, at most 70 % of them.
        dropout_passes: forwards with active dropout; 0 leaves the uncertainty out.
        combination: of the components: ``mean``, ``max``, or ``logistic`` (supervised).
        statistic: what is kept of each feature map.

    Raises:
        UsageError: for a parameter out of range.
    """

    info = DetectorInfo(
        title="Kernel density and dropout uncertainty",
        paper="Feinman et al. 2017, Detecting Adversarial Samples from Artifacts, arXiv 1703.00410",
        needs=(Need("pooled", "last:1"),),
        surrogate="exact",
        summary="Low density of the last hidden layer's features given the predicted class.",
    )

    def __init__(
        self,
        layer: str = "last:1",
        bandwidth: NotNegative = 0.0,
        reference: Count = 3000,
        dropout_passes: Literal[0] | Annotated[int, Ge(2)] = 0,
        combination: Combination = "mean",
        statistic: Statistic = "mean",
    ) -> None:
        self.layer = check_layers(layer)
        self.bandwidth, self.reference, self.dropout_passes = bandwidth, reference, dropout_passes
        self.combination: Combination = combination
        self.statistic: Statistic = statistic
        self.images = torch.empty(0, 0)
        self.classes = torch.empty(0, dtype=torch.int64)
        self.width = 0.0
        self.joined: dict[str, Any] = {}

    @property
    def needs(self) -> tuple[Need, ...]:
        """Pooled maps at ``layer``."""
        return (Need("pooled", selection(self.layer), self.statistic),)

    @property
    def supervised(self) -> bool:
        """Whether perturbed images decide how the components are combined."""
        return self.combination == "logistic"

    @property
    def surrogate_kind(self) -> Surrogate:
        """Relaxed where dropout passes count."""
        return "relaxed" if self.dropout_passes else "exact"

    @property
    def views(self) -> tuple[View, ...]:
        """One forward with active dropout per pass."""
        return tuple(View(f"dropout-{i}", dropout=True) for i in range(self.dropout_passes))

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        """Keep the reference, choose the bandwidth, learn the combination.

        Raises:
            UsageError: for fewer than two clean images, or without perturbed ones where they are needed.

        Warns:
            RuntimeWarning: where dropout passes are asked for and the model has no dropout.
        """
        check_images("kde", clean)
        if self.supervised:
            perturbed = check_perturbed("kde with combination = 'logistic'", perturbed)
        groups = class_groups(clean)
        inside = (groups >= 0).nonzero().squeeze(1)
        rows, fresh = split_rows(
            inside, min(self.reference, round(_DENSITY * len(inside))), clean.generator, clean.sources
        )
        values = self._features(clean)
        self.images, self.classes = values[rows].float().contiguous(), groups[rows]
        self.width = self.bandwidth or _best_bandwidth(self.images, self.classes)
        own = self._components(clean.pick(fresh))
        if self.dropout_passes and float(own[:, 1].max()) <= 0:
            warnings.warn(
                "kde: dropout passes change nothing, the model has no active dropout; the density alone counts",
                RuntimeWarning, stacklevel=2,
            )  # fmt: skip
        other = None
        if self.supervised and perturbed is not None:
            other = self._components(exclude_training_sources(perturbed, clean.pick(rows)))
        self.joined = fit_columns(self.combination, own, other)
        return self

    def score(self, traces: Traces) -> Tensor:
        """Return float64 (n,): standard deviations of clean images, or the log-odds of the logistic regression."""
        check_fitted("kde", len(self.images))
        return join_columns(self.joined, self._components(traces))

    def surrogate(self, live: LiveTrace) -> Tensor:
        """See the class; (n,)."""
        check_fitted("kde", len(self.images))
        columns = [self._suspicion(self._features(live), live.logits.detach().argmax(1))]
        if self.dropout_passes:
            columns.append(torch.full_like(columns[0], float(self.joined["centre"][1])))
        return join_columns(self.joined, torch.stack(columns, 1))

    def _components(self, traces: Traces) -> Tensor:
        parts = [traces.logits.new_empty(0, 2 if self.dropout_passes else 1, dtype=torch.float64)]
        for part in traces.batches(_BATCH):
            columns = [self._suspicion(self._features(part), part.predictions)]
            if self.dropout_passes:
                passes = [part.view(view.name).logits.double().softmax(1) for view in self.views]
                columns.append(torch.stack(passes).var(0, correction=0).sum(1))
            parts.append(torch.stack(columns, 1))
        return torch.cat(parts)

    def _features(self, traces: Traces | LiveTrace) -> Tensor:
        return torch.cat([traces.pooled(tap, self.statistic) for tap in traces.tap_names()], 1)

    def _suspicion(self, features: Tensor, predictions: Tensor) -> Tensor:
        """Return minus the log-density given the class, up to the kernel's constant, float64 (n,)."""
        device = features.device
        images, classes = self.images.to(device).double(), self.classes.to(device)
        exponents = -_square_distances(features.double(), images) / (2 * self.width**2)
        same = classes == predictions.unsqueeze(1)
        same = same | ~same.any(1, keepdim=True)
        return same.sum(1).double().log() - exponents.masked_fill(~same, -torch.inf).logsumexp(1)


def _square_distances(a: Tensor, b: Tensor) -> Tensor:
    """(n, m), float64; from differences, so that no digits cancel and batches do not matter."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


def _best_bandwidth(images: Tensor, classes: Tensor) -> float:
    """Maximises the leave-one-out log-likelihood within classes; the classes with one image have no say."""
    squares = []
    for c in classes.unique():
        own = images[classes == c].double()
        if len(own) > 1:
            found = _square_distances(own, own)
            found.fill_diagonal_(torch.inf)
            squares.append(found)
    if not squares:
        return 1.0
    closest = float(torch.cat([s.amin(1) for s in squares]).sqrt().median())
    if closest <= 0:
        return 1.0
    best, most = closest, -math.inf
    for factor in _BANDWIDTHS:
        width = factor * closest
        terms = [(-s / (2 * width**2)).logsumexp(1) - math.log(len(s) - 1) for s in squares]
        likelihood = float(torch.cat(terms).mean()) - images.shape[1] * math.log(width)
        if likelihood > most:
            best, most = width, likelihood
    return best
