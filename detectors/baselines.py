"""Baseline detectors of out-of-distribution inputs, computed by pytorch-ood.

Only its ``fit`` and raw scores are used. Its direction is ours: larger = more suspicious.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from ..harness.errors import UsageError
from ..harness.trace import LiveTrace, Need, Statistic, Traces
from .base import Detector, DetectorInfo
from .checks import check_choice, check_fitted, check_images, check_layers, check_positive, selection
from .grouping import class_groups, on_scale, present_classes, scale_of

_BATCH = 1024
# Directions of the features whose variance is below this share of the largest one carry only rounding.
_NULL = 1e-6


class MaxSoftmax(Detector):
    """Minus the largest softmax probability of the logits; nothing is fitted.

    Args:
        temperature: the logits are divided by it.

    Raises:
        UsageError: for a temperature that is not positive.
    """

    info = DetectorInfo(
        title="Maximum softmax probability",
        paper="Hendrycks and Gimpel 2017, A Baseline for Detecting Misclassified and Out-of-Distribution Examples in "
        "Neural Networks, arXiv 1610.02136",
        needs=(),
        surrogate="exact",
        summary="How unsure the softmax is; high-confidence attacks look safer than clean images to it.",
    )

    def __init__(self, temperature: float = 1.0) -> None:
        check_positive("temperature", temperature)
        self.temperature = temperature

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        """Nothing to learn."""
        return self

    def score(self, traces: Traces) -> Tensor:
        """Float64 (n,) in [−1, 0]: in float32 all images of high confidence would share the score −1."""
        from pytorch_ood.detector import MaxSoftmax as Reference

        scores: Tensor = Reference.score(traces.logits.double(), self.temperature)
        return scores

    def surrogate(self, live: LiveTrace) -> Tensor:
        """The score, (n,), in a form whose gradient does not round to zero at high confidence.

        With m the largest logit minus the log-sum-exp of the others, the largest probability is sigmoid(m) and the
        score is exp(−softplus(m)) − 1.
        """
        logits = live.logits.double() / self.temperature
        top = logits.argmax(1, keepdim=True)
        others = logits.scatter(1, top, -torch.inf)
        margin = logits.gather(1, top).squeeze(1) - others.logsumexp(1)
        return torch.exp(-torch.nn.functional.softplus(margin)) - 1


class Energy(Detector):
    """Minus temperature times the log-sum-exp of the logits over the temperature; nothing is fitted.

    Args:
        temperature: the logits are divided by it.

    Raises:
        UsageError: for a temperature that is not positive.
    """

    info = DetectorInfo(
        title="Energy",
        paper="Liu et al. 2020, Energy-based Out-of-distribution Detection, arXiv 2010.03759",
        needs=(),
        surrogate="exact",
        summary="The free energy of the logits: small logits are suspicious.",
    )

    def __init__(self, temperature: float = 1.0) -> None:
        check_positive("temperature", temperature)
        self.temperature = temperature

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        """Nothing to learn."""
        return self

    def score(self, traces: Traces) -> Tensor:
        """Float64 (n,)."""
        return self._energy(traces.logits.double())

    def surrogate(self, live: LiveTrace) -> Tensor:
        """The score itself, (n,)."""
        return self._energy(live.logits)

    def _energy(self, logits: Tensor) -> Tensor:
        from pytorch_ood.detector import EnergyBased

        scores: Tensor = EnergyBased.score(logits, self.temperature)
        return scores


class Mahalanobis(Detector):
    """Squared Mahalanobis distance of a layer's pooled maps to the nearest class mean, under one covariance.

    pytorch-ood inverts the scatter matrix in float32 with a fixed ridge of 1e-6, needs every class to occur, and its
    scores are not differentiable. So the features are first whitened in float64 over the fit images and directions
    without variance (dead channels) dropped, which leaves the distances as they are and makes that inverse harmless;
    classes without an image are left out; and the surrogate evaluates the same formula itself.

    With several layers, each layer's score is expressed in standard deviations of the clean fit images, and the mean
    over layers is the score; the paper fits that combination on attacks. Its input pre-processing is left out.
    Fitted on the images that the model classifies correctly.

    Args:
        layers: taps to read: ``all``, ``last:N``, ``first:N``, or names.
        statistic: what is kept of each feature map: its mean (as in the paper), maximum or standard deviation.

    Raises:
        UsageError: for a parameter out of range.
    """

    info = DetectorInfo(
        title="Mahalanobis distance",
        paper="Lee et al. 2018, A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial "
        "Attacks, arXiv 1807.03888",
        needs=(Need("pooled", "last:1"),),
        surrogate="exact",
        summary="Distance of the last layer's pooled features to the nearest class mean.",
    )

    def __init__(self, layers: str | list[str] = "last:1", statistic: Statistic = "mean") -> None:
        check_choice("statistic", statistic, Statistic)
        self.layers = check_layers(layers)
        self.statistic: Statistic = statistic
        self.fitted: list[dict[str, Any]] = []

    @property
    def needs(self) -> tuple[Need, ...]:
        """Pooled maps at ``layers``."""
        return (Need("pooled", selection(self.layers), self.statistic),)

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        """Estimate class means and covariance of every layer; ``perturbed`` is ignored.

        Raises:
            UsageError: for fewer than two clean images, or maps that never vary.
        """
        check_images("mahalanobis", clean)
        groups = class_groups(clean)
        self.fitted = [self._fit_layer(clean, tap, groups) for tap in clean.tap_names()]
        return self

    def score(self, traces: Traces) -> Tensor:
        """Float64 (n,); see the class."""
        check_fitted("mahalanobis", self.fitted)
        taps = traces.tap_names()
        parts = [torch.empty(0)]
        for part in traces.batches(_BATCH):
            layers = [
                on_scale(_reference_scores(fitted, part.pooled(tap)).double(), fitted["scale"])
                for tap, fitted in zip(taps, self.fitted, strict=True)
            ]
            parts.append(torch.stack(layers).mean(0))
        return torch.cat(parts)

    def surrogate(self, live: LiveTrace) -> Tensor:
        """The score itself, (n,)."""
        check_fitted("mahalanobis", self.fitted)
        layers = [
            on_scale(_distance(fitted, live.pooled(tap, self.statistic)), fitted["scale"])
            for tap, fitted in zip(live.tap_names(), self.fitted, strict=True)
        ]
        return torch.stack(layers).mean(0)

    def _fit_layer(self, clean: Traces, tap: str, groups: Tensor) -> dict[str, Any]:
        from pytorch_ood.detector import Mahalanobis as Reference

        features = clean.pooled(tap)
        inside = groups >= 0
        centre, whitening = _whitening(features[inside], tap)
        fitted: dict[str, Any] = {"centre": centre, "whitening": whitening, "scale": [0.0, 1.0]}
        # Its classes must be 0, 1, ... without gaps.
        present = torch.searchsorted(present_classes(groups), groups[inside])
        reference = Reference(None).fit_features(_whitened(fitted, features[inside]), present)
        fitted |= {"means": reference.mu, "precision": reference.precision.contiguous()}
        fitted["scale"] = scale_of(_reference_scores(fitted, features))
        return fitted


def _whitening(features: Tensor, tap: str) -> tuple[Tensor, Tensor]:
    """Mean (d,) and a matrix (d, k) that makes the total covariance of ``features`` (n, d) the identity; float32."""
    values = features.double()
    centre = values.mean(0)
    covariance = (values - centre).T @ (values - centre) / len(values)
    variances, vectors = torch.linalg.eigh(covariance)
    kept = variances > max(_NULL * float(variances[-1]), 1e-20)
    if not bool(kept.any()):
        raise UsageError(f"mahalanobis: the maps of {tap!r} are the same for all fit images; choose another layer.")
    return centre.float(), (vectors[:, kept] / variances[kept].sqrt()).float().contiguous()


def _whitened(fitted: Mapping[str, Any], features: Tensor) -> Tensor:
    device = features.device
    found: Tensor = (features - fitted["centre"].to(device)) @ fitted["whitening"].to(device)
    return found


def _reference_scores(fitted: Mapping[str, Any], features: Tensor) -> Tensor:
    from pytorch_ood.detector import Mahalanobis as Reference

    reference = Reference(None)
    reference.mu, reference.precision = fitted["means"], fitted["precision"]
    scores: Tensor = reference.predict_features(_whitened(fitted, features))
    return scores


def _distance(fitted: Mapping[str, Any], features: Tensor) -> Tensor:
    """What pytorch-ood's ``predict_features`` computes, with its gradient."""
    device = features.device
    offsets = _whitened(fitted, features).unsqueeze(1) - fitted["means"].to(device)
    squares = torch.einsum("ncd,de,nce->nc", offsets, fitted["precision"].to(device), offsets)
    return squares.amin(1) / 2
