"""Gradient attacks that know the detector: steps along a direction, each iterate judged by the detector's true score.

All of them keep, per image, the fooling iterate with the lowest true score (Bryniarski et al. 2021), stop working on an
image once that score is below the clean median, and draw only from the image's own generator. Losses here are to be
raised: the margin (positive once fooled), and minus the suspicion.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ...harness.core.batches import steps_between_looks
from ...harness.core.ranges import Count, Natural, Positive
from ...harness.core.seeds import Draws
from ..base.geometry import ascent, per_image, random_in_ball
from ..base.kinds import Effort
from ..base.perturbation import CountingModel
from ..base.target import Observation, TargetDetector
from ..native.pgd import margin
from .base import Adaptive, Ball, target_of
from .best_found import Best


class Iterative(Adaptive):
    """Signed (or normalised) steps along a direction that the subclass derives from one look."""

    def __init__(
        self,
        eps: float,
        steps: Count = 50,
        step_size: Positive | None = None,
        norm: Ball = "linf",
        restarts: Count = 1,
        images: int | None = 200,
        large_eps: float | None = None,
        first_run: Natural = 0,
    ) -> None:
        super().__init__(eps, norm, images, large_eps)
        self.steps = steps
        self.step_size = 2.5 * self.eps / self.steps if step_size is None else step_size
        self.restarts = restarts
        self.first_run = first_run

    @property
    def effort(self) -> Effort:
        """Steps and restarts; none for steps that cannot cross the budget."""
        return Effort(self.steps, self.restarts) if self.steps * self.step_size >= self.eps else Effort()

    def improve(
        self, best: Best, rows: Tensor, model: CountingModel, clean: Tensor, labels: Tensor, draws: Draws
    ) -> None:
        for run in range(self.first_run, self.first_run + self.restarts):
            rows = rows[(best.not_evaded if run else ~best.below_target)[rows]]
            if not len(rows):
                return
            self._run(best, rows, run, model, clean, labels, draws)

    def _run(
        self, best: Best, rows: Tensor, restart: int, model: CountingModel, clean: Tensor, labels: Tensor, draws: Draws
    ) -> None:
        target = target_of(model)
        images = clean[rows]
        if restart:
            own = draws.take(rows.tolist())
            images = (images + random_in_ball(images, self.eps, self._norm, own)).clamp_(0, 1)
        aims = self.aims(model, target, clean[rows], labels[rows], restart)
        every, going = steps_between_looks(clean.device), torch.ones_like(rows, dtype=torch.bool)
        for step in range(self.steps + 1):
            images = images.detach().requires_grad_()
            with torch.enable_grad():
                found = self.observe(model.of(rows), target, images, step)
                lead = margin(found.logits, labels[rows])
                fooled = (lead.detach() > 0) & going
                best.offer(rows, images.detach(), fooled, _scores(found, fooled), self.part, going)
                if step == self.steps:
                    return
                direction = self.direction(found, images, lead, target, aims)
            going = ~best.below_target[rows]
            moved = images.detach() + self.size(step) * ascent(direction, self._norm)
            # What is done stays where it is until it leaves.
            images = torch.where(per_image(going, images), self.inside(moved, clean[rows]), images.detach())
            if (step + 1) % every == 0:
                images, rows = images[going], rows[going]
                aims = {name: value[going] for name, value in aims.items()}
                going = going[going]
                if not len(rows):
                    return

    def size(self, step: int) -> float:
        """Return the length of a step: whole in the first half, then falling linearly to a tenth."""
        rest = (self.steps - step) / self.steps
        return self.step_size * max(0.1, min(1.0, 2 * rest))

    def observe(self, model: CountingModel, target: TargetDetector, images: Tensor, step: int) -> Observation:
        """Return one differentiable pass at a step."""
        return target.observe(model, images)

    def aims(
        self, model: CountingModel, target: TargetDetector, clean: Tensor, labels: Tensor, restart: int
    ) -> dict[str, Tensor]:
        """Return what stays the same for each image during a run, first axis n."""
        return {}

    @abstractmethod
    def direction(
        self, found: Observation, images: Tensor, lead: Tensor, target: TargetDetector, aims: dict[str, Tensor]
    ) -> Tensor:
        """Return where to go, of the images' shape; ``lead`` is the margin with its graph."""


def _scores(found: Observation, fooled: Tensor) -> Tensor:
    """Return true scores, float64 (n,); infinite, and not asked for, where nothing is fooled."""
    scores = torch.full(fooled.shape, torch.inf, dtype=torch.float64, device=fooled.device)
    if bool(fooled.any()):
        scores[fooled] = found.score(fooled)
    return scores


def gradient_of(values: Tensor, images: Tensor, keep: bool = False) -> Tensor:
    """Return the gradient of each image's own value; zero where it does not depend on the image or is not finite."""
    if not values.requires_grad:
        return torch.zeros_like(images)
    (found,) = torch.autograd.grad(values.sum(), images, retain_graph=keep, materialize_grads=True)
    return torch.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0)
