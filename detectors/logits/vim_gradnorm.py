"""Baselines that read the features in front of the classifier's last linear layer: ViM and GradNorm."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from ...harness.core.ranges import Natural, Positive
from ...harness.tracing.traces import LiveTrace, Need, Traces
from ..base.classes import class_groups
from ..base.detector import Detector, DetectorInfo
from ..base.parameters import check_fitted, check_images, check_layers, selection

# Directions of the features whose variance is below this share of the largest one carry only rounding.
_NULL = 1e-10


class Vim(Detector):
    """Virtual-logit matching: the features' length outside the principal subspace, against the energy of the logits.

    score = alpha |R (x − o)| − logsumexp(logits), where R projects on all but the ``dimensions`` leading principal
    directions of the correctly classified fit images around the origin o, and alpha makes the first term as large as
    the largest logit on average. The paper's origin is −W⁺ b, of the last layer's weights, which a detector cannot
    see; W and b are recovered by least squares from the features and logits of the fit images. That is exact where the
    features are what the last linear layer reads (a global average after the last tap, as in a ResNet) and the best
    linear approximation elsewhere.

    Cost: O(n d²) to fit, O(d²) per image.

    Args:
        layer: the tap whose pooled maps are the features.
        dimensions: of the principal subspace; 0 takes as many as there are classes, at most half of the features.

    Raises:
        UsageError: for a parameter out of range.
    """

    info = DetectorInfo(
        title="Virtual-logit matching",
        paper="Wang et al. 2022, ViM: Out-Of-Distribution with Virtual-logit Matching, arXiv 2203.10807",
        needs=(Need("pooled", "last:1"),),
        surrogate="exact",
        summary="Features outside the principal subspace, against the energy of the logits.",
    )

    def __init__(self, layer: str = "last:1", dimensions: Natural = 0) -> None:
        self.layer = check_layers(layer)
        self.dimensions = dimensions
        self.origin = torch.empty(0, dtype=torch.float64)
        self.residual = torch.empty(0, 0, dtype=torch.float64)
        self.alpha = 0.0
        self.explained = 0.0

    @property
    def needs(self) -> tuple[Need, ...]:
        """Pooled maps at ``layer``."""
        return (Need("pooled", selection(self.layer)),)

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        """Recover the last layer, find the principal subspace and alpha; ``perturbed`` is ignored.

        Raises:
            UsageError: for fewer than two clean images.
        """
        check_images("vim", clean)
        inside = class_groups(clean) >= 0
        features = torch.cat([clean.pooled(tap) for tap in clean.tap_names()], 1).double()[inside]
        logits = clean.logits.double()[inside]
        weights, bias, self.explained = _last_layer(features, logits)
        self.origin = -torch.linalg.pinv(weights) @ bias
        moved = features - self.origin
        vectors = torch.linalg.eigh(moved.T @ moved / len(moved)).eigenvectors
        width = len(self.origin)
        principal = min(self.dimensions or logits.shape[1], width // 2)
        self.residual = vectors[:, : width - principal].contiguous()
        length = float((moved @ self.residual).norm(dim=1).mean())
        largest = float(logits.amax(1).mean())
        self.alpha = largest / length if length > 1e-12 * max(1.0, float(moved.norm(dim=1).mean())) else 0.0
        return self

    def score(self, traces: Traces) -> Tensor:
        """Return float64 (n,)."""
        return self._score(traces, traces.logits)

    def surrogate(self, live: LiveTrace) -> Tensor:
        """Return the score itself, (n,)."""
        return self._score(live, live.logits)

    def _score(self, traces: Traces | LiveTrace, logits: Tensor) -> Tensor:
        check_fitted("vim", len(self.origin))
        features = torch.cat([traces.pooled(tap) for tap in traces.tap_names()], 1).double()
        outside: Tensor = (features - self.origin.to(features.device)) @ self.residual.to(features.device)
        score: Tensor = self.alpha * torch.linalg.vector_norm(outside, dim=1) - logits.double().logsumexp(1)
        return score


class GradNorm(Detector):
    """Minus the L1 norm of the gradient of KL(uniform || softmax) with respect to the last layer's weights.

    The gradient is an outer product, so its norm is |features|₁ |softmax − 1 / classes|₁ / temperature and no backward
    pass is needed. Exact where the pooled maps are what the last linear layer reads. Nothing is fitted.

    Cost: O(d + classes) per image.

    Args:
        layer: the tap whose pooled maps are the features.
        temperature: the logits are divided by it.

    Raises:
        UsageError: for a parameter out of range.
    """

    info = DetectorInfo(
        title="GradNorm",
        paper="Huang et al. 2021, On the Importance of Gradients for Detecting Distributional Shifts in the Wild, "
        "arXiv 2110.00218",
        needs=(Need("pooled", "last:1"),),
        surrogate="exact",
        summary="Small gradients of the last layer's weights, from features and softmax alone.",
    )

    def __init__(self, layer: str = "last:1", temperature: Positive = 1.0) -> None:
        self.layer = check_layers(layer)
        self.temperature = temperature

    @property
    def needs(self) -> tuple[Need, ...]:
        """Pooled maps at ``layer``."""
        return (Need("pooled", selection(self.layer)),)

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        """Nothing to learn."""
        return self

    def score(self, traces: Traces) -> Tensor:
        """Return float64 (n,), at most 0."""
        return self._score(traces, traces.logits)

    def surrogate(self, live: LiveTrace) -> Tensor:
        """Return the score itself, (n,)."""
        return self._score(live, live.logits)

    def _score(self, traces: Traces | LiveTrace, logits: Tensor) -> Tensor:
        features = torch.stack([traces.pooled(tap).double().abs().sum(1) for tap in traces.tap_names()]).sum(0)
        probabilities = (logits.double() / self.temperature).softmax(1)
        return -features * (probabilities - 1 / logits.shape[1]).abs().sum(1) / self.temperature


def _last_layer(features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, float]:
    """Weights (classes, d) and bias of the least-squares linear map to the logits, and its share of their variance."""
    mean, level = features.mean(0), logits.mean(0)
    moved, wanted = features - mean, logits - level
    variances, vectors = torch.linalg.eigh(moved.T @ moved)
    kept = variances > max(_NULL * float(variances[-1]), 1e-20)
    inverse = (vectors[:, kept] / variances[kept]) @ vectors[:, kept].T
    weights = (inverse @ (moved.T @ wanted)).T
    left = (wanted - moved @ weights.T).square().sum()
    total = float(wanted.square().sum())
    return weights, level - weights @ mean, 1 - float(left) / total if total else 0.0
