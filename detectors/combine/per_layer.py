"""The frame of detectors that score every layer alone and combine the layers' scores."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from ...harness.core.ranges import Count
from ...harness.tracing.traces import LiveTrace, Need, Statistic, Traces
from ..base.classes import class_groups
from ..base.detector import Detector
from ..base.parameters import (
    check_fitted,
    check_images,
    check_layers,
    check_perturbed,
    selection,
)
from ..base.splits import exclude_training_sources
from .columns import Combination, fit_columns, join_columns

Features = Literal["pooled", "full"]
_BATCH = 256


class Layerwise(Detector):
    """One score per layer from its features, then one for the image.

    A subclass says how a layer is fitted and scored; ``combination`` is that of module ``score_columns``, and
    ``logistic`` makes the detector supervised.
    """

    name: ClassVar[str]

    def __init__(
        self, layers: str | list[str], combination: Combination, features: Features, statistic: Statistic, units: Count
    ) -> None:
        self.layers = check_layers(layers)
        self.combination: Combination = combination
        self.features: Features = features
        self.statistic: Statistic = statistic
        self.units = units
        self.fitted: list[dict[str, Any]] = []
        self.joined: dict[str, Any] = {}

    @property
    def needs(self) -> tuple[Need, ...]:
        """The features at ``layers``."""
        if self.features == "pooled":
            return (Need("pooled", selection(self.layers), self.statistic),)
        return (Need("full", selection(self.layers), units=self.units),)

    @property
    def supervised(self) -> bool:
        """Whether perturbed images decide how the layers are combined."""
        return self.combination == "logistic"

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        """Fit every layer, then the combination; O(layers) passes over the features.

        Raises:
            UsageError: for fewer than two clean images, or without perturbed ones where they are needed.
        """
        check_images(self.name, clean)
        if self.supervised:
            perturbed = check_perturbed(f"{self.name} with combination = 'logistic'", perturbed)
        groups = class_groups(clean)
        rows, fresh = self._rows(groups, clean.generator, clean.sources)
        if self.supervised and perturbed is not None:
            perturbed = exclude_training_sources(perturbed, clean.pick(rows))
        self.fitted, columns, other = [], [], []
        for tap in clean.tap_names():
            values = self._read(clean, tap)
            self.fitted.append(self._fit_layer(values[rows], groups[rows], tap))
            columns.append(self._scored(self.fitted[-1], values[fresh]))
            if self.supervised and perturbed is not None:
                other.append(self._scored(self.fitted[-1], self._read(perturbed, tap)))
        self.joined = fit_columns(self.combination, torch.stack(columns, 1), torch.stack(other, 1) if other else None)
        return self

    def score(self, traces: Traces) -> Tensor:
        """Return float64 (n,): standard deviations of clean images, or the log-odds of the logistic regression."""
        check_fitted(self.name, self.fitted)
        parts = [traces.logits.new_empty(0, dtype=torch.float64)]
        parts += [join_columns(self.joined, self.layer_scores(part)) for part in traces.batches(_BATCH)]
        return torch.cat(parts)

    def layer_scores(self, traces: Traces | LiveTrace) -> Tensor:
        """Return the layers' own scores before they are combined, float64 (n, layers)."""
        check_fitted(self.name, self.fitted)
        taps = traces.tap_names()
        columns = [self._layer_scores(f, self._read(traces, tap)) for tap, f in zip(taps, self.fitted, strict=True)]
        return torch.stack(columns, 1)

    def surrogate(self, live: LiveTrace) -> Tensor:
        """Return the score itself, (n,)."""
        return join_columns(self.joined, self.layer_scores(live))

    def _read(self, traces: Traces | LiveTrace, tap: str) -> Tensor:
        return traces.full(tap) if self.features == "full" else traces.pooled(tap, self.statistic)

    def _scored(self, fitted: dict[str, Any], features: Tensor) -> Tensor:
        return torch.cat([self._layer_scores(fitted, part) for part in features.split(_BATCH)])

    @abstractmethod
    def _rows(self, groups: Tensor, generator: torch.Generator, sources: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the rows that layers are fitted on, and those whose scores decide the combination; int64.

        ``sources``: which image each row was made from, where that is known.
        """

    @abstractmethod
    def _fit_layer(self, features: Tensor, groups: Tensor, tap: str) -> dict[str, Any]:
        """Return what one layer learns from features (n, d) of images of classes ``groups``."""

    @abstractmethod
    def _layer_scores(self, fitted: dict[str, Any], features: Tensor) -> Tensor:
        """Return the suspicion by one layer, float64 (n,), differentiable."""
