"""The smallest change of an image that a detector flags although the model is still right about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from ...harness.core.ranges import Count
from ...harness.core.seeds import Draws
from ..base.geometry import ascent, per_image, project, steepness, step_within
from ..base.kinds import QUARTER
from ..base.perturbation import CountingModel, PerturbationInfo, norms
from ..base.target import TargetDetector
from ..native.pgd import margin
from ..native.square import search
from .base import InBall, target_of
from .best_found import Found
from .iterative import gradient_of, scores_of
from .pixels import Ball
from .rehearsal import trusts
from .surrogate import STAND_INS, Relaxation, Surrogate, followed, temperature
from .worst_case import WorstCase

# A walk begins in a ball of this share of the budget, which grows with each step until something is flagged, or it is
# the whole budget after this share of the steps; then it is smaller than the best radius, at first by the one share, at
# last by the other.
_FIRST, _GROWING = 1 / 8, 0.3
_CLOSER, _CLOSEST = 0.3, 0.005
# Steps in units of the ball, at first and at last.
_LONG, _SHORT = 1.0, 0.4
# What shall be left of the margin, as a share of what the ball can take away, at first and at last; and halvings that
# find how to keep it.
_SAFE, _SAFEST, _HALVINGS = 0.03, 0.001, 8
# Halvings of the way from the clean image to what was found.
_BISECTIONS = 6
# What the search invests: the worst case's steps of all runs and its queries, divided by these.
_STEPS, _QUERIES = 6, 12
# What a random search asks for beyond both boundaries: other batches round differently.
_SLACK = 1e-3


Source = Literal[Surrogate, "boundary"]


class FalseAlarm(InBall):
    """Raise a detector's score until the image is flagged, keep the prediction, and shrink what was found.

    A walk goes to where the suspicion is highest and the prediction kept, by the gradients of suspicion and margin (for
    linear ones exactly), in a ball that grows until the true score is above the threshold, and then shrinks. Images for
    which that is not enough get another walk, by the next source of gradients: after the detector's own surrogate those
    of which nothing is flagged, else those not flagged within a quarter of the budget. There and in the whole budget a
    random search on the true score (Square) looks for the others. At last the way to what was found is halved. Kept is
    the smallest change that is flagged by the true score and after which the model is right: its size is an upper bound
    of the smallest there is. An image of which none was found comes back as it was.

    Args:
        eps: the budget, the largest radius that is looked at.
        steps: steps of each walk.
        queries: questions of each of the two random searches, per image.
        norm: ``linf`` or ``l2``.
        relaxation: see :class:`~.surrogate.SurrogateAttack`.
        sources: of gradients, in this order: the detector's ``own`` surrogate, stand-ins by name, or the model's
            ``boundary``, near which many detectors flag.

    Raises:
        UsageError: for a parameter out of range, or a detector without such a source.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="False alarm",
        kind="adaptive",
        family="false-alarm",
        norm="linf",
        paper="after Chen, Raghuram, Choi, Wu, Liang, Jha 2023, arXiv:2305.01139, and Pintor, Roli, Brendel, Biggio "
        "2021, arXiv:2102.12827",
        stochastic=True,
        cost="medium",
        summary="The smallest change that is flagged although the prediction is right.",
    )

    def __init__(
        self, eps: float, steps: Count = 50, queries: Count = 100, norm: Ball = "linf",
        relaxation: Relaxation = "annealed", sources: Sequence[Source] = ("own",),
    ) -> None:  # fmt: skip
        super().__init__(eps, norm)
        self.steps, self.queries = steps, queries
        self.relaxation: Relaxation = relaxation
        self.sources = tuple(sources)

    @classmethod
    def beside(cls, worst: WorstCase, target: TargetDetector, follows: Mapping[str, float]) -> Self:
        """Return the search that suits an attack: its budget, norm and relaxation, and a small share of its effort.

        Args:
            worst: the attack.
            target: the detector.
            follows: how well what the attack follows ranks like the true score, where its rehearsal looked at that.
        """
        learned = [name for name in STAND_INS if name in target.stand_ins][:1]
        sources: tuple[Source, ...] = ("own", *learned) if trusts(target, follows) else (*learned, "boundary")
        steps, queries = max(worst.steps * worst.restarts // _STEPS, 1), max(worst.queries // _QUERIES, 1)
        return cls(worst.eps, steps, queries, worst.ball, worst.relaxation, sources)

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """See the base."""
        found = Found(images)
        try:
            enough = self.eps if self.sources[0] == "own" else self._quarter
            for source in self.sources:
                self._walk(found, (found.value > enough).nonzero().squeeze(1), source, model, images, labels)
            for eps in (self._quarter, self.eps):
                rows = (found.value > eps).nonzero().squeeze(1)
                self._search(found, rows, eps, model, images, labels, draws)
            self._halve(found, model, images, labels)
        finally:
            # Also where a limit ends it: what was found by then counts.
            made = torch.where(per_image(found.found, images), found.images, images)
            model.partial = made
        return made

    @property
    def _quarter(self) -> float:
        return self.eps * QUARTER

    def _walk(
        self, found: Found, rows: Tensor, source: Source, model: CountingModel, clean: Tensor, labels: Tensor
    ) -> None:
        if not len(rows):
            return
        target, clean, labels, images = target_of(model), clean[rows], labels[rows], clean[rows]
        straight = self.relaxation == "straight-through"
        for step in range(self.steps + 1):
            share = step / self.steps
            shown = images.detach().requires_grad_()
            with torch.enable_grad():
                seen = target.observe(model.of(rows), shown, temperature(share), straight, surrogate=source == "own")
                lead = -margin(seen.logits, labels)
                kept = lead.detach() > 0
                # They pass, and are not asked for, where the prediction is another.
                score = scores_of(seen, kept, -torch.inf)
                self._offer(found, rows, shown.detach(), clean, kept, score, target)
                if step == self.steps:
                    return
                inward = gradient_of(lead, shown, keep=True)
                suspicion = -lead if source == "boundary" else followed(seen, target, source, self.info.family)
                louder = gradient_of(suspicion, shown)
            told = torch.where(kept, score, suspicion.detach().double())
            gap = (target.threshold - told).float()
            here = _Linear(louder, inward, lead.detach(), shown.detach() - clean, self.ball)
            safe = _SAFE * (1 - share) + _SAFEST * share
            ball = self._ball(found.value[rows].float(), step)
            change = here.best(ball, safe)
            if step % 2:
                needed = here.radius(change, gap)
                ball = torch.where(needed.isfinite(), needed.clamp(ball / 2, ball), ball)
            end = clean + per_image(ball, clean) * change
            moved = (_LONG + (_SHORT - _LONG) * share) * (end - images)
            images = step_within(images, moved, clean, ball, self.ball)

    def _ball(self, radius: Tensor, step: int) -> Tensor:
        """Return the radius of the next ball of each image, (n,), from the best radius so far."""
        grown = step / (_GROWING * self.steps)
        closer = _CLOSER * (_CLOSEST / _CLOSER) ** (step / self.steps)
        return torch.where(radius.isfinite(), radius * (1 - closer), self.eps * min(_FIRST ** (1 - grown), 1.0))

    def _search(
        self, found: Found, rows: Tensor, eps: float, model: CountingModel, clean: Tensor, labels: Tensor, draws: Draws
    ) -> None:
        if not len(rows):
            return
        target = target_of(model)

        def objective(images: Tensor, part: Tensor) -> Tensor:
            asked = rows[part]
            logits, score = target.query(model, images)
            lead = -margin(logits, labels[asked])
            self._offer(found, asked, images, clean[asked], lead > 0, score, target)
            missing = ((target.threshold - score) / target.scale + _SLACK).nan_to_num(nan=-1.0, posinf=1e6, neginf=-1.0)
            return (_SLACK - lead).clamp_min(0) + missing.clamp_min(0).to(lead.dtype)

        start = project(found.images[rows], clean[rows], eps, self.ball)
        search(objective, clean[rows], eps, self.ball, self.queries, draws.take(rows.tolist()), start=start)

    def _halve(self, found: Found, model: CountingModel, clean: Tensor, labels: Tensor) -> None:
        """Look for the boundary on the way from the clean image to what was found."""
        rows = found.found.nonzero().squeeze(1)
        if not len(rows):
            return
        target, clean, labels, way = target_of(model), clean[rows], labels[rows], found.images[rows] - clean[rows]
        low, high = torch.zeros(len(rows), device=clean.device), torch.ones(len(rows), device=clean.device)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            images = clean + per_image(middle, way) * way
            logits, score = target.query(model, images)
            kept = -margin(logits, labels) > 0
            self._offer(found, rows, images, clean, kept, score, target)
            reached = kept & _flagged(score, target)
            low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)

    def _offer(
        self, found: Found, rows: Tensor, images: Tensor, clean: Tensor, kept: Tensor, score: Tensor,
        target: TargetDetector,
    ) -> None:  # fmt: skip
        radius = norms(images - clean)[self.ball].double()
        # Rounding may leave the budget by a hair, which is measured afterwards.
        found.keep(rows, images, kept & _flagged(score, target), radius)


@dataclass(frozen=True, eq=False)
class _Linear:
    """Suspicion and margin about an image, as their gradients have them.

    Attributes:
        louder: gradient of the suspicion, (n, channels, height, width).
        inward: gradient of the margin of the true class, likewise.
        lead: that margin, (n,).
        moved: what the image differs from the clean one by.
        norm: of the ball.
    """

    louder: Tensor
    inward: Tensor
    lead: Tensor
    moved: Tensor
    norm: Ball

    def best(self, ball: Tensor, safe: float) -> Tensor:
        """Return the change in the unit ball after which the suspicion is highest while the prediction is kept.

        Exact for these gradients: steepest ascent of both, weighted by the Lagrangian's multiplier, and of two
        neighbouring weights the mixture that meets the boundary. Where none keeps the prediction, it is where the
        margin grows.

        Args:
            ball: by which it will be multiplied, (n,).
            safe: what shall be left of the margin, as a share of what the ball can take away.
        """
        louder, unit = ascent(self.louder, "l2"), ascent(self.inward, "l2")
        most = ball * steepness(self.inward, self.norm)
        start = self.lead - _inner(self.inward, self.moved) - safe * most

        def change(weight: Tensor) -> Tensor:
            return ascent((1 - per_image(weight, louder)) * louder + per_image(weight, unit) * unit, self.norm)

        def left(changed: Tensor) -> Tensor:
            return start + ball * _inner(self.inward, changed)

        low, high = torch.zeros_like(start), torch.ones_like(start)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            kept = left(change(middle)) >= 0
            low, high = torch.where(kept, low, middle), torch.where(kept, middle, high)
        free, bound = change(torch.zeros_like(low)), change(high)
        free = torch.where(per_image(left(free) >= 0, free), free, change(low))
        short, over = left(free), left(bound)
        share = torch.where(short < 0, short / (short - over).clamp_max(-1e-12), 0.0).clamp(0, 1)
        return free + per_image(share, free) * (bound - free)

    def radius(self, change: Tensor, gap: Tensor) -> Tensor:
        """Return by what a change has to be multiplied for the suspicion to rise by ``gap`` (n,) more, (n,)."""
        return (gap + _inner(self.louder, self.moved)) / _inner(self.louder, change).clamp_min(0)


def _inner(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).flatten(1).sum(1)


def _flagged(score: Tensor, target: TargetDetector) -> Tensor:
    """Return which images are flagged, bool (n,): NaN flags, too."""
    return ~(score <= target.threshold)
