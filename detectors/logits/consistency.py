"""Rejection by consistent prediction (Chen et al. 2023): does the prediction survive a small attack of its own?"""

from __future__ import annotations

from typing import Self

from torch import Tensor
from torch.nn.functional import one_hot

from ...harness.core.errors import UsageError
from ...harness.core.ranges import Count, Positive
from ...harness.tracing.extra_passes import Ascent, View
from ...harness.tracing.traces import LiveTrace, Traces
from ..base.detector import Detector, DetectorInfo

_VIEW = "attacked"


class ConsistentPrediction(Detector):
    """Minus the margin of the predicted class after a small attack on it: the largest other logit minus its own.

    The attack is PGD in L-inf from the image itself, on the cross-entropy of the class that is predicted for the image,
    and keeps the iterate with the largest loss; nothing is drawn. The paper rejects an image where the prediction
    changes, which is where this score is above 0; here the threshold is the protocol's, as for every detector, so that
    its rate of false alarms is that of the others. Nothing is fitted. The paper uses it with adversarially trained
    models; most predictions of others change within such a radius.

    The defaults are the authors' for CIFAR-10, SVHN and GTSRB; for MNIST they take eps = 0.1, steps = 20 and
    step_size = 0.01. The radius is meant to be smaller than the threat's.

    The surrogate is the score, with the inner perturbation held constant. Where the inner attack has found the maximum
    this is the gradient of the maximum (Danskin 1966); unrolling the attack adds nothing, since signs have no gradient.
    It is what the paper's adaptive attacks follow, too.

    Cost: ``steps`` backward passes and ``steps`` + 2 forward passes per image.

    Args:
        eps: radius of the inner attack, in units of [0, 1] pixels.
        steps: steps of the inner attack.
        step_size: of one step, in the same units.

    Raises:
        UsageError: for a parameter out of range.
    """

    info = DetectorInfo(
        title="Consistent prediction under a small attack",
        paper="Chen, Raghuram, Choi, Wu, Liang and Jha 2023, Stratified Adversarial Robustness with Rejection, "
        "arXiv 2305.01139",
        needs=(),
        surrogate="straight-through",
        summary="Whether the prediction survives a small attack of the detector's own, and by what margin.",
    )

    def __init__(self, eps: Positive = 0.0055, steps: Count = 10, step_size: Positive = 0.001) -> None:
        for name, value in (("eps", eps), ("step_size", step_size)):
            if value > 1:
                raise UsageError(f"{name} = {value!r}: pixels lie in [0, 1], so give at most 1 (is it {value:g}/255?).")
        self.eps, self.steps, self.step_size = eps, steps, step_size

    @property
    def views(self) -> tuple[View, ...]:
        """The image that the inner attack finds."""
        ascent = Ascent(_odds_against, self.eps, self.step_size, self.steps)
        return (View(_VIEW, differentiable=True, ascent=ascent),)

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        """Nothing to learn."""
        return self

    def score(self, traces: Traces) -> Tensor:
        """Return float64 (n,); above 0 where the prediction changes."""
        return _shortfall(traces.logits, traces.view(_VIEW).logits)

    def surrogate(self, live: LiveTrace) -> Tensor:
        """Return the score, float64 (n,), through the pass of the attacked image."""
        return _shortfall(live.logits, live.view(_VIEW).logits)


def _odds_against(logits: Tensor, reference: Tensor) -> Tensor:
    """Return the log-odds u of the other classes against the one that ``reference`` predicts, (n,).

    The cross-entropy of that class is log(1 + exp(u)), so both rise in the same directions; but of a confident model
    the gradient of the cross-entropy is 0 in float32, and the attack would not move.
    """
    own, others = _split(logits, reference.argmax(1))
    return others.logsumexp(1) - own


def _shortfall(logits: Tensor, attacked: Tensor) -> Tensor:
    own, others = _split(attacked.double(), logits.argmax(1))
    return others.amax(1) - own


def _split(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of some classes, (n,), and all with minus infinity in their place, (n, classes)."""
    others = logits.masked_fill(one_hot(classes, logits.shape[1]).bool(), float("-inf"))
    return logits.gather(1, classes.unsqueeze(1)).squeeze(1), others
