"""A minimum-norm attack with two constraints: fool the model, and pass the detector."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...base.geometry import ascent, per_image, steepness, step_within
from ...base.perturbation import CountingModel
from ...base.target import StandIn, TargetDetector
from ...native.pgd import margin
from ..iterative import gradient_of, scores_of
from ..pixels import Ball
from .shortest import Shortest

# Steps as a share of the radius, and by how much the radius changes, at the first and the last step.
_STEP, _CHANGE = (0.7, 0.02), (0.1, 0.003)
# The share of a new step in the next one; the rest repeats the last. In L-inf an optimum may lie between two signs.
_NEW = 0.5
# How fast a constraint's smoothed value follows, the largest multiplier, and by what the penalty of a constraint grows
# that was not met and did not improve within some steps (Rony et al. 2021, section 3).
_SMOOTHED, _MOST, _GROWTH, _PATIENCE = 0.9, 100.0, 1.5, 8
# What is aimed at beyond each boundary, and how far away a boundary counts at most, in shares of the radius.
_BEYOND, _FAR = 0.01, 3.0


@dataclass(frozen=True)
class AugmentedLagrangian:
    """Descends on both constraints' penalties within a ball whose radius shrinks while both hold.

    In the manner of ALMA (Rony, Granger, Pedersoli, Ben Ayed 2021, arXiv:2011.11857): a multiplier and a penalty for
    each image and constraint, set by smoothed values of the constraint. The distance is no term of the objective, as
    there, but a ball whose radius follows what is found, as in FMN (Pintor et al. 2021, arXiv:2102.12827), so that one
    attack serves L-inf, whose distance has no useful gradient, and L2.

    What a surrogate or stand-in says of the detector's constraint is corrected, image by image, by what the true scores
    of its iterates differ from it.

    Attributes:
        norm: ``linf`` or ``l2``.
        steps: of a run, each with one forward and two backward passes (one for a detector without suspicions).
        stand_in: what gives suspicions; ``None`` for the detector's own surrogate.
        part: what it is called as a part of another.
    """

    norm: Ball
    steps: int
    stand_in: StandIn | None = None
    part: str = "lagrangian"

    def run(
        self, shortest: Shortest, rows: Tensor, model: CountingModel, clean: Tensor, labels: Tensor, starts: Tensor,
        radius: Tensor, target: TargetDetector,
    ) -> None:  # fmt: skip
        """Search for some rows of a batch, and offer what is found.

        Args:
            shortest: what was found so far, of the whole batch.
            rows: which images, int64 (k,).
            model: to attack.
            clean: the images, (k, channels, height, width),
            labels: their classes, and
            starts: where the search starts.
            radius: of the first ball, (k,); where infinite, twice the distance at which a linear model would be fooled.
            target: the detector.
        """
        state = _State.at_start(len(rows), clean)
        images = before = starts
        for step in range(self.steps + 1):
            shown = images.detach().requires_grad_()
            with torch.enable_grad():
                found = target.observe(model.of(rows), shown, surrogate=self.stand_in is None)
                lead = margin(found.logits, labels)
                suspicion = found.suspicion if self.stand_in is None else self.stand_in(found)
                fooled = shortest.fools(rows, found.logits.detach())
                scores = scores_of(found, fooled, torch.inf)
                holds = shortest.offer(rows, shown.detach(), fooled, scores, self.part)
                if step == self.steps:
                    return
                outward = gradient_of(lead, shown, keep=suspicion is not None)
                quiet = torch.zeros_like(outward) if suspicion is None else gradient_of(-suspicion, shown)
            if step == 0:
                radius = torch.where(radius.isfinite(), radius, 2 * _linear(lead.detach(), outward, self.norm))
            direction = state.direction(lead.detach(), outward, suspicion, quiet, scores, radius, target, self.norm)
            done = (1 + math.cos(math.pi * step / self.steps)) / 2
            change = _CHANGE[1] + (_CHANGE[0] - _CHANGE[1]) * done
            size = _STEP[1] + (_STEP[0] - _STEP[1]) * done
            best = shortest.radius[rows]
            radius = torch.where(holds, torch.minimum(radius, best) * (1 - change), radius * (1 + change))
            radius = torch.minimum(radius, best)
            move = per_image(size * radius, shown) * ascent(direction, self.norm)
            here = shown.detach()
            mixed = _NEW * move + (1 - _NEW) * (here - before)
            before, images = here, step_within(here, mixed, clean, radius, self.norm)


def _linear(lead: Tensor, gradient: Tensor, norm: Ball) -> Tensor:
    """Return the distance at which margins (n,) would be 0 if the model were linear, at most half the range."""
    half = 0.5 if norm == "linf" else 0.5 * math.sqrt(gradient[0].numel())
    return (lead.abs() / _dual(gradient, norm)).clamp(1e-6, half)


def _dual(gradient: Tensor, norm: Ball) -> Tensor:
    """Return :func:`~...base.geometry.steepness`, above 0."""
    return steepness(gradient, norm).clamp_min(1e-12)


@dataclass(eq=False)
class _State:
    """Multipliers, penalties and smoothed values of both constraints, (2, n) each: the margin's, the detector's.

    Attributes:
        gap: by how much true scores lie above suspicions, (n,).
    """

    multiplier: Tensor
    penalty: Tensor
    smoothed: Tensor
    lowest: Tensor
    waited: Tensor
    gap: Tensor

    @classmethod
    def at_start(cls, n: int, like: Tensor) -> _State:
        ones = torch.ones(2, n, device=like.device)
        return cls(ones.clone(), ones.clone(), torch.zeros_like(ones), ones * torch.inf, 0 * ones, 0 * ones[0])

    def direction(
        self, lead: Tensor, outward: Tensor, suspicion: Tensor | None, quiet: Tensor, scores: Tensor, radius: Tensor,
        target: TargetDetector, norm: Ball,
    ) -> Tensor:  # fmt: skip
        """Return where both penalties fall fastest together, of the images' shape, and set the multipliers anew."""
        steep = _dual(outward, norm)
        # Each constraint in shares of the radius: how far its boundary lies, if it were a plane.
        values, uphill = [-lead / (steep * radius)], [outward / per_image(steep, outward)]
        if suspicion is not None:
            seen, steep = suspicion.detach(), _dual(quiet, norm)
            gap = (scores - seen).to(self.gap)
            self.gap = torch.where(scores.isfinite() & gap.isfinite(), gap, self.gap)
            values.append((seen + self.gap - target.threshold) / (steep * radius))
            uphill.append(quiet / per_image(steep, quiet))
        constraint = torch.zeros_like(self.smoothed)
        constraint[: len(values)] = _BEYOND + torch.stack([v.to(constraint) for v in values]).nan_to_num(0.0)
        constraint = constraint.clamp(-_FAR, _FAR)
        rate = (self.multiplier + self.penalty * constraint).clamp_min(0)
        self._learn(constraint)
        weighted = [per_image(r, u) * u for r, u in zip(rate, uphill, strict=False)]
        direction: Tensor = torch.stack(weighted).sum(0)
        return direction

    def _learn(self, constraint: Tensor) -> None:
        self.smoothed = _SMOOTHED * self.smoothed + (1 - _SMOOTHED) * constraint
        self.multiplier = (self.multiplier + self.penalty * self.smoothed).clamp(1e-3, _MOST)
        better = constraint < 0.95 * self.lowest
        self.lowest = torch.minimum(self.lowest, constraint)
        self.waited = torch.where(better | (constraint <= 0), 0, self.waited + 1)
        stuck = self.waited >= _PATIENCE
        self.penalty = torch.where(stuck, (_GROWTH * self.penalty).clamp_max(_MOST), self.penalty)
        self.waited = torch.where(stuck, 0, self.waited)
