"""Gradient attacks that know the detector: steps along a direction, each iterate judged by the detector's true score.

All of them keep, per image, the fooling iterate with the lowest true score (Bryniarski et al. 2021), stop working on an
image once that score is below the clean median, and draw only from the image's own generator. Losses here are to be
raised: the margin (positive once fooled), and minus the suspicion.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from ...harness.core.batches import steps_between_looks
from ...harness.core.ranges import Count, Natural, Positive
from ...harness.core.seeds import Draws
from ..base.geometry import Radius, ascent, per_image, random_in_ball
from ..base.kinds import Effort
from ..base.perturbation import CountingModel
from ..base.target import Observation, TargetDetector
from ..native.pgd import margin
from .base import Adaptive, target_of
from .best_found import Best
from .paces import FallingSteps, HalvingSteps, Walk
from .pixels import Ball, Pixels

Pace = Literal["falling", "halving"]
Aim = Literal["any", "likeliest", "quietest"]
Carried = dict[str, Tensor]

# Above every margin of logits: an iterate that fools is better than one that does not, whatever its score.
_FOOLED = 1e6
# A detector may answer with infinity or NaN: such an iterate fools, and nothing that fools is worse.
_WORST = 1e5


@dataclass(frozen=True, eq=False)
class Reach:
    """A budget of each image's own, and where its run 0 starts.

    Attributes:
        radii: in the attack's norm, above 0, of all n images of the batch, (n,).
        starts: (n, channels, height, width), within the radii.
    """

    radii: Tensor
    starts: Tensor


class Iterative(Adaptive):
    """Signed (or normalised) steps along a direction that the subclass derives from one look.

    Args:
        eps: the budget.
        steps: steps of one run.
        step_size: the first steps' length in ``norm``; by default 2.5 eps / steps for steps that fall, 2 eps for those
            that are halved.
        norm: ``linf`` or ``l2``.
        restarts: runs per image; from the second on, from a random start, and only for images that still stand.
        images: number of evaluate images that are attacked, from the first on; ``None`` for all.
        large_eps: see :class:`~.base.Adaptive`.
        first_run: number of the first run: only run 0 starts at the image itself, so an attack that goes on starts
            elsewhere.
        pace: ``falling``: whole steps in the first half, then shorter ones; ``halving``: AutoPGD's momentum and step
            control.
        aim: which class an image is driven to: ``any`` other, one after the other with each run the ``likeliest``, or
            those whose clean images the detector finds least suspicious (``quietest``).
        pixels: see :class:`~.base.Adaptive`.
    """

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
        pace: Pace = "falling",
        aim: Aim = "any",
        pixels: Pixels = "any",
    ) -> None:
        super().__init__(eps, norm, images, large_eps, pixels)
        self.steps = steps
        self.pace: Pace = pace
        first = 2 * self.eps if pace == "halving" else 2.5 * self.eps / self.steps
        self.step_size = first if step_size is None else step_size
        self.restarts = restarts
        self.first_run = first_run
        self.aim: Aim = aim
        self._reach: Reach | None = None

    def within(self, reach: Reach) -> Self:
        """Let each image have its own budget and start; steps grow and shrink with it."""
        self._reach = reach
        return self

    @property
    def effort(self) -> Effort:
        """Steps and restarts; none for steps that cannot cross the budget."""
        return Effort(self.steps, self.restarts) if self.steps * self.step_size >= self.eps else Effort()

    @property
    def how(self) -> str:
        """What is not as by default, for the name of the part."""
        chosen = ((self.pace, "falling"), (self.aim, "any"), (self.pixels, "any"))
        return "".join(f"-{value}" for value, default in chosen if value != default)

    def improve(
        self, best: Best, rows: Tensor, model: CountingModel, clean: Tensor, labels: Tensor, draws: Draws
    ) -> None:
        for run in range(self.first_run, self.first_run + self.restarts):
            rows = rows[(best.not_evaded if run else ~best.below_target)[rows]]
            if not len(rows):
                return
            self._run(best, rows, run, model, clean, labels, draws)

    def _run(
        self, best: Best, rows: Tensor, run: int, model: CountingModel, clean: Tensor, labels: Tensor, draws: Draws
    ) -> None:
        target, reach = target_of(model), self._reach
        eps: Radius = self.eps if reach is None else reach.radii[rows]
        clean, labels = clean[rows], labels[rows]
        images = clean if reach is None or run else reach.starts[rows]
        if run:
            images = (images + random_in_ball(images, eps, self.ball, draws.take(rows.tolist()))).clamp_(0, 1)
        carried = self.carried(model, target, clean, labels, run)
        walk = self._walk(images, clean, eps)
        grid = self.grid(target)
        every, going = steps_between_looks(clean.device), torch.ones_like(rows, dtype=torch.bool)
        for step in range(self.steps + 1):
            # What is judged is what the grid leaves of an iterate; steps are taken from the iterate itself.
            shown = grid.of(walk.images, clean, walk.eps).detach().requires_grad_()
            with torch.enable_grad():
                found = self.observe(model.of(rows), target, shown, step)
                lead = margin(found.logits, labels)
                fooled = (lead.detach() > 0) & going
                scores = scores_of(found, fooled, torch.inf)
                best.offer(rows, shown.detach(), fooled, scores, self.part, going)
                if step == self.steps:
                    return
                aimed = lead if "class" not in carried else -margin(found.logits, carried["class"])
                direction = self.direction(found, shown, aimed, target, carried)
            value = self.progress(found, lead.detach(), scores, target, carried)
            going = ~best.below_target[rows]
            walk.move(step, direction, value, going)
            if (step + 1) % every == 0 and not bool(going.all()):
                walk.keep(going)
                rows, clean, labels = rows[going], clean[going], labels[going]
                carried = {name: values[going] for name, values in carried.items()}
                going = going[going]
                if not len(rows):
                    return

    def _walk(self, images: Tensor, clean: Tensor, eps: Radius) -> Walk:
        walk = HalvingSteps if self.pace == "halving" else FallingSteps
        size = self.step_size * eps / self.eps if isinstance(eps, Tensor) else self.step_size
        return walk(images, clean, eps, self.ball, self.steps, size)

    def observe(self, model: CountingModel, target: TargetDetector, images: Tensor, step: int) -> Observation:
        """Return one differentiable pass at a step."""
        return target.observe(model, images)

    def carried(
        self, model: CountingModel, target: TargetDetector, clean: Tensor, labels: Tensor, run: int
    ) -> Carried:  # fmt: skip
        """Return what each image carries along in a run, first axis n: ``class``, the class that it is driven to."""
        if self.aim == "any":
            return {}
        with torch.no_grad():
            logits = model(clean)
        liking = logits if self.aim == "likeliest" else -_suspicion_by_class(target, logits)
        order = liking.scatter(1, labels[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)
        return {"class": order[:, run % (logits.shape[1] - 1)]}

    @abstractmethod
    def direction(
        self, found: Observation, images: Tensor, lead: Tensor, target: TargetDetector, carried: Carried
    ) -> Tensor:
        """Return where to go, of the images' shape; ``lead`` is the margin with its graph, or the aim's."""

    def progress(
        self, found: Observation, lead: Tensor, scores: Tensor, target: TargetDetector, carried: Carried
    ) -> Tensor:
        """Return how far each image has come, (n,): by its margin, and once it is fooled by its true score."""
        excess = ((scores - target.threshold) / target.scale).nan_to_num(nan=_WORST, posinf=_WORST)
        return torch.where(lead > 0, _FOOLED - excess.clamp(-_WORST, _WORST), lead.double())


def _suspicion_by_class(target: TargetDetector, logits: Tensor) -> Tensor:
    """The median score of the clean images of each class, (n, classes); infinite for a class without any."""
    guides = target.guides()
    found = torch.full_like(logits[0], torch.inf)
    for known in guides.labels.unique().tolist():
        found[known] = guides.scores[guides.labels == known].median().to(found)
    return found.expand_as(logits)


def scores_of(found: Observation, wanted: Tensor, otherwise: float) -> Tensor:
    """Return the true scores of wanted images, bool (n,), float64 (n,); ``otherwise``, and not asked for, elsewhere."""
    scores = torch.full(wanted.shape, otherwise, dtype=torch.float64, device=wanted.device)
    if bool(wanted.any()):
        scores[wanted] = found.score(wanted)
    return scores


def gradient_of(values: Tensor, images: Tensor, keep: bool = False) -> Tensor:
    """Return the gradient of each image's own value; zero where it does not depend on the image or is not finite."""
    if not values.requires_grad:
        return torch.zeros_like(images)
    (found,) = torch.autograd.grad(values.sum(), images, retain_graph=keep, materialize_grads=True)
    return torch.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0)


def without(direction: Tensor, other: Tensor) -> Tensor:
    """``direction`` without its component along ``other``, image by image."""
    # Scaled first: squares of tiny gradients vanish in float32.
    unit = ascent(other, "l2")
    along = (direction * unit).flatten(1).sum(1)
    return direction - per_image(along, direction) * unit
