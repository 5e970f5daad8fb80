"""AutoPGD: projected gradient ascent that sets its own step sizes (Croce & Hein 2020; in L1, Croce & Hein 2021).

Every image keeps a step size, a best point and a history of its own, so nothing depends on what else is in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...harness.core.batches import steps_between_looks
from ...harness.core.ranges import Count, Fraction
from ...harness.core.seeds import Draws
from ..base import parameters as checks
from ..base.geometry import ascent, per_image, random_in_ball, step_within
from ..base.perturbation import CountingModel, Norm, Perturbation, PerturbationInfo
from .pgd import Ball, Loss, climb, objective, too_few_classes

AutoLoss = Literal["ce", "dlr", "margin", "dlr-targeted"]

# The share of a step that is taken; the rest repeats the step before (the paper's alpha).
NEW = 0.75
# The share of the steps between two checkpoints in which an objective should rise (the paper's rho).
RHO = 0.75

# In L1 (arXiv:2103.01208, algorithm 1): the share of the coordinates that the first steps move, how much fewer than
# its best point's they are afterwards, how often that is looked at, what counts as sparser than before, and how steps
# shrink.
_FIRST_SHARE, _SPARSER, _LOOK, _STILL_SPARSER, _SHRINK, _SMALLEST = 0.2, 1.5, 0.04, 0.95, 1.5, 0.1


def checkpoints(steps: int, norm: Norm = "linf") -> tuple[int, ...]:
    """Return the steps after which step sizes are reconsidered, ascending: 22 % of the steps, then ever more often.

    In L1, every 4 % of the steps.
    """
    if norm == "l1":
        every = max(int(_LOOK * steps), 1)
        return tuple(range(every, steps + 1, every))
    before, at, found = 0.0, 0.22, []
    while at <= 1:
        # Rounded first: 0.41 * 100 in binary lies above 41.
        found.append(math.ceil(round(at * steps, 6)))
        before, at = at, at + max(at - before - 0.03, 0.06)
    return tuple(sorted(set(found)))


@dataclass
class _Climbers:
    """What the images that still stand carry along, one row each; all but the images themselves (n,)."""

    rows: Tensor
    clean: Tensor
    labels: Tensor
    targets: Tensor
    images: Tensor
    previous: Tensor
    gradient: Tensor
    value: Tensor
    best: Tensor
    best_gradient: Tensor
    best_value: Tensor
    step: Tensor
    rises: Tensor
    best_at_checkpoint: Tensor
    halved_at_checkpoint: Tensor
    share: Tensor
    moved: Tensor
    fooled: Tensor

    def keep(self, mask: Tensor) -> None:
        """Drop the other images."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[mask])

    def take_first(self, result: Tensor, out: Tensor) -> None:
        """Put the present images that fool the model into ``result``, if none of theirs did before."""
        first = out & ~self.fooled
        result[self.rows] = torch.where(per_image(first, self.images), self.images, result[self.rows])
        self.fooled = self.fooled | out

    def record(self, value: Tensor, gradient: Tensor) -> None:
        """Take in the objective and its gradient at the present images."""
        self.rises = self.rises + (value > self.value)
        self.value, self.gradient = value, gradient
        better = value > self.best_value
        self.best_value = torch.where(better, value, self.best_value)
        self.best = torch.where(per_image(better, self.images), self.images, self.best)
        self.best_gradient = torch.where(per_image(better, gradient), gradient, self.best_gradient)

    def back_to_best(self, which: Tensor) -> None:
        """Go on from the best point, for those images."""
        back = per_image(which, self.images)
        self.images = torch.where(back, self.best, self.images)
        self.gradient = torch.where(back, self.best_gradient, self.gradient)
        self.value = torch.where(which, self.best_value, self.value)


class AutoPGD(Perturbation):
    """APGD: after a share of the steps that shrinks, an image halves its step if its objective rose in fewer than
    ``rho`` of them, or if neither the step nor the best objective changed since the last time; then it goes on from
    its best point.

    In L1 there is no momentum. A step moves the coordinates of the largest derivatives, in number two thirds of those
    that the best point so far has changed; every 4 % of the steps, where the best point has become sparser (by 5 %) an
    image goes on from there with steps of ``eps``, elsewhere its steps shrink by 1.5 down to a tenth of that. The
    projection is the exact one onto ball and range together, see :func:`~..base.geometry.project_l1_in_range`.

    Every iterate is looked at: an image keeps the first that fools the model (predicted as any other class) and
    leaves the batch, also for the restarts and targets to come; an image that nothing fools keeps the best point of
    its last run. Cost per image that stands: for each run ``steps`` forwards and backwards and one forward more, and
    one forward for the targets.

    Args:
        eps: the budget; 0 changes nothing.
        norm: ``linf``, ``l2`` or ``l1``.
        steps: steps of one run.
        restarts: runs per image, or per image and target, each from a point drawn uniformly in the ball (L1: from
            normal noise projected onto it).
        loss: ``ce``, ``dlr``, ``margin``, or ``dlr-targeted``: the targeted difference of logits ratio, towards one
            class after the other, the likeliest on the clean image first.
        targets: how many classes ``dlr-targeted`` tries, at most; the other losses do not use it.
        rho: the share of the steps in which the objective should rise, in (0, 1]; L1 does not use it.

    Raises:
        UsageError: for a parameter out of range.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="AutoPGD",
        kind="attack",
        family="pgd",
        norm="linf",
        paper="Croce & Hein 2020, arXiv:2003.01690; in L1 Croce & Hein 2021, arXiv:2103.01208",
        stochastic=True,
        cost="medium",
        summary="Projected gradient ascent with momentum that halves each image's step when it stops paying.",
    )

    def __init__(
        self,
        eps: float,
        norm: Ball = "linf",
        steps: Count = 100,
        restarts: Count = 1,
        loss: AutoLoss = "ce",
        targets: Count = 9,
        rho: Fraction = RHO,
    ) -> None:
        self._norm: Ball = norm
        self.eps: float = checks.budget(eps, norm)
        self.steps = steps
        self.restarts = restarts
        self.targeted = loss == "dlr-targeted"
        self.loss: Loss = "dlr" if loss == "dlr-targeted" else loss
        self.targets = targets
        self.rho = rho

    @property
    def norm(self) -> Norm:
        """The norm of the budget."""
        return self._norm

    def inapplicable(self, shape: tuple[int, int, int], classes: int) -> str | None:
        return too_few_classes(self.loss, classes, self.targeted)

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        result = images.clone()
        active = torch.arange(len(images), device=images.device)
        for targets in self._aims(model, images, labels):
            own = draws.take(active.tolist())
            aims = None if targets is None else targets[active]
            found, fooled = self._run(model.of(active), images[active], labels[active], aims, own)
            result[active] = found
            active = active[~fooled]
            if not len(active):
                break
        return result

    def _aims(self, model: CountingModel, images: Tensor, labels: Tensor) -> Iterator[Tensor | None]:
        """For each run the target classes (n,), or ``None`` for a run without."""
        if not self.targeted:
            yield from [None] * self.restarts
            return
        with torch.no_grad():
            logits = model(images)
        order = logits.scatter(1, labels[:, None], float("-inf")).argsort(dim=1, descending=True, stable=True)
        for rank in range(min(self.targets, logits.shape[1] - 1)):
            yield from [order[:, rank]] * self.restarts

    def _run(
        self, model: CountingModel, clean: Tensor, labels: Tensor, targets: Tensor | None, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """Return the result of one run, and which of its images fool the model."""
        result, fooled = clean.clone(), torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
        images = self._start(clean, draws)
        value, logits, gradient = climb(model, images, labels, self.loss, targets)
        at = _Climbers(
            rows=torch.arange(len(clean), device=clean.device),
            clean=clean, labels=labels, targets=labels if targets is None else targets,
            images=images, previous=images, gradient=gradient, value=value,
            best=images, best_gradient=gradient, best_value=value,
            step=torch.full_like(value, (1 if self._norm == "l1" else 2) * self.eps), rises=torch.zeros_like(value),
            best_at_checkpoint=value, halved_at_checkpoint=torch.ones_like(value, dtype=torch.bool),
            share=torch.full_like(value, _FIRST_SHARE), moved=torch.full_like(value, clean[0].numel()),
            fooled=fooled,
        )  # fmt: skip
        looks, looked, every = checkpoints(self.steps, self._norm), 0, steps_between_looks(clean.device)
        for step in range(1, self.steps + 1):
            at.take_first(result, logits.argmax(1) != at.labels)
            if step % every == 0 and bool(at.fooled.any()):
                fooled[at.rows] = at.fooled
                at.keep(~at.fooled)
                if not len(at.rows):
                    return result, fooled
            if step - 1 in looks:
                if self._norm == "l1":
                    self._reconsider_l1(at)
                else:
                    self._reconsider(at, step - 1 - looked)
                looked = step - 1
            # The first step has none before it to repeat.
            at.previous, at.images = at.images, self._next(at, 1.0 if step == 1 else NEW)
            aims, standing = None if targets is None else at.targets, model.of(at.rows)
            if step < self.steps:
                value, logits, gradient = climb(standing, at.images, at.labels, self.loss, aims)
            else:
                with torch.no_grad():
                    logits = standing(at.images)
                value, gradient = objective(logits, at.labels, self.loss, aims), at.gradient
            at.record(value, gradient)
        at.take_first(result, logits.argmax(1) != at.labels)
        result[at.rows] = torch.where(per_image(at.fooled, clean), result[at.rows], at.best)
        fooled[at.rows] = at.fooled
        return result, fooled

    def _start(self, clean: Tensor, draws: Draws) -> Tensor:
        if self._norm == "l1":
            # Uniform in the ball would change every coordinate by next to nothing.
            return step_within(clean, draws.normal(clean), clean, self.eps, "l1")
        return (clean + random_in_ball(clean, self.eps, self._norm, draws)).clamp_(0, 1)

    def _next(self, at: _Climbers, new: float) -> Tensor:
        """Return the papers' equation for x(k+1): a step, mixed with the one before, in the ball and the range."""
        step = per_image(at.step, at.images) * ascent(at.gradient, self._norm, at.share)
        reached = step_within(at.images, step, at.clean, self.eps, self._norm)
        if self._norm == "l1":
            return reached
        mixed = new * (reached - at.images) + (1 - new) * (at.images - at.previous)
        return step_within(at.images, mixed, at.clean, self.eps, self._norm)

    def _reconsider(self, at: _Climbers, steps: int) -> None:
        """At a checkpoint, ``steps`` after the last: halve the steps that do not pay and go back to the best point."""
        unchanged = ~at.halved_at_checkpoint & (at.best_value <= at.best_at_checkpoint)
        halve = (at.rises < self.rho * steps) | unchanged
        at.step = torch.where(halve, at.step / 2, at.step)
        at.back_to_best(halve)
        at.halved_at_checkpoint, at.best_at_checkpoint = halve, at.best_value
        at.rises = torch.zeros_like(at.rises)

    def _reconsider_l1(self, at: _Climbers) -> None:
        """At a checkpoint: as many coordinates as the best point suggests, with long steps while it becomes sparser."""
        moved = (at.best != at.clean).flatten(1).sum(1).to(at.moved)
        sparser = moved < _STILL_SPARSER * at.moved
        at.share = moved / (_SPARSER * max(at.clean[0].numel(), 1))
        at.step = torch.where(sparser, self.eps, (at.step / _SHRINK).clamp_min(_SMALLEST * self.eps))
        at.back_to_best(sparser)
        at.moved = moved
