"""The parts of the worst case: every way to get past a detector, each by the name that it is known by afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..base.target import TargetDetector
from .base import Adaptive
from .feature_matching import FeatureMatching
from .pixels import Ball
from .surrogate import STAND_INS, MarginAttack, Relaxation, Surrogate, SurrogateAttack

# A part with this much effort: steps of a run, runs, and the number of the first.
Part = Callable[[int, int, int], Adaptive]


@dataclass(frozen=True)
class Portfolio:
    """Makes the gradient attacks that apply to a detector.

    Attributes:
        eps: the budget.
        norm: ``linf`` or ``l2``.
        relaxation: of the detector's own surrogate.
    """

    eps: float
    norm: Ball
    relaxation: Relaxation

    def parts(self, target: TargetDetector) -> Mapping[str, Part]:
        """Return what makes each part, in the order in which they run unless a rehearsal knows a better one."""
        return {make(1, 1, 0).part: make for make in self._all(target)}

    def _all(self, target: TargetDetector) -> Iterator[Part]:
        halving: dict[str, Any] = {"pace": "halving"}
        sources = [name for name in STAND_INS if name in target.stand_ins]
        if target.has_surrogate:
            yield self._surrogate("selective", "own")
            yield self._surrogate("orthogonal", "own")
            yield self._surrogate("joint", "own", **halving)
        yield self._margin()
        yield self._matching("logits")
        for name in sources:
            yield self._surrogate("joint", name, **halving)
        yield self._matching("codes")
        best: Surrogate = "own" if target.has_surrogate else [*sources, "own"][0]
        if target.has_surrogate or sources:
            yield self._surrogate("joint", best, **halving, aim="likeliest")
            yield self._surrogate("joint", best, **halving, aim="quietest")
            yield self._surrogate("selective", best, pixels="8-bit")
            yield self._surrogate("selective", best, pixels="varying")
        if not target.has_surrogate:
            yield self._margin(**halving, aim="likeliest")
            yield self._margin(pixels="8-bit")
            yield self._margin(pixels="varying")
        else:
            other: Relaxation = "annealed" if self.relaxation == "straight-through" else "straight-through"
            yield self._surrogate("selective", "own", relaxation=other)

    def _surrogate(self, method: Any, surrogate: Surrogate, **more: Any) -> Part:
        how = {"relaxation": self.relaxation, **more}
        return lambda steps, restarts, first: SurrogateAttack(
            self.eps, method, steps, norm=self.norm, restarts=restarts, first_run=first, surrogate=surrogate, **how
        )

    def _margin(self, **more: Any) -> Part:
        return lambda steps, restarts, first: MarginAttack(
            self.eps, steps, norm=self.norm, restarts=restarts, first_run=first, **more
        )

    def _matching(self, near: Any) -> Part:
        return lambda steps, restarts, first: FeatureMatching(
            self.eps, steps, norm=self.norm, restarts=restarts, first_run=first, near=near
        )
