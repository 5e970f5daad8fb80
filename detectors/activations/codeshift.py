"""Detection from the functional codes of self-organising maps, layer by layer (Lee and Vijayan 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from ...harness.core.ranges import Count, Positive
from ...harness.tracing.traces import LiveTrace, Need, Statistic, Traces
from ..base.classes import class_groups, on_scale, one_hot, scale_of
from ..base.detector import Detector, DetectorInfo
from ..base.parameters import (
    check_fitted,
    check_images,
    check_layers,
    selection,
)
from ..base.splits import held_apart
from ..codes.codebook import Codebook
from ..codes.kmeans import fit_kmeans
from ..codes.latent import Standardiser, fit_standardiser
from ..codes.som import fit_som

Part = Literal["error", "sequence", "disagreement", "distance"]
Component = Literal["all", "error", "sequence", "disagreement", "distance"]
Encoder = Literal["som", "kmeans"]
Vector = Literal["mean", "max", "std", "mean+std"]
Weighting = Literal["equal", "agreement"]
PARTS: tuple[Part, ...] = get_args(Part)
# Parts whose unit differs from layer to layer: each layer is put on its own scale before layers are averaged.
_LENGTHS: tuple[Part, ...] = ("error", "distance")
_BATCH = 1024
_HELD_OUT = 8


class CodeShift(Detector):
    """Codes the pooled maps of every layer by one self-organising map, and scores how unusual the codes are.

    The paper maps layers to such "functional codes" and follows them under perturbation; it states no detector, and no
    published one was found. The four components are ours, each averaged over the layers, which weigh the same whatever
    their width, and expressed in standard deviations of clean images; the score is their mean.

    - ``error``: the distance from the layer's vector to its best-matching prototype (quantisation error).
    - ``sequence``: −log P(unit | predicted class) of the units that the layers match, with Laplace smoothing.
    - ``disagreement``: the share of layers whose unit's majority class is another one than the predicted class.
    - ``distance``: how far on the map the unit lies from those of the predicted class: the mean grid distance to a
      unit drawn from that class's frequencies. Centroids of k-means have no map: there it is the distance between
      centroids.

    The maps learn from all clean fit images; the tables from those that the model classifies correctly. A class
    without such an image gets the frequencies of all classes; a unit without images has the majority class of the
    occupied unit with the nearest prototype. One in eight fit images is kept from maps and tables and only sets the
    scales (and the weights by agreement): a map lies closer to the images that it learned from, and a table knows them.

    Fitting takes O(images · units · width · epochs) per layer, scoring O(units · width) per layer and image.

    Args:
        layers: taps to read: ``all``, ``last:N``, ``first:N``, or names.
        statistic: what is kept of each feature map: its mean, maximum, standard deviation, or mean and deviation.
        encoder: a self-organising map, or k-means with as many centroids, the control for what the map adds.
        rows: rows of each map.
        columns: columns of each map.
        epochs: passes of the map's batch update over the fit images.
        smoothing: images that are added to every unit's count (Laplace).
        component: one of the components alone, or all.
        weighting: how layers are averaged: equally, or by how much more often than by chance the majority class of
            their units is the predicted class on clean images.
        temperature: the surrogate assigns a layer's vector to units by softmax(−d² / (temperature · q²)), q² being the
            layer's mean squared quantisation error on the fit images.

    Raises:
        UsageError: for a parameter out of range.
    """

    info = DetectorInfo(
        title="Code shift",
        paper="Lee and Vijayan 2022, Analysis of functional neural codes of deep learning models, arXiv 2205.10952",
        needs=(Need("pooled"),),
        surrogate="relaxed",
        summary="Self-organising maps of pooled feature maps: far, unlikely and contradicting units, layer by layer.",
    )

    def __init__(
        self,
        layers: str | list[str] = "all",
        statistic: Vector = "mean",
        encoder: Encoder = "som",
        rows: Count = 8,
        columns: Count = 8,
        epochs: Count = 20,
        smoothing: Positive = 1.0,
        component: Component = "all",
        weighting: Weighting = "equal",
        temperature: Positive = 0.2,
    ) -> None:
        self.layers = check_layers(layers)
        self.statistic: Vector = statistic
        self.encoder: Encoder = encoder
        self.rows = rows
        self.columns = columns
        self.epochs = epochs
        self.smoothing = smoothing
        self.component = component
        self.weighting: Weighting = weighting
        self.temperature = temperature
        self.maps: list[dict[str, Tensor]] = []
        self.layer_scales: dict[str, Tensor] = {}
        self.weights = torch.empty(0)
        self.scales: dict[str, list[float]] = {}

    @property
    def needs(self) -> tuple[Need, ...]:
        """Pooled maps at ``layers``, one need per statistic."""
        return tuple(Need("pooled", selection(self.layers), statistic) for statistic in self._statistics())

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        """Fit one map and its tables per layer; ``perturbed`` is ignored.

        Raises:
            UsageError: for fewer than two clean images.
        """
        check_images("codeshift", clean)
        self.maps, self.layer_scales, self.scales = [], {}, {}
        train, rest = held_apart(clean, len(clean) // _HELD_OUT if len(clean) >= 4 * _HELD_OUT else 0)
        groups = class_groups(train)
        self.maps = [self._fit_layer(train, tap, groups) for tap in clean.tap_names()]
        parts = self._parts_of(rest)
        self.layer_scales = {
            name: torch.tensor([scale_of(layer) for layer in parts[name].T], dtype=torch.float64) for name in _LENGTHS
        }
        self.weights = self._weigh(parts["disagreement"], clean.logits.shape[1])
        means = self._averaged(parts)
        self.scales = {name: scale_of(means[name]) for name in PARTS}
        return self

    def score(self, traces: Traces) -> Tensor:
        """Return float64 (n,); see the class."""
        check_fitted("codeshift", self.scales)
        return self._combine(self._parts_of(traces))

    def surrogate(self, live: LiveTrace) -> Tensor:
        """Return the score with soft assignments to units, given the class that the live logits predict, (n,).

        The quantisation error is the exact one; the other components are averaged over the units.
        """
        check_fitted("codeshift", self.scales)
        classes = live.logits.argmax(1)
        layers = []
        for tap, fitted in zip(live.tap_names(), self.maps, strict=True):
            held = {name: value.to(live.logits.device) for name, value in fitted.items()}
            vectors = torch.cat([live.pooled(tap, statistic) for statistic in self._statistics()], 1)
            distances = Codebook(held["prototypes"]).distances(_standardiser(held).apply(vectors))
            shares = torch.softmax(-distances.square() / (self.temperature * live.temperature * held["spread"]), 1)
            if live.straight_through:
                hard = torch.nn.functional.one_hot(distances.argmin(1), distances.shape[1]).to(shares.dtype)
                shares = hard + shares - shares.detach()
            layers.append(
                {
                    "error": distances.amin(1),
                    "sequence": (shares * held["surprise"][classes]).sum(1),
                    "disagreement": (shares * (held["majority"] != classes.unsqueeze(1))).sum(1),
                    "distance": (shares * held["remoteness"][classes]).sum(1),
                }
            )
        return self._combine({name: torch.stack([layer[name] for layer in layers], 1) for name in PARTS})

    def _statistics(self) -> tuple[Statistic, ...]:
        return ("mean", "std") if self.statistic == "mean+std" else (self.statistic,)

    def _read(self, traces: Traces, tap: str) -> Tensor:
        return torch.cat([traces.pooled(tap, statistic) for statistic in self._statistics()], 1)

    def _fit_layer(self, train: Traces, tap: str, groups: Tensor) -> dict[str, Tensor]:
        standardiser = fit_standardiser(self._read(part, tap) for part in train.batches(_BATCH))
        vectors = standardiser.apply(self._read(train, tap))
        book, steps = self._fit_book(vectors, train.generator)
        units, errors = book.match(vectors)
        classes = train.logits.shape[1]
        counts = one_hot(groups, classes).T @ one_hot(units, book.units)
        seen = torch.where(counts.sum(1, keepdim=True) > 0, counts, counts.sum(0))
        smoothed = seen + self.smoothing
        return {
            "mean": standardiser.mean,
            "scale": standardiser.scale,
            "prototypes": book.prototypes,
            "spread": errors.square().mean().clamp(min=1e-12),
            "surprise": -(smoothed / smoothed.sum(1, keepdim=True)).log(),
            "majority": _majority(counts, book.prototypes),
            "remoteness": seen / seen.sum(1, keepdim=True) @ steps,
        }

    def _fit_book(self, vectors: Tensor, generator: torch.Generator) -> tuple[Codebook, Tensor]:
        """Return the units, and how far apart any two of them are, (units, units)."""
        if self.encoder == "kmeans":
            book = fit_kmeans(vectors, self.rows * self.columns, generator)
            return book, book.distances(book.prototypes)
        # Stiffer maps fold less and fit less: on 300 digits they detect less (AUROC .84 instead of .87 of noise).
        som = fit_som(vectors, self.rows, self.columns, self.epochs, last_radius=0.5, repairs=0)
        every = torch.arange(som.units)
        return som, som.grid_distance(every.unsqueeze(1), every)

    def _weigh(self, disagreement: Tensor, classes: int) -> Tensor:
        """Return the layers' weights, float64 (layers,), with sum 1."""
        weights = torch.ones(disagreement.shape[1], dtype=torch.float64)
        if self.weighting == "agreement":
            excess = (1 - disagreement.mean(0) - 1 / classes).clamp(min=0)
            weights = excess if bool(excess.any()) else weights
        return weights / weights.sum()

    def _parts_of(self, traces: Traces) -> dict[str, Tensor]:
        """Return the components of each layer, float64 (n, layers)."""
        parts: dict[str, list[Tensor]] = {name: [] for name in PARTS}
        for part in traces.batches(_BATCH) if len(traces) else (traces,):
            layers: dict[str, list[Tensor]] = {name: [] for name in PARTS}
            for tap, fitted in zip(part.tap_names(), self.maps, strict=True):
                units, errors = Codebook(fitted["prototypes"]).match(_standardiser(fitted).apply(self._read(part, tap)))
                layers["error"].append(errors)
                layers["sequence"].append(fitted["surprise"][part.predictions, units])
                layers["disagreement"].append(fitted["majority"][units] != part.predictions)
                layers["distance"].append(fitted["remoteness"][part.predictions, units])
            for name in PARTS:
                parts[name].append(torch.stack(layers[name], 1).double())
        return {name: torch.cat(values) for name, values in parts.items()}

    def _averaged(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the components, (n,) each, of (n, layers)."""
        found: dict[str, Tensor] = {}
        for name in PARTS:
            layers = parts[name]
            if name in _LENGTHS:
                mean, deviation = self.layer_scales[name].to(layers).T
                layers = (layers - mean) / deviation
            # Not a product with a vector: its rounding may depend on the number of rows.
            found[name] = (layers * self.weights.to(layers)).sum(1)
        return found

    def _combine(self, parts: Mapping[str, Tensor]) -> Tensor:
        means = self._averaged(parts)
        chosen = PARTS if self.component == "all" else (self.component,)
        return torch.stack([on_scale(means[name], self.scales[name]) for name in chosen]).mean(0)


def _standardiser(fitted: dict[str, Tensor]) -> Standardiser:
    return Standardiser(fitted["mean"], fitted["scale"])


def _majority(counts: Tensor, prototypes: Tensor) -> Tensor:
    """Return the majority class of each unit, int64 (units,), from counts (classes, units)."""
    occupied = (counts.sum(0) > 0).nonzero().squeeze(1)
    nearest = torch.cdist(prototypes, prototypes[occupied]).argmin(1)
    # An occupied unit keeps its own images, also where another one shares its prototype.
    nearest[occupied] = torch.arange(len(occupied))
    return counts[:, occupied].argmax(0)[nearest]
