"""The worst case over every way to get past a detector."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ...harness.core.ranges import Count
from ...harness.core.seeds import Draws
from ..base.kinds import Effort
from ..base.perturbation import CountingModel, PerturbationInfo
from .base import Adaptive, Ball, target_of
from .best_found import Best
from .feature_matching import FeatureMatching
from .score_square import ScoreSquare
from .surrogate import MarginAttack, Relaxation, SurrogateAttack

# An attack that still brought images past the detector in its last quarter continues, at most this often, each time
# with twice the steps; in its own batch fewer images tell than in the flag `unconverged`, which stands on all of them.
_FURTHER = 2
_LATE_IMAGES, _LATE_SHARE = 2, 0.01


class WorstCase(Adaptive):
    """Every adaptive attack, one after the other, each on the images that still stand: the worst case per image.

    Selective and orthogonal PGD on the surrogate (PGD on the margin for a detector without one), feature matching, and
    random search on the true score. A detector without a usable surrogate is attacked less strongly: read its robust
    accuracy as an upper bound.

    Args:
        eps: the budget.
        steps: steps of each gradient attack.
        queries: questions of the random search, per image.
        norm: ``linf`` or ``l2``.
        relaxation: ``annealed`` or ``straight-through``, see
            :class:`~aftershock.attacks.adaptive.surrogate.SurrogateAttack`.
        restarts: runs of each gradient attack, the later ones from random starts and only for images that still
            stand: a detector that takes the nearest of many patterns has many local minima.
        images: number of evaluate images that are attacked, from the first on; ``None`` for all.
        large_eps: see :class:`~aftershock.attacks.adaptive.base.Adaptive`.

    Raises:
        UsageError: for a parameter out of range.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Adaptive worst case",
        kind="adaptive",
        family="adaptive",
        norm="linf",
        paper="Tramer, Carlini, Brendel, Madry 2020, On Adaptive Attacks to Adversarial Example Defenses, "
        "arXiv:2002.08347",
        stochastic=True,
        cost="medium",
        summary="PGD on the surrogate, feature matching, a black box on the true score: the worst case per image.",
    )

    def __init__(
        self,
        eps: float,
        steps: Count = 50,
        queries: Count = 100,
        norm: Ball = "linf",
        relaxation: Relaxation = "annealed",
        restarts: Count = 3,
        images: int | None = 200,
        large_eps: float | None = None,
    ) -> None:
        super().__init__(eps, norm, images, large_eps)
        self.steps = steps
        self.queries = queries
        self.relaxation: Relaxation = relaxation
        self.restarts = restarts

    @property
    def effort(self) -> Effort:
        """What is invested in an image that stands; one that converges late gets more."""
        return Effort(self.steps, self.restarts, self.queries)

    def improve(
        self, best: Best, rows: Tensor, model: CountingModel, clean: Tensor, labels: Tensor, draws: Draws
    ) -> None:
        surrogate = target_of(model).has_surrogate
        for further in range(_FURTHER + 1):
            for attack in self._attacks(surrogate, further):
                attack.improve(best, rows[best.not_evaded[rows]], model, clean, labels, draws)
            if best.late < max(_LATE_IMAGES, _LATE_SHARE * len(rows)):
                return

    def _attacks(self, surrogate: bool, further: int) -> tuple[Adaptive, ...]:
        """Return the attacks of one round: those that go on have twice the steps each time, and starts of their own."""
        eps, norm, relaxation = self.eps, self._norm, self.relaxation
        steps, queries = self.steps * 2**further, self.queries * 2**further
        runs = {"restarts": self.restarts, "first_run": further * self.restarts}
        # Without a surrogate nothing else looks for the classifier's own boundary.
        first: tuple[Adaptive, ...] = (MarginAttack(eps, steps, norm=norm, **runs),)
        if surrogate:
            first = (
                SurrogateAttack(eps, "selective", steps, norm=norm, relaxation=relaxation, **runs),
                SurrogateAttack(eps, "orthogonal", steps, norm=norm, relaxation=relaxation, **runs),
            )
        return (*first, FeatureMatching(eps, steps, norm=norm, **runs), ScoreSquare(eps, queries, norm=norm))
