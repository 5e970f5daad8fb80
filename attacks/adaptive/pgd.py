"""Attacks that know the detector: gradient attacks on its surrogate, each iterate judged by its true score.

All of them keep, per image, the fooling iterate with the lowest true score (Bryniarski et al. 2021), stop working on an
image once that score is below the clean median, and draw only from the image's own generator. Losses here are to be
raised: the margin (positive once fooled), and minus the suspicion.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...harness.core.batches import steps_between_looks
from ...harness.core.errors import UsageError
from ...harness.core.ranges import Count, Natural, Positive
from ...harness.core.seeds import Draws
from ..base import parameters as checks
from ..base.geometry import ascent, per_image, project, random_in_ball
from ..base.kinds import Effort
from ..base.perturbation import CountingModel, Norm, Perturbation, PerturbationInfo
from ..base.target import Observation, TargetDetector
from ..native.pgd import margin
from .best_found import Best

Ball = Literal["linf", "l2"]
Relaxation = Literal["annealed", "straight-through"]

# Temperatures of the relaxation at the first and last step: wide gradients first, nearly the true codes at the end.
_HOT, _COLD = 4.0, 0.5
# A margin of logits beyond the boundary before an image counts as fooled when the next step is chosen, so that steps
# on the detector do not at once fall back over it; what is kept needs no such margin.
_SAFE = 0.1


def target_of(model: CountingModel) -> TargetDetector:
    """Return the detector that an attack is made against; raises :class:`UsageError` where there is none."""
    if model.target is None:
        raise UsageError("An adaptive attack is made against a detector: use it in a suite that has detectors.")
    return model.target


class Adaptive(Perturbation):
    """Base of the attacks that are made against one detector.

    Args:
        eps: the budget.
        norm: ``linf`` or ``l2``.
        images: number of evaluate images that are attacked, from the first on; ``None`` for all.
        large_eps: the budget at which the attack is checked: it must fool the model and evade the detector on every
            image there, or the detector's row is flagged ``adaptive-incomplete``; ``None``: eight times ``eps``, for
            L-inf at most 0.5, where every image can become plain grey.

    Raises:
        UsageError: for a parameter out of range.
    """

    info: ClassVar[PerturbationInfo]

    def __init__(
        self, eps: float, norm: Ball = "linf", images: Count | None = 200, large_eps: float | None = None
    ) -> None:
        self._norm: Ball = norm
        self.eps: float = checks.budget(eps, norm)
        self.images = None if images is None else images
        default = max(min(8 * self.eps, 0.5), self.eps) if norm == "linf" else 8 * self.eps
        self.large_eps = default if large_eps is None else checks.budget(large_eps, norm)
        # A check at a smaller budget than the default is none.
        self.is_checked = self.large_eps >= default
        if self.large_eps < self.eps:
            raise UsageError(f"large_eps = {large_eps!r} is below eps = {eps!r}: the check needs a larger budget.")

    @property
    def norm(self) -> Norm:
        """The norm of the budget."""
        return self._norm

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """See the base; the result is the best found by the true score."""
        best = Best(images, target_of(model))
        try:
            self.improve(best, torch.arange(len(images), device=images.device), model, images, labels, draws)
        finally:
            # Also where a limit ends it: what was found by then counts.
            model.credits, model.late, model.told, model.partial = best.credits, best.late, best.told, best.images
            model.asked, model.asked_score = best.asked, best.asked_score
        return best.images

    @property
    def part(self) -> str:
        """What this attack is called as a part of another."""
        return self.info.family

    @abstractmethod
    def improve(
        self, best: Best, rows: Tensor, model: CountingModel, clean: Tensor, labels: Tensor, draws: Draws
    ) -> None:
        """Search for some rows (int64) of all images, labels and draws, and offer what is found to ``best``."""

    def inside(self, images: Tensor, clean: Tensor) -> Tensor:
        """Within the budget and [0, 1]."""
        return project(images, clean, self.eps, self._norm).clamp_(0, 1)


class _Iterative(Adaptive):
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


class SurrogateAttack(_Iterative):
    """PGD on classifier and surrogate.

    - ``orthogonal`` (Bryniarski et al. 2021): while an image is not fooled, the gradient of the margin without its
      component along the detector's; once it is fooled, that of the detector without its component along the margin's.
      Two backward passes a step.
    - ``selective`` (there too): the same switch without projections; one backward pass.
    - ``joint``: the margin, up to a small lead, plus ``weight`` times minus the suspicion above the clean median, in
      units of the detector's spread (after Carlini and Wagner 2017, arXiv 1705.07263).

    Args:
        eps: the budget.
        method: see above.
        steps: steps of one run.
        step_size: the first steps' length, by default 2.5 eps / steps; it falls in the second half.
        norm: ``linf`` or ``l2``.
        relaxation: ``annealed`` lowers the surrogate's temperature during the run; ``straight-through`` uses hard
            codes forwards and relaxed ones backwards (BPDA). Detectors without a relaxation ignore it.
        weight: of ``joint``.
        restarts: runs per image; from the second on, from a random start, and only for images that still stand.
        images: number of evaluate images that are attacked, from the first on; ``None`` for all.
        large_eps: see :class:`Adaptive`.
        first_run: number of the first run: only run 0 starts at the image itself, so an attack that goes on starts
            elsewhere.

    Raises:
        UsageError: for a parameter out of range, or a detector without a surrogate.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Adaptive PGD",
        kind="adaptive",
        family="adaptive-pgd",
        norm="linf",
        paper="Bryniarski et al. 2021, Evading Adversarial Example Detection Defenses with Orthogonal PGD, "
        "arXiv:2106.15023",
        stochastic=True,
        cost="medium",
        summary="PGD that fools the classifier and lowers the detector's surrogate, judged by the true score.",
    )

    def __init__(
        self,
        eps: float,
        method: Literal["orthogonal", "selective", "joint"] = "orthogonal",
        steps: int = 50,
        step_size: float | None = None,
        norm: Ball = "linf",
        relaxation: Relaxation = "annealed",
        weight: Positive = 1.0,
        restarts: int = 1,
        images: int | None = 200,
        large_eps: float | None = None,
        first_run: int = 0,
    ) -> None:
        super().__init__(eps, steps, step_size, norm, restarts, images, large_eps, first_run)
        self.method = method
        self.relaxation: Relaxation = relaxation
        self.weight = weight

    @property
    def part(self) -> str:
        """The method."""
        return self.method

    def observe(self, model: CountingModel, target: TargetDetector, images: Tensor, step: int) -> Observation:
        share = step / self.steps
        temperature = _HOT ** (1 - share) * _COLD**share
        return target.observe(model, images, temperature, self.relaxation == "straight-through")

    def direction(
        self, found: Observation, images: Tensor, lead: Tensor, target: TargetDetector, aims: dict[str, Tensor]
    ) -> Tensor:
        if found.suspicion is None:
            raise UsageError(
                "The detector offers no surrogate for gradient attacks: use `adaptive`, which also asks its true score."
            )
        fooled = lead.detach() > _SAFE
        if self.method == "selective":
            loss = torch.where(fooled, -found.suspicion / target.scale, lead)
            return _gradient(loss, images)
        if self.method == "joint":
            excess = ((found.suspicion - target.target_score) / target.scale).clamp_min(-1.0)
            return _gradient(lead.clamp_max(1.0) - self.weight * excess, images)
        outward = _gradient(lead, images, keep=True)
        quiet = _gradient(-found.suspicion, images)
        chosen, other = (
            torch.where(per_image(fooled, images), quiet, outward),
            torch.where(per_image(fooled, images), outward, quiet),
        )
        return _without(chosen, other)


class MarginAttack(_Iterative):
    """PGD on the margin alone, each iterate judged by the true score: where attacks without a surrogate start.

    Arguments as for :class:`FeatureMatching`.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Margin PGD, judged by the detector",
        kind="adaptive",
        family="adaptive-margin",
        norm="linf",
        paper="Madry et al. 2018, Towards Deep Learning Models Resistant to Adversarial Attacks, arXiv:1706.06083",
        stochastic=True,
        cost="medium",
        summary="PGD that fools the classifier; kept is the iterate with the lowest true score.",
    )

    @property
    def part(self) -> str:
        """``start``."""
        return "start"

    def direction(
        self, found: Observation, images: Tensor, lead: Tensor, target: TargetDetector, aims: dict[str, Tensor]
    ) -> Tensor:
        return _gradient(lead, images)


class FeatureMatching(_Iterative):
    """Moves the activations that the detector reads towards those of a clean image of another class.

    It needs no surrogate: an image with ordinary activations has an ordinary score, whatever the score is
    (Sabour et al. 2016). The guide is the clean image of another class whose logits are nearest, the next nearest for
    each restart; every tap's squared distance is divided by its distance at the start.

    Args:
        eps: the budget.
        steps: steps of one run.
        step_size: the first steps' length, by default 2.5 eps / steps; it falls in the second half.
        norm: ``linf`` or ``l2``.
        restarts: guides that are tried, the later ones only for images that still stand.
        images: number of evaluate images that are attacked, from the first on; ``None`` for all.
        large_eps: see :class:`Adaptive`.
        first_run: number of the first run, see :class:`SurrogateAttack`.

    Raises:
        UsageError: for a parameter out of range.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Feature matching",
        kind="adaptive",
        family="feature-matching",
        norm="linf",
        paper="Sabour, Cao, Faghri, Fleet 2016, Adversarial Manipulation of Deep Representations, arXiv:1511.05122",
        stochastic=True,
        cost="medium",
        summary="Imitates the activations of a clean image of another class; needs no surrogate.",
    )

    def improve(
        self, best: Best, rows: Tensor, model: CountingModel, clean: Tensor, labels: Tensor, draws: Draws
    ) -> None:
        if len(target_of(model).guides().images):
            super().improve(best, rows, model, clean, labels, draws)

    def aims(
        self, model: CountingModel, target: TargetDetector, clean: Tensor, labels: Tensor, restart: int
    ) -> dict[str, Tensor]:
        guides = target.guides()
        pool, classes = guides.images.to(clean.device), guides.labels.to(clean.device)
        distances = torch.cdist(_logits(model, clean), _logits(model, pool))
        distances[labels[:, None] == classes] = torch.inf
        # No further than there are guides of another class.
        ranks = (distances.isfinite().sum(1) - 1).clamp(0, restart)
        chosen = distances.argsort(dim=1, stable=True).gather(1, ranks[:, None]).squeeze(1)
        # A detach is not enough: features of the guides are taken without a graph at all.
        with torch.no_grad():
            aimed = target.observe(model, pool[chosen], surrogate=False).features
            now = target.observe(model, clean, surrogate=False).features
        found = {name: value.detach() for name, value in aimed.items()}
        scales = {
            f"scale:{name}": (now[name] - value).flatten(1).square().sum(1).clamp_min(1e-12)
            for name, value in found.items()
        }
        return found | scales

    def direction(
        self, found: Observation, images: Tensor, lead: Tensor, target: TargetDetector, aims: dict[str, Tensor]
    ) -> Tensor:
        terms = [
            (value - aims[name]).flatten(1).square().sum(1) / aims[f"scale:{name}"]
            for name, value in found.features.items()
        ]
        return _gradient(-torch.stack(terms).mean(0), images)


def _scores(found: Observation, fooled: Tensor) -> Tensor:
    """Return true scores, float64 (n,); infinite, and not asked for, where nothing is fooled."""
    scores = torch.full(fooled.shape, torch.inf, dtype=torch.float64, device=fooled.device)
    if bool(fooled.any()):
        scores[fooled] = found.score(fooled)
    return scores


def _logits(model: CountingModel, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(images)
    return logits


def _gradient(values: Tensor, images: Tensor, keep: bool = False) -> Tensor:
    """Return the gradient of each image's own value; zero where it does not depend on the image or is not finite."""
    if not values.requires_grad:
        return torch.zeros_like(images)
    (found,) = torch.autograd.grad(values.sum(), images, retain_graph=keep, materialize_grads=True)
    return torch.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0)


def _without(direction: Tensor, other: Tensor) -> Tensor:
    """``direction`` without its component along ``other``, image by image."""
    # Scaled first: squares of tiny gradients vanish in float32.
    unit = ascent(other, "l2")
    along = (direction * unit).flatten(1).sum(1)
    return direction - per_image(along, direction) * unit
