"""Baselines that read nothing but the logits; all are computed in float64 (tests compare them with pytorch-ood)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal, Self

import torch
from torch import Tensor

from ...harness.core.errors import UsageError
from ...harness.core.ranges import Positive
from ...harness.tracing.traces import LiveTrace, Traces
from ..base.detector import Detector, DetectorInfo
from ..base.parameters import check_fitted, check_images


class LogitDetector(Detector):
    """A function of the logits; a subclass writes :meth:`from_logits`, differentiable."""

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        """Nothing to learn."""
        return self

    def score(self, traces: Traces) -> Tensor:
        """Return float64 (n,): in float32 all images of high confidence would share one score."""
        return self.from_logits(traces.logits.double())

    def surrogate(self, live: LiveTrace) -> Tensor:
        """Return the score itself, (n,)."""
        return self.from_logits(live.logits.double())

    @abstractmethod
    def from_logits(self, logits: Tensor) -> Tensor:
        """Return the score from float64 logits (n, classes)."""


class MaxSoftmax(LogitDetector):
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

    def __init__(self, temperature: Positive = 1.0) -> None:
        self.temperature = temperature

    def from_logits(self, logits: Tensor) -> Tensor:
        """In [−1, 0], in a form whose gradient does not round to zero at high confidence.

        With m the largest logit minus the log-sum-exp of the others, the largest probability is sigmoid(m) and the
        score is exp(−softplus(m)) − 1.
        """
        return _unconfidence(logits / self.temperature) - 1


class Energy(LogitDetector):
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

    def __init__(self, temperature: Positive = 1.0) -> None:
        self.temperature = temperature

    def from_logits(self, logits: Tensor) -> Tensor:
        """See the class."""
        return -self.temperature * (logits / self.temperature).logsumexp(1)


class MaxLogit(LogitDetector):
    """Minus the largest logit; nothing is fitted."""

    info = DetectorInfo(
        title="Maximum logit",
        paper="Hendrycks et al. 2022, Scaling Out-of-Distribution Detection for Real-World Settings, arXiv 1911.11132",
        needs=(),
        surrogate="exact",
        summary="How small the largest logit is.",
    )

    def from_logits(self, logits: Tensor) -> Tensor:
        """See the class."""
        return -logits.max(dim=1).values


class Entropy(LogitDetector):
    """Entropy of the softmax probabilities in nats; nothing is fitted.

    pytorch-ood cuts probabilities off at 1e-7, below which confident images become equal; here none is.

    Args:
        temperature: the logits are divided by it.

    Raises:
        UsageError: for a temperature that is not positive.
    """

    info = DetectorInfo(
        title="Softmax entropy",
        paper="Hendrycks and Gimpel 2017, A Baseline for Detecting Misclassified and Out-of-Distribution Examples in "
        "Neural Networks, arXiv 1610.02136; as a score of its own: Chan et al. 2021, arXiv 2012.06575",
        needs=(),
        surrogate="exact",
        summary="The entropy of the predicted distribution.",
    )

    def __init__(self, temperature: Positive = 1.0) -> None:
        self.temperature = temperature

    def from_logits(self, logits: Tensor) -> Tensor:
        """Non-negative."""
        logs = (logits / self.temperature).log_softmax(1)
        return -(logs.exp() * logs).sum(1)


class Margin(LogitDetector):
    """Minus the lead of the first class over the second; nothing is fitted.

    Args:
        of: the lead in ``logits`` or in softmax ``probabilities``.

    Raises:
        UsageError: for anything else.
    """

    info = DetectorInfo(
        title="Margin",
        paper="Scheffer et al. 2001, Active Hidden Markov Models for Information Extraction, "
        "doi 10.1007/3-540-44816-0_31 (margin sampling)",
        needs=(),
        surrogate="exact",
        summary="How narrowly the first class leads the second.",
    )

    def __init__(self, of: Literal["logits", "probabilities"] = "logits") -> None:
        self.of: Literal["logits", "probabilities"] = of

    def from_logits(self, logits: Tensor) -> Tensor:
        """At most 0; at least −1 for probabilities."""
        if logits.shape[1] < 2:
            raise UsageError("The margin needs a model with at least two classes.")
        if not len(logits):
            return logits.new_empty(0)
        if self.of == "logits":
            first, second = logits.topk(2, dim=1).values.unbind(1)
            return second - first
        return _unconfidence(logits) - 1 + logits.log_softmax(1).topk(2, dim=1).values[:, 1].exp()


class KLMatching(Detector):
    """Smallest divergence KL(p || d_k) of the softmax p from a class's typical one d_k.

    d_k is the mean softmax of the fit images that are predicted as class k; classes that no fit image is predicted as
    have none. Computed in float64 from log-probabilities, as pytorch-ood's float32 scores lose confident images.

    Cost: O(classes²) per image.
    """

    info = DetectorInfo(
        title="KL matching",
        paper="Hendrycks et al. 2022, Scaling Out-of-Distribution Detection for Real-World Settings, arXiv 1911.11132",
        needs=(),
        surrogate="exact",
        summary="How far the predicted distribution is from every class's typical one.",
    )

    def __init__(self) -> None:
        self.typical = torch.empty(0, 0, dtype=torch.float64)

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        """Average the softmax vectors of each predicted class; ``perturbed`` is ignored."""
        check_images("kl-matching", clean, 1)
        predictions = clean.predictions
        sums = torch.zeros(clean.logits.shape[1], clean.logits.shape[1], dtype=torch.float64)
        sums.index_add_(0, predictions, clean.logits.double().softmax(1))
        counts = torch.bincount(predictions, minlength=len(sums))
        self.typical = sums[counts > 0] / counts[counts > 0].unsqueeze(1)
        return self

    def score(self, traces: Traces) -> Tensor:
        """Return float64 (n,), non-negative."""
        return self._divergence(traces.logits.double())

    def surrogate(self, live: LiveTrace) -> Tensor:
        """Return the score itself, (n,)."""
        return self._divergence(live.logits.double())

    def _divergence(self, logits: Tensor) -> Tensor:
        check_fitted("kl-matching", len(self.typical))
        logs = logits.log_softmax(1).unsqueeze(1)
        # A probability of 0 would make the divergence infinite for every image.
        typical = self.typical.to(logits.device).clamp(min=1e-300).log()
        return (logs.exp() * (logs - typical)).sum(2).amin(1)


def _unconfidence(logits: Tensor) -> Tensor:
    """Return one minus the largest softmax probability, (n,), with a gradient that does not round to zero.

    With m the largest logit minus the log-sum-exp of the others it is sigmoid(−m) = exp(−softplus(m)).
    """
    top = logits.argmax(1, keepdim=True)
    others = logits.scatter(1, top, -torch.inf)
    margin = logits.gather(1, top).squeeze(1) - others.logsumexp(1)
    return torch.exp(-torch.nn.functional.softplus(margin))
