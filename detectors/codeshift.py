"""Detection from the functional codes of self-organising maps, layer by layer (Lee and Vijayan 2022)."""

from __future__ import annotations

from typing import Literal, Self, get_args

import torch
from torch import Tensor

from ..harness.trace import LiveTrace, Need, Statistic, Traces
from .base import Detector, DetectorInfo
from .checks import check_choice, check_count, check_fitted, check_images, check_layers, check_positive, selection
from .codes.latent import Standardiser, fit_standardiser
from .codes.som import SOM, fit_som
from .grouping import class_groups, on_scale, one_hot, scale_of

Part = Literal["error", "sequence", "disagreement"]
Component = Literal["all", "error", "sequence", "disagreement"]
PARTS: tuple[Part, ...] = get_args(Part)
_BATCH = 1024


class CodeShift(Detector):
    """Codes the pooled maps of every layer by one self-organising map, and scores how unusual the codes are.

    The paper maps layers to such "functional codes" and follows them under perturbation; it states no detector. The
    three components are ours, each averaged over the layers and expressed in standard deviations on the clean fit
    images; the score is their mean.

    - ``error``: the distance from the layer's vector to its best-matching prototype (quantisation error), in the
      layer's own standard deviations.
    - ``sequence``: −log P(unit | predicted class) of the units that the layers match.
    - ``disagreement``: whether the majority class of the unit's fit images is another one than the predicted class.

    The maps learn from all clean fit images; the tables from those that the model classifies correctly. A class
    without such an image gets the frequencies of all classes; a unit without images has the majority class of the
    occupied unit with the nearest prototype.

    Args:
        layers: taps to read: ``all``, ``last:N``, ``first:N``, or names.
        statistic: what is kept of each feature map: its mean, maximum or standard deviation.
        rows: rows of each map.
        columns: columns of each map.
        epochs: passes of the batch update over the fit images.
        smoothing: images that are added to every unit's count (Laplace).
        component: one of the components alone, or all.
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
        summary="Self-organising maps of pooled feature maps: quantisation error, unlikely and contradicting units.",
    )

    def __init__(
        self,
        layers: str | list[str] = "all",
        statistic: Statistic = "mean",
        rows: int = 8,
        columns: int = 8,
        epochs: int = 20,
        smoothing: float = 1.0,
        component: Component = "all",
        temperature: float = 0.2,
    ) -> None:
        check_choice("statistic", statistic, Statistic)
        check_count("rows", rows)
        check_count("columns", columns)
        check_count("epochs", epochs)
        check_positive("smoothing", smoothing)
        check_choice("component", component, Component)
        check_positive("temperature", temperature)
        self.layers = check_layers(layers)
        self.statistic: Statistic = statistic
        self.rows = rows
        self.columns = columns
        self.epochs = epochs
        self.smoothing = smoothing
        self.component = component
        self.temperature = temperature
        self.maps: list[dict[str, Tensor]] = []
        self.error_scales: list[list[float]] = []
        self.scales: dict[str, list[float]] = {}

    @property
    def needs(self) -> tuple[Need, ...]:
        """Pooled maps at ``layers``."""
        return (Need("pooled", selection(self.layers), self.statistic),)

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        """Fit one map and its tables per layer; ``perturbed`` is ignored.

        Raises:
            UsageError: for fewer than two clean images.
        """
        check_images("codeshift", clean)
        groups = class_groups(clean)
        self.maps, self.error_scales, self.scales = [], [], {}
        for tap in clean.tap_names():
            fitted, error = self._fit_layer(clean, tap, groups)
            self.maps.append(fitted)
            self.error_scales.append(scale_of(error))
        parts = self._parts_of(clean)
        self.scales = {name: scale_of(parts[name]) for name in PARTS}
        return self

    def score(self, traces: Traces) -> Tensor:
        """Float64 (n,); see the class."""
        check_fitted("codeshift", self.scales)
        return self._combine(self._parts_of(traces))

    def surrogate(self, live: LiveTrace) -> Tensor:
        """The score with soft assignments to units, given the class that the live logits predict, (n,).

        The quantisation error is the exact one; the other components are averaged over the units.
        """
        check_fitted("codeshift", self.scales)
        classes = live.logits.argmax(1)
        layers = []
        for tap, fitted, scale in zip(live.tap_names(), self.maps, self.error_scales, strict=True):
            held = {name: value.to(live.logits.device) for name, value in fitted.items()}
            vectors = _standardiser(held).apply(live.pooled(tap, self.statistic))
            # The constant keeps the gradient of the root finite where a vector lies on a prototype.
            squares = (vectors.unsqueeze(1) - held["prototypes"]).square().sum(2) + 1e-12
            shares = torch.softmax(-squares / (self.temperature * live.temperature * held["spread"]), 1)
            if live.straight_through:
                hard = torch.nn.functional.one_hot(squares.argmin(1), squares.shape[1]).to(shares.dtype)
                shares = hard + shares - shares.detach()
            layers.append(
                {
                    "error": on_scale(squares.amin(1).sqrt(), scale),
                    "sequence": (shares * held["surprise"][classes]).sum(1),
                    "disagreement": (shares * (held["majority"] != classes.unsqueeze(1))).sum(1),
                }
            )
        return self._combine({name: torch.stack([layer[name] for layer in layers]).mean(0) for name in PARTS})

    def _fit_layer(self, clean: Traces, tap: str, groups: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        standardiser = fit_standardiser(part.pooled(tap) for part in clean.batches(_BATCH))
        vectors = standardiser.apply(clean.pooled(tap))
        som = fit_som(vectors, self.rows, self.columns, self.epochs)
        units, errors = som.match(vectors)
        classes = clean.logits.shape[1]
        matched = one_hot(units, self.rows * self.columns)
        counts = one_hot(groups, classes).T @ matched
        table = torch.where(counts.sum(1, keepdim=True) > 0, counts, counts.sum(0)) + self.smoothing
        return {
            "mean": standardiser.mean,
            "scale": standardiser.scale,
            "prototypes": som.prototypes,
            "spread": errors.square().mean().clamp(min=1e-12),
            "surprise": -(table / table.sum(1, keepdim=True)).log(),
            "majority": _majority(counts, som.prototypes),
        }, errors

    def _parts_of(self, traces: Traces) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {name: [torch.empty(0)] for name in PARTS}
        for part in traces.batches(_BATCH):
            totals = {name: torch.zeros(len(part), dtype=torch.float64) for name in PARTS}
            for tap, fitted, scale in zip(part.tap_names(), self.maps, self.error_scales, strict=True):
                vectors = _standardiser(fitted).apply(part.pooled(tap))
                units, errors = SOM(fitted["prototypes"], self.rows, self.columns).match(vectors)
                totals["error"] += on_scale(errors.double(), scale)
                totals["sequence"] += fitted["surprise"][part.predictions, units]
                totals["disagreement"] += fitted["majority"][units] != part.predictions
            for name in PARTS:
                parts[name].append(totals[name] / len(self.maps))
        return {name: torch.cat(values) for name, values in parts.items()}

    def _combine(self, parts: dict[str, Tensor]) -> Tensor:
        chosen = PARTS if self.component == "all" else (self.component,)
        return torch.stack([on_scale(parts[name], self.scales[name]) for name in chosen]).mean(0)


def _standardiser(fitted: dict[str, Tensor]) -> Standardiser:
    return Standardiser(fitted["mean"], fitted["scale"])


def _majority(counts: Tensor, prototypes: Tensor) -> Tensor:
    """The majority class of each unit, int64 (units,), from counts (classes, units)."""
    occupied = (counts.sum(0) > 0).nonzero().squeeze(1)
    nearest = torch.cdist(prototypes, prototypes[occupied]).argmin(1)
    # An occupied unit keeps its own images, also where another one shares its prototype.
    nearest[occupied] = torch.arange(len(occupied))
    return counts[:, occupied].argmax(0)[nearest]
