"""A black box on the detector's true score, and the worst case over every way to get past a detector."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from torch import Tensor

from ...harness.core.ranges import Count
from ...harness.core.seeds import Draws
from ..base.kinds import Effort
from ..base.perturbation import CountingModel, PerturbationInfo
from ..native.pgd import margin
from ..native.square import search
from .best_found import Best
from .pgd import Adaptive, Ball, FeatureMatching, MarginAttack, Relaxation, SurrogateAttack, target_of

# An attack that still brought images past the detector in its last quarter continues, at most this often, each time
# with
# twice the steps; in its own batch fewer images tell than in the flag `unconverged`, which stands on all of them.
_FURTHER = 2
_LATE_IMAGES, _LATE_SHARE = 2, 0.01


class ScoreSquare(Adaptive):
    """Minimise logits and true score together by random search (Square), without gradient or surrogate.

    What is minimised is max(0, −margin) plus the true score above the threshold in units of the detector's spread; an
    image at which both vanish is fooled and passes. The search begins at what other attacks found: a fooling image
    that is still flagged has half of the way behind it.

    Args:
        eps: the budget.
        queries: questions asked per image, at most; each is one forward and one score.
        norm: ``linf`` or ``l2``.
        images: number of evaluate images that are attacked, from the first on; ``None`` for all.
        large_eps: see :class:`~aftershock.attacks.adaptive.pgd.Adaptive`.

    Raises:
        UsageError: for a parameter out of range.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Square on the true score",
        kind="adaptive",
        family="adaptive-square",
        norm="linf",
        paper="after Andriushchenko, Croce, Flammarion, Hein 2020, arXiv:1912.00049",
        gradients=False,
        stochastic=True,
        cost="medium",
        summary="Random search that asks logits and the detector's true score; needs no surrogate.",
    )

    def __init__(
        self,
        eps: float,
        queries: Count = 500,
        norm: Ball = "linf",
        images: int | None = 200,
        large_eps: float | None = None,
    ) -> None:
        super().__init__(eps, norm, images, large_eps)
        self.queries = queries

    @property
    def part(self) -> str:
        """``search``."""
        return "search"

    @property
    def effort(self) -> Effort:
        """Queries."""
        return Effort(queries=self.queries)

    def improve(
        self, best: Best, rows: Tensor, model: CountingModel, clean: Tensor, labels: Tensor, draws: Draws
    ) -> None:
        target = target_of(model)
        # Beyond both boundaries by a hair: other batches round differently.
        slack = 1e-3

        def objective(searched: Tensor, images: Tensor, part: Tensor) -> Tensor:
            asked = searched[part]
            logits, score = target.query(model, images)
            lead = margin(logits, labels[asked])
            best.offer(asked, images, lead > 0, score, self.part)
            excess = (score - target.threshold) / target.scale + slack
            return (slack - lead).clamp_min(0) + excess.clamp_min(0).to(lead.dtype)

        for part, start in ((best.found[rows], best.images), (~best.found[rows], None)):
            chosen = rows[part]
            if len(chosen):
                search(
                    partial(objective, chosen), clean[chosen], self.eps, self._norm, self.queries,
                    draws.take(chosen.tolist()), start=None if start is None else start[chosen],
                )  # fmt: skip


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
            :class:`~aftershock.attacks.adaptive.pgd.SurrogateAttack`.
        restarts: runs of each gradient attack, the later ones from random starts and only for images that still
            stand: a detector that takes the nearest of many patterns has many local minima.
        images: number of evaluate images that are attacked, from the first on; ``None`` for all.
        large_eps: see :class:`~aftershock.attacks.adaptive.pgd.Adaptive`.

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
