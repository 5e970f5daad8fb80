"""One image that fools a model and passes several detectors at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from ...harness.core.ranges import Count
from ...harness.core.seeds import Draws
from ..base.geometry import ascent, per_image, random_in_ball
from ..base.perturbation import CountingModel, PerturbationInfo
from ..base.target import TargetDetector
from ..native.pgd import margin
from .base import InBall
from .best_found import Found
from .iterative import gradient_of, scores_of
from .paces import FallingSteps
from .pixels import Ball
from .rehearsal import leading
from .surrogate import Relaxation, Surrogate, followed, temperature
from .worst_case import WorstCase

# How far beyond a boundary an iterate shall get, in units of the detector's spread or of the clean margin.
_SLACK = 0.02
# The rate of the weights, what the last look counts besides, and the least weight's logit below the largest.
_RATE, _LOOK, _LEAST = 0.5, 3.0, -8.0
# What a search invests: the worst case's steps of all runs, divided by this, and one run for so many of its queries, at
# most as many.
_STEPS, _QUERIES, _RUNS = 6, 50, 16


@dataclass(frozen=True, eq=False)
class Opponent:
    """A detector, and what leads past it.

    Attributes:
        target: the detector with its threshold.
        source: of gradients: its ``own`` surrogate, or a stand-in by name; ``None`` where there is neither.
    """

    target: TargetDetector
    source: Surrogate | None

    @classmethod
    def of(cls, target: TargetDetector, follows: Mapping[str, float]) -> Opponent:
        """Return a detector with its surrogate, or where that does not follow the score what was learned of it.

        Args:
            target: the detector.
            follows: how well what an attack follows ranks like the true score, where a rehearsal looked at that.
        """
        return cls(target, leading(target, follows))

    def excess(self, score: Tensor) -> Tensor:
        """Return how far scores (n,) lie above the threshold, in units of the clean spread; NaN counts as far above."""
        return ((score.double() - self.target.threshold) / self.target.scale).nan_to_num(nan=torch.inf)


class PastAll(InBall):
    """Min-max over detectors: the image whose worst detector is least suspicious, among those that fool the model.

    Each image has a weight for the model and for each detector, on the simplex. In a step a weight grows
    exponentially with what is missing there (multiplicative weights: Wang et al. 2021, arXiv:1906.03563), and the image
    goes along the sum of the unit gradients so weighted. The true scores of all detectors decide; an image that passes
    all of them is done. Runs begin at the best of some starts; without any, the first at the image itself, later ones
    at random.

    Args:
        opponents: the detectors.
        eps: the budget.
        steps: steps of each run.
        restarts: runs, at most.
        norm: ``linf`` or ``l2``.
        relaxation: see :class:`~.surrogate.SurrogateAttack`.
        starts: by the position of an image in its split, where a run may begin within the budget, (k, channels, height,
            width).
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Past all detectors",
        kind="adaptive",
        family="past-all",
        norm="linf",
        paper="Wang, Zhang, Liu, Chen, Xu, Fardad, Li 2021, Adversarial Attack Generation Empowered by Min-Max "
        "Optimization, arXiv:1906.03563",
        stochastic=True,
        cost="medium",
        summary="One image that fools the model and passes every detector.",
    )

    def __init__(
        self, opponents: Sequence[Opponent], eps: float, steps: Count = 50, restarts: Count = 2, norm: Ball = "linf",
        relaxation: Relaxation = "annealed", starts: Mapping[int, Tensor] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(eps, norm)
        self.opponents, self.steps, self.restarts = tuple(opponents), steps, restarts
        self.relaxation: Relaxation = relaxation
        self.starts = starts or {}

    @classmethod
    def beside(cls, worst: WorstCase, opponents: Sequence[Opponent], starts: Mapping[int, Tensor]) -> Self:
        """Return the search that suits an attack on one detector: its budget, norm, relaxation, and part of its effort.

        Args:
            worst: the attack.
            opponents: the detectors.
            starts: see the class.
        """
        steps = max(worst.steps * worst.restarts // _STEPS, 1)
        runs = min(max(worst.queries // _QUERIES, 1), _RUNS)
        return cls(opponents, worst.eps, steps, runs, worst.ball, worst.relaxation, starts)

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """See the base."""
        found = Found(images)
        try:
            begun = self._begin(found, model, images, labels, draws)
            for run in range(self.restarts):
                rows = (found.value > 0).nonzero().squeeze(1)
                if len(rows):
                    self._run(found, rows, begun[run][rows], model, images[rows], labels[rows])
        finally:
            # Also where a limit ends it: what was found by then counts.
            model.partial = found.images
        return found.images

    def _begin(
        self, found: Found, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws
    ) -> list[Tensor]:  # fmt: skip
        """Ask all detectors about the starts; return where each run begins, the best first, then images at random."""
        own = [self.starts.get(position, images[:0].cpu()) for position in draws.indices]
        most = max((len(of) for of in own), default=0)
        # An image with fewer starts than others begins at itself where they begin at more.
        begun = [torch.stack([of[k] if k < len(of) else c.cpu() for of, c in zip(own, images, strict=True)]).to(images)
                 for k in range(most)]  # fmt: skip
        ranked = torch.full((most, len(images)), torch.inf, dtype=torch.float64, device=images.device)
        rows = torch.arange(len(images), device=images.device)
        for k, start in enumerate(begun):
            asked = [o.target.query(model, start) for o in self.opponents]
            fooled = margin(asked[0][0], labels) > 0
            worst = torch.stack([o.excess(score) for o, (_, score) in zip(self.opponents, asked, strict=True)]).amax(0)
            found.keep(rows, start, fooled, worst)
            ranked[k] = torch.where(fooled, worst, torch.inf)
        order = ranked.argsort(dim=0, stable=True)
        chosen = [torch.stack(begun)[order[k], rows] for k in range(min(most, self.restarts))]
        while len(chosen) < self.restarts:
            moved = random_in_ball(images, self.eps, self.ball, draws) if chosen else torch.zeros_like(images)
            chosen.append((images + moved).clamp_(0, 1))
        return chosen

    def _run(
        self, found: Found, rows: Tensor, images: Tensor, model: CountingModel, clean: Tensor, labels: Tensor
    ) -> None:  # fmt: skip
        with torch.no_grad():
            unit = (-margin(model(clean), labels)).clamp_min(1e-3)
        weights = torch.zeros(len(rows), len(self.opponents) + 1, device=clean.device)
        walk = FallingSteps(images, clean, self.eps, self.ball, self.steps, 2.5 * self.eps / self.steps)
        for step in range(self.steps + 1):
            shown = walk.images.detach().requires_grad_()
            missing, gradients, worst, fooled = self._look(model.of(rows), shown, labels, unit, step)
            found.keep(rows, shown.detach(), fooled, worst)
            if step == self.steps:
                return
            weights = weights + _RATE * missing
            weights = (weights - weights.amax(1, keepdim=True)).clamp_min(_LEAST)
            shares = (weights + _LOOK * missing).softmax(1)
            direction = sum((per_image(shares[:, i], g) * g for i, g in enumerate(gradients)), torch.zeros_like(clean))
            going = found.value[rows] > 0
            walk.move(step, direction, -worst, going)
            walk.keep(going)
            rows, clean, labels, unit, weights = (t[going] for t in (rows, clean, labels, unit, weights))
            if not len(rows):
                return

    def _look(
        self, model: CountingModel, images: Tensor, labels: Tensor, unit: Tensor, step: int
    ) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
        """Return what one look at all detectors shows.

        Returns:
            what is missing at the model and at each detector, cut off at 1 and -1, (n, 1 + detectors); the unit
            directions in which that falls; the largest excess of a true score, float64 (n,), infinite where nothing is
            fooled; and which images are fooled, bool (n,).
        """
        straight, heat = self.relaxation == "straight-through", temperature(step / self.steps)
        missing, gradients, excesses = list[Tensor](), list[Tensor](), list[Tensor]()
        fooled = torch.zeros_like(labels, dtype=torch.bool)
        for opponent in self.opponents:
            target, source = opponent.target, opponent.source
            with torch.enable_grad():
                seen = target.observe(model, images, heat, straight, surrogate=source == "own")
                lead = margin(seen.logits, labels)
                if not missing:
                    fooled = lead.detach() > 0
                    missing.append(_SLACK - lead.detach() / unit)
                    gradients.append(gradient_of(lead, images, keep=True))
                followed_by = None if source is None else followed(seen, target, source, self.info.family)
                silent = torch.zeros_like(images)
                gradients.append(silent if followed_by is None else gradient_of(-followed_by, images, keep=False))
            excesses.append(opponent.excess(scores_of(seen, fooled, torch.inf)))
            guess = excesses[-1] if followed_by is None else opponent.excess(followed_by.detach())
            missing.append(torch.where(fooled, excesses[-1], guess).float() + _SLACK)
        found = torch.stack(missing, 1).clamp(-1, 1)
        return found, [ascent(g, "l2") for g in gradients], torch.stack(excesses).amax(0), fooled
