"""The worst case over every way to get past a detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from ...harness.core.errors import UsageError
from ...harness.core.ranges import Count
from ...harness.core.seeds import Draws
from ..base.kinds import Effort
from ..base.perturbation import CountingModel, PerturbationInfo
from .base import Adaptive, target_of
from .best_found import Best
from .decision import DecisionAttack
from .pixels import Ball
from .portfolio import Portfolio
from .score_square import ScoreSquare
from .surrogate import Relaxation

# An attack that still brought images past the detector in its last quarter continues, at most this often, each time
# with twice the steps of its strongest parts; in its own batch fewer images tell than in the flag `unconverged`, which
# stands on all of them.
_FURTHER = 2
_LATE_IMAGES, _LATE_SHARE = 2, 0.01
# How many parts run again from random starts: those that run first, which a rehearsal found the strongest.
_REPEATED = 3
# How many parts run at all once a rehearsal has compared them, and those that do whatever it found.
_RUN, _ALWAYS = 8, ("margin", "feature-matching")


class WorstCase(Adaptive):
    """Every adaptive attack, one after the other, each on the images that still stand: the worst case per image.

    Gradient attacks on the margin, on the detector's surrogate, on stand-ins for its score (see :mod:`.stand_ins`) and
    on guides (feature matching), some of them driven to chosen classes or kept to what an image file can hold; then
    random search on the true score, and on the alarm alone. In a suite the order is found in a rehearsal on calibrate
    images, and the first few are repeated from random starts. Images that pass leave; what is kept of each image is
    the fooling iterate with the lowest true score.

    A detector without a usable surrogate may be attacked less strongly: read its robust accuracy as an upper bound.

    Args:
        eps: the budget.
        steps: steps of each gradient attack.
        queries: questions of each random search, per image.
        norm: ``linf`` or ``l2``.
        relaxation: ``annealed`` or ``straight-through``, see :class:`~.surrogate.SurrogateAttack`.
        restarts: runs of the first few gradient attacks, the later ones from random starts and only for images that
            still stand: a detector that takes the nearest of many patterns has many local minima.
        images: number of evaluate images that are attacked, from the first on; ``None`` for all.
        large_eps: see :class:`~.base.Adaptive`.
        only: names of the gradient attacks that run, as a run's tables credit them; by default all. For a look at one
            of them: the protocol's worst case is all of them.

    Raises:
        UsageError: for a parameter out of range, or where none of these parts applies to the detector.
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
        summary="Every gradient attack on score, stand-ins and guides, and two black boxes: the worst case per image.",
    )

    # The harness lets it learn of a detector beforehand (:mod:`.rehearsal`).
    rehearses: ClassVar[bool] = True

    def __init__(
        self,
        eps: float,
        steps: Count = 50,
        queries: Count = 1000,
        norm: Ball = "linf",
        relaxation: Relaxation = "annealed",
        restarts: Count = 3,
        images: int | None = 200,
        large_eps: float | None = None,
        only: Sequence[str] = (),
    ) -> None:
        super().__init__(eps, norm, images, large_eps)
        if isinstance(only, str):
            raise UsageError(f"only = {only!r}: give a list of parts.")
        self.only = tuple(only)
        self.steps = steps
        self.queries = queries
        self.relaxation: Relaxation = relaxation
        self.restarts = restarts

    @property
    def effort(self) -> Effort:
        """What is invested in an image that stands; one that converges late gets more."""
        return Effort(self.steps, self.restarts, 0 if self.only else self.queries)

    @property
    def portfolio(self) -> Portfolio:
        """Its gradient attacks."""
        return Portfolio(self.eps, self.ball, self.relaxation)

    def improve(
        self, best: Best, rows: Tensor, model: CountingModel, clean: Tensor, labels: Tensor, draws: Draws
    ) -> None:
        for further in range(_FURTHER + 1):
            for attack in self._attacks(model, further):
                standing = rows[best.not_evaded[rows]]
                if not len(standing):
                    return
                attack.improve(best, standing, model, clean, labels, draws)
            if best.late < max(_LATE_IMAGES, _LATE_SHARE * len(rows)):
                return

    def _attacks(self, model: CountingModel, further: int) -> list[Adaptive]:
        """Return the attacks of one round: those that go on have twice the steps each time, and starts of their own.

        Every part runs once, or the better ones where all were rehearsed; only the strongest are repeated and go on.
        """
        target = target_of(model)
        steps, queries, first = self.steps * 2**further, self.queries * 2**further, further * self.restarts
        parts = self.portfolio.parts(target)
        order = list(dict.fromkeys([*(name for name in target.rehearsed if name in parts), *parts]))
        if len(target.rehearsed) >= len(parts):
            order = [*order[:_RUN], *(name for name in order[_RUN:] if name in _ALWAYS)]
        if self.only:
            order = [name for name in order if name in self.only]
            if not order:
                raise UsageError(f"only = {list(self.only)}: against this detector there are {', '.join(parts)}.")
        strongest = order[:_REPEATED]
        made = [parts[name](steps, 1, first) for name in (strongest if further else order)]
        if self.restarts > 1:
            made += [parts[name](steps, self.restarts - 1, first + 1) for name in strongest]
        if self.only:
            return made
        eps, norm = self.eps, self.ball
        return [*made, ScoreSquare(eps, queries, norm=norm), DecisionAttack(eps, queries, norm=norm)]
