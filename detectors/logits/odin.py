"""ODIN (Liang et al. 2018), with its input pre-processing to first order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Self

import torch
from torch import Tensor

from ...harness.core.errors import UsageError
from ...harness.core.ranges import NotNegative, Positive
from ...harness.tracing.extra_passes import InputGradient
from ...harness.tracing.traces import LiveTrace, Traces
from ..base.detector import Detector, DetectorInfo

_GRADIENT = "odin"


class Odin(Detector):
    """Minus the log softmax of the prediction at a temperature, after a step of ``eps`` towards the prediction.

    ODIN moves the image by eps times the sign of the gradient of log S(x; T) and reads S there, in a second forward
    pass. To first order, which is how the paper explains the method (its section 5.1), the step adds eps times the L1
    norm of that gradient to log S; that sum is the score here. Nothing is fitted.

    Cost: one backward pass per image for the gradient, then O(pixels).

    Args:
        temperature: T, by which the logits are divided.
        eps: the step, in units of [0, 1] pixels; 0 leaves the temperature alone.

    Raises:
        UsageError: for a parameter out of range.
    """

    info = DetectorInfo(
        title="ODIN, to first order",
        paper="Liang et al. 2018, Enhancing The Reliability of Out-of-distribution Image Detection in Neural Networks, "
        "arXiv 1706.02690",
        needs=(),
        surrogate="exact",
        summary="Softmax at a high temperature after a small step towards the prediction, linearised.",
    )

    def __init__(self, temperature: Positive = 1000.0, eps: NotNegative = 0.0014) -> None:
        self.temperature, self.eps = temperature, eps

    @property
    def gradients(self) -> tuple[InputGradient, ...]:
        """That of log S of the prediction."""
        return (InputGradient(_GRADIENT, self._objective),) if self.eps else ()

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        """Nothing to learn."""
        return self

    def score(self, traces: Traces) -> Tensor:
        """Return float64 (n,)."""
        score = -self._objective(traces.logits.double())
        if self.eps:
            score = score - self.eps * traces.gradient(_GRADIENT).double().abs().flatten(1).sum(1)
        return score

    def surrogate(self, live: LiveTrace) -> Tensor:
        """Return the score itself, (n,), differentiated twice through the model.

        Raises:
            UsageError: where the live images carry no gradient.
        """
        value = self._objective(live.logits.double())
        if not self.eps:
            return -value
        if not live.images.requires_grad:
            raise UsageError("The surrogate of odin needs live images that require gradients.")
        (gradient,) = torch.autograd.grad(value.sum(), live.images, create_graph=True)
        return -value - self.eps * gradient.double().abs().flatten(1).sum(1)

    @property
    def _objective(self) -> Callable[[Tensor], Tensor]:
        return partial(_log_confidence, temperature=self.temperature)


def _log_confidence(logits: Tensor, temperature: float) -> Tensor:
    return (logits / temperature).log_softmax(1).amax(1)
