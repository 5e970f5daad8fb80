"""A support vector machine on quantised late activations (Lu et al. 2017)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import torch
from annotated_types import Ge
from torch import Tensor

from ...harness.core.ranges import Count, Natural, Positive
from ...harness.tracing.traces import LiveTrace, Need, Representation, Traces
from ..base.classes import class_groups
from ..base.detector import Detector, DetectorInfo
from ..base.parameters import (
    check_fitted,
    check_images,
    check_layers,
    check_perturbed,
    selection,
)

_BATCH = 512


class SafetyNet(Detector):
    """Decision function of an RBF support vector machine on discrete codes of late ReLU layers; positive: perturbed.

    A unit's code is 0 where it is off and else 1 plus the number of quantile levels that its activation exceeds, among
    ``levels`` − 2 equally spaced quantiles of its positive activations on clean fit images; ``levels`` = 2 leaves the
    on/off bits. Clean images that the model classifies correctly against perturbed ones, both weighing the same.
    Supervised: it knows the perturbations that it was fitted on. The paper's quantiser and kernel width are not known
    to us; quantiles and the kernel width 1 / (units × variance of the codes) are ours.

    Codes hide the gradient (the paper counts on that); the surrogate therefore takes the place of the quantiser with a
    soft staircase through which gradients flow.

    Cost, with s support vectors (at most 2 ``images``) and d units: a fit O(images² d), an image O(s d) in one matrix
    product.

    Args:
        layers: taps to read: ``all``, ``last:N``, ``first:N``, or names.
        representation: ``full``, single units, or ``pooled``, the mean of each feature map.
        units: of ``full``: units of each tap that are read, a fixed sample.
        levels: discrete values of a code, at least 2.
        regularisation: C of the support vector machine; larger fits the training images more closely.
        images: clean and perturbed fit images that are used, a seeded draw from each; 0 uses all.
        temperature: steps of the surrogate's staircase are sigmoid((a − level) / (temperature × the unit's spread)).

    Raises:
        UsageError: for a parameter out of range.
    """

    info = DetectorInfo(
        title="SafetyNet",
        paper="Lu, Issaranon and Forsyth 2017, SafetyNet: Detecting and Rejecting Adversarial Examples Robustly, ICCV, "
        "arXiv 1704.00103",
        needs=(Need("full", "last:2", units=512),),
        supervised=True,
        surrogate="relaxed",
        summary="An RBF support vector machine on quantised activations of the last ReLU layers.",
    )

    def __init__(
        self,
        layers: str | list[str] = "last:2",
        representation: Literal["full", "pooled"] = "full",
        units: Count = 512,
        levels: Annotated[int, Ge(2)] = 4,
        regularisation: Positive = 1.0,
        images: Natural = 2000,
        temperature: Positive = 0.2,
    ) -> None:
        self.layers = check_layers(layers)
        self.representation: Representation = representation
        self.units = units
        self.levels = levels
        self.regularisation = regularisation
        self.images = images
        self.temperature = temperature
        self.fitted: dict[str, Any] = {}

    @property
    def needs(self) -> tuple[Need, ...]:
        """At most ``units`` activations, or the pooled maps, of each of ``layers``."""
        if self.representation == "pooled":
            return (Need("pooled", selection(self.layers)),)
        return (Need("full", selection(self.layers), units=self.units),)

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        """Learn quantiles from ``clean`` and the classifier from both.

        Raises:
            UsageError: without clean or without perturbed images.
        """
        from sklearn.svm import SVC

        check_images("safetynet", clean, 1)
        perturbed = check_perturbed("safetynet", perturbed)
        normal = self._drawn(clean, (class_groups(clean) >= 0).nonzero().squeeze(1), clean.generator)
        attacked = self._drawn(perturbed, torch.arange(len(perturbed)), clean.generator)
        self.fitted = dict(_quantiles(normal, self.levels))
        codes = torch.cat([self._codes(normal), self._codes(attacked)])
        variance = float(codes.double().var(correction=0))
        gamma = 1 / (codes.shape[1] * variance) if variance > 0 else 1.0
        machine = SVC(
            C=self.regularisation, kernel="rbf", gamma=gamma, class_weight="balanced", cache_size=500, random_state=0
        )
        machine.fit(codes.double().numpy(), [0] * len(normal) + [1] * len(attacked))
        self.fitted |= {
            "vectors": codes[torch.from_numpy(machine.support_).long()],
            "weights": torch.from_numpy(machine.dual_coef_[0].copy()),
            "bias": float(machine.intercept_[0]),
            "gamma": gamma,
        }
        return self

    def score(self, traces: Traces) -> Tensor:
        """Return float64 (n,); see the class."""
        check_fitted("safetynet", self.fitted)
        parts: list[Tensor] = [traces.logits.new_empty(0, dtype=torch.float64)]
        for part in traces.batches(_BATCH):
            parts.append(self._decision(self._codes(self._activations(part))))
        return torch.cat(parts)

    def surrogate(self, live: LiveTrace) -> Tensor:
        """Return the decision function on soft codes; straight through, on the codes themselves forwards."""
        check_fitted("safetynet", self.fitted)
        taps = live.tap_names()
        pooled = self.representation == "pooled"
        activations = torch.cat([live.pooled(tap) if pooled else live.full(tap) for tap in taps], 1)
        width = self.temperature * live.temperature * self.fitted["spread"].to(activations)
        # A first step of this form is 0 for a unit that is off, as its code; a sigmoid around 0 would be one half.
        soft = torch.tanh(activations.clamp(min=0) / (2 * width))
        for level in self.fitted["thresholds"].to(activations):
            soft = soft + torch.sigmoid((activations - level) / width)
        if live.straight_through:
            soft = self._codes(activations) + soft - soft.detach()
        return self._decision(soft)

    def _decision(self, codes: Tensor) -> Tensor:
        vectors = self.fitted["vectors"].to(codes)
        # Codes are small whole numbers, so this form of the distance is exact for them, however images are batched.
        squares = codes.square().sum(1, keepdim=True) + vectors.square().sum(1) - 2 * (codes @ vectors.T)
        kernel: Tensor = torch.exp(-self.fitted["gamma"] * squares.double().clamp(min=0))
        weights: Tensor = self.fitted["weights"].to(kernel)
        return (kernel * weights).sum(1) + float(self.fitted["bias"])

    def _codes(self, activations: Tensor) -> Tensor:
        """Return float32 (n, units): whole numbers from 0 to ``levels`` − 1."""
        codes = (activations > 0).float()
        for level in self.fitted["thresholds"].to(activations):
            codes += activations > level
        return codes

    def _activations(self, part: Traces) -> Tensor:
        read = part.pooled if self.representation == "pooled" else part.full
        return torch.cat([read(tap) for tap in part.tap_names()], 1)

    def _drawn(self, traces: Traces, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return activations of at most ``images`` of the given rows, in their order."""
        if self.images and len(rows) > self.images:
            rows = rows[torch.randperm(len(rows), generator=generator)[: self.images]]
        chosen = torch.zeros(len(traces), dtype=torch.bool)
        chosen[rows] = True
        parts = []
        for start, part in zip(range(0, len(traces), _BATCH), traces.batches(_BATCH), strict=True):
            kept = chosen[start : start + len(part)]
            if bool(kept.any()):
                parts.append(self._activations(part)[kept])
        return torch.cat(parts)


def _quantiles(activations: Tensor, levels: int) -> dict[str, Tensor]:
    """Return thresholds (levels − 2, units) above 0 and the spread (units,) of each unit's positive activations.

    A unit that is never on has no threshold (infinity): once on, its code is 1.
    """
    positive = activations > 0
    ordered = activations.masked_fill(~positive, torch.inf).sort(0).values
    counts = positive.sum(0)
    thresholds = torch.empty(levels - 2, activations.shape[1])
    for step in range(1, levels - 1):
        # The smallest positive activation that at least step / (levels − 1) of them do not exceed.
        place = (counts * step + levels - 2) // (levels - 1) - 1
        thresholds[step - 1] = ordered.gather(0, place.clamp(min=0).unsqueeze(0))[0]
    size = counts.clamp(min=1)
    mean = activations.clamp(min=0).sum(0) / size
    squares = ((activations - mean).square() * positive).sum(0) / size
    spread = torch.where(squares > 0, squares.sqrt(), torch.where(mean > 0, mean, 1.0))
    return {"thresholds": thresholds, "spread": spread}
