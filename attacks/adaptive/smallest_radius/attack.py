"""The smallest perturbation that fools the model and passes a detector, by search from both sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ....harness.core.ranges import Count
from ....harness.core.seeds import Draws
from ...base.geometry import project
from ...base.perturbation import CountingModel, PerturbationInfo
from ...base.target import TargetDetector
from ..base import InBall, target_of
from ..best_found import Best
from ..iterative import Iterative, Reach
from ..pixels import Ball
from ..portfolio import Portfolio
from ..rehearsal import leading
from ..surrogate import Surrogate
from .lagrangian import AugmentedLagrangian
from .shortest import Shortest

# A bracket is narrow enough at this ratio of its ends; a minimum-norm attack has nothing left to gain at this one.
_WIDTH, _FINE = 1.03, 1.005
# Multiples of a known perturbation that are asked about.
_MULTIPLES = (1.0, 1.03, 1.1, 1.25, 1.5, 2.0)
# Attacks below what was found, at most, how many parts each takes, and their steps as a share of the search's.
_ROUNDS, _PARTS, _SHARE = 6, 3, 2 / 3
# Runs of the minimum-norm attack, the first from the image itself, the others from what was found.
_RUNS = 3
# The part that a bracket always asks.
_ALWAYS = "margin"


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of one image before the search.

    Attributes:
        images: perturbed images that may fool and pass, (k, channels, height, width).
        floor: a distance at which nothing fools the model, as far as was found; 0 if unknown.
    """

    images: Tensor
    floor: float = 0.0


class SmallestRadius(InBall):
    """Searches for the smallest perturbation of each image that fools the model and passes the detector.

    First what is known is asked about: images of other attacks, and multiples of them. Then a minimum-norm attack with
    two constraints (:mod:`.lagrangian`) starts at the image and at what was found. Then the first parts of the worst
    case (:class:`~..worst_case.WorstCase`) attack at smaller budgets, from what was found: 3 % below, and where that
    succeeds further and further, then between what failed and what was found, until the two are 3 % apart. Distances
    are measured on the images found, never taken from a budget.

    Args:
        eps: the largest distance that counts.
        norm: ``linf`` or ``l2``.
        steps: of each gradient attack.
        known: what is known of images beforehand, by their positions in their split.
        follows: how well what an attack follows ranks like the true score, where a rehearsal looked at that.

    Attributes:
        alone: by the same positions, the distance of the nearest image found that fools, whether it passes or not.

    Raises:
        UsageError: for a parameter out of range.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Smallest undetected perturbation",
        kind="adaptive",
        family="adaptive",
        norm="linf",
        paper="Rony, Granger, Pedersoli, Ben Ayed 2021, Augmented Lagrangian Adversarial Attacks, arXiv:2011.11857",
        stochastic=True,
        cost="medium",
        summary="The smallest perturbation that fools the model and passes the detector.",
    )

    def __init__(
        self, eps: float, norm: Ball = "linf", steps: Count = 60, known: Mapping[int, Known] | None = None,
        follows: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(eps, norm)
        self.steps = steps
        self._known, self._follows = known or {}, follows or {}
        self.alone: dict[int, float] = {}

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """See the base; the result is the nearest image found, the clean one where there is none."""
        target = target_of(model)
        shortest = Shortest(images, labels, target, self.ball, self.eps)
        try:
            self._search(shortest, model, images, labels, draws)
        finally:
            model.credits = [shortest.parts[i] if i >= 0 else "" for i in shortest.by.tolist()]
            model.told, model.partial = shortest.score, shortest.images
            self.alone |= zip(draws.indices, shortest.alone.tolist(), strict=True)
        return shortest.images

    def _search(
        self, shortest: Shortest, model: CountingModel, clean: Tensor, labels: Tensor, draws: Draws
    ) -> None:  # fmt: skip
        every, target = torch.arange(len(clean), device=clean.device), target_of(model)
        known = [self._known.get(i, Known(clean[:0])) for i in draws.indices]
        floor = torch.tensor([one.floor for one in known], device=clean.device)
        self._ask_known(shortest, model, clean, known)
        shortest.draw_in(model, every, floor)
        searches = self._lagrangians(target)
        for number in range(_RUNS):
            search = searches[number % len(searches)]
            rows = every[self._open(shortest, floor)]
            if not len(rows):
                return
            starts, radius = shortest.images[rows] if number else clean[rows], shortest.radius[rows]
            search.run(shortest, rows, model, clean[rows], labels[rows], starts, radius, target)
            shortest.draw_in(model, rows, floor)
        self._bracket(shortest, floor, model, clean, labels, draws)

    @staticmethod
    def _open(shortest: Shortest, floor: Tensor) -> Tensor:
        """Which images may be moved less than was found, bool (n,)."""
        return shortest.radius > floor * _FINE

    def _ask_known(self, shortest: Shortest, model: CountingModel, clean: Tensor, known: list[Known]) -> None:
        most = max(len(one.images) for one in known)
        for number in range(most):
            having = [row for row, one in enumerate(known) if len(one.images) > number]
            rows = torch.tensor(having, device=clean.device)
            delta = torch.stack([known[row].images[number] for row in having]).to(clean) - clean[rows]
            # Multiples of the nearest, which comes first; what others found lies further away.
            for multiple in _MULTIPLES if number == 0 else (1.0,):
                shortest.ask(model, rows, (clean[rows] + multiple * delta).clamp(0, 1), "known")

    def _lagrangians(self, target: TargetDetector) -> list[AugmentedLagrangian]:
        """Return what leads past the detector, and after it a surrogate that may mislead."""
        own: list[Surrogate] = ["own"] if target.has_surrogate else []
        sources = dict.fromkeys([leading(target, self._follows) or "own", *own])
        return [
            AugmentedLagrangian(self.ball, self.steps)
            if source == "own"
            else AugmentedLagrangian(self.ball, self.steps, target.stand_ins[source], f"lagrangian-{source}")
            for source in sources
        ]

    def _bracket(
        self, shortest: Shortest, floor: Tensor, model: CountingModel, clean: Tensor, labels: Tensor, draws: Draws
    ) -> None:
        """Attack below what was found, further each time, and once that fails bisect between the two."""
        tested = torch.zeros_like(floor, dtype=torch.bool)
        low, leap = floor / _WIDTH, torch.full_like(floor, _WIDTH)
        for number in range(_ROUNDS):
            high = shortest.radius
            # Where nothing was found, the largest budget is tried once.
            missing = ~high.isfinite()
            rows = ((high > low * _WIDTH) & (~missing | (number == 0))).nonzero().flatten()
            if not len(rows):
                return
            below = torch.where(tested, (low * high).sqrt(), torch.maximum(high / leap, low))
            radii = torch.where(missing, torch.full_like(high, self.eps), below)
            passed = self._attacked(shortest, rows, radii, model, clean, labels, draws)[rows]
            low[rows] = torch.where(passed | missing[rows], low[rows], radii[rows])
            tested[rows] |= ~passed & ~missing[rows]
            leap[rows] = torch.where(passed, leap[rows].square(), leap[rows])

    def _attacked(
        self, shortest: Shortest, rows: Tensor, radii: Tensor, model: CountingModel, clean: Tensor, labels: Tensor,
        draws: Draws,
    ) -> Tensor:  # fmt: skip
        """Attack some rows within a radius each; returns which of all images were got past, bool (n,)."""
        target = target_of(model)
        starts = project(shortest.images, clean, radii, self.ball)
        best = Best(clean, target, enough=target.threshold)
        for attack in self._parts(target):
            standing = rows[best.not_evaded[rows]]
            if not len(standing):
                break
            attack.within(Reach(radii, starts)).improve(best, standing, model, clean, labels, draws)
        passed = best.found & ~best.not_evaded
        taken = passed.nonzero().flatten()
        if len(taken):
            kept = shortest.ask(model, taken, best.images[taken], "bracket")
            passed[taken] = kept
            shortest.draw_in(model, taken, torch.zeros_like(radii))
        return passed

    def _parts(self, target: TargetDetector) -> list[Iterative]:
        parts = Portfolio(self.eps, self.ball, "annealed").parts(target)
        order = list(dict.fromkeys([*(name for name in target.rehearsed if name in parts), *parts]))[: _PARTS - 1]
        steps = max(int(self.steps * _SHARE), 1)
        made = [parts[name](steps, 1, 0) for name in dict.fromkeys([*order, _ALWAYS])]
        return [attack for attack in made if isinstance(attack, Iterative)]
