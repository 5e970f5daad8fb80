"""The adaptive worst case as it was at the end of issue 14, kept as an opponent for what came after it.

Only studies use it. Nothing in it is improved; what
it calls of the package (projections, random search) is what both attacks share.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import ClassVar, Literal

import torch
from aftershock.attacks.base import parameters as checks
from aftershock.attacks.base.geometry import ascent, per_image, project, random_in_ball
from aftershock.attacks.base.kinds import Effort
from aftershock.attacks.base.perturbation import CountingModel, Norm, Perturbation, PerturbationInfo, late_successes
from aftershock.attacks.base.target import Observation, TargetDetector
from aftershock.attacks.native.pgd import margin
from aftershock.attacks.native.square import search
from aftershock.harness.core.batches import steps_between_looks
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.ranges import Count, Natural, Positive
from aftershock.harness.core.seeds import Draws
from torch import Tensor

Ball = Literal["linf", "l2"]


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


class Best:
    """The best image found so far for each of n: fooling before not fooling, then the lowest true score.

    Args:
        clean: (n, channels, height, width); an image for which nothing fools stays what was offered last.
        target: the detector.
    """

    def __init__(self, clean: Tensor, target: TargetDetector) -> None:
        self.images = clean.clone()
        self.score = torch.full((len(clean),), torch.inf, dtype=torch.float64, device=clean.device)
        self._found = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
        # One of the fooling iterates of each image, drawn evenly, and what was told of it: a detector that lies about
        # images that would pass lies about these, which are never kept.
        self.asked = clean.clone()
        self.asked_score = torch.full_like(self.score, torch.nan)
        self._fooling = torch.zeros(len(clean), dtype=torch.int64, device=clean.device)
        self._draws = torch.Generator().manual_seed(0)
        self._target = target
        self._parts: list[str] = []
        self._by = torch.full((len(clean),), -1, device=clean.device)
        # Iterates offered for each image, and the one that first got past the detector (0: none did).
        self._offers = torch.zeros(len(clean), dtype=torch.int64, device=clean.device)
        self._passed = torch.zeros_like(self._offers)

    def offer(
        self, rows: Tensor, images: Tensor, fooled: Tensor, score: Tensor, part: str, standing: Tensor | None = None
    ) -> None:
        """Take iterates of some rows into account: (k,) rows, images, fooled, true scores, and the attack's name.

        Scores count only where something is fooled. Images that do not stand any more are not counted as offered.
        """
        if part not in self._parts:
            self._parts.append(part)
        # A detector may answer with infinity or NaN: such an image is found, and nothing is worse.
        score = torch.where(score.isnan(), torch.inf, score)
        self._sample(rows, images, fooled, score)
        known = self._found[rows]
        first, better = fooled & ~known, fooled & (score < self.score[rows])
        self._keep(self.images, rows, first | better | ~(fooled | known), images)
        self._keep(self.score, rows, better, score)
        self._by[rows] = torch.where(first | better, self._parts.index(part), self._by[rows])
        self._found[rows] |= fooled
        self._offers[rows] += 1 if standing is None else standing.long()
        new = (self._passed[rows] == 0) & ~self.not_evaded[rows]
        self._keep(self._passed, rows, new, self._offers[rows])

    def _sample(self, rows: Tensor, images: Tensor, fooled: Tensor, score: Tensor) -> None:
        self._fooling[rows] += fooled
        drawn = torch.rand(len(rows), generator=self._draws).to(score.device)
        taken = fooled & (drawn * self._fooling[rows] < 1)
        self._keep(self.asked, rows, taken, images)
        self._keep(self.asked_score, rows, taken, score)

    @staticmethod
    def _keep(held: Tensor, rows: Tensor, wanted: Tensor, values: Tensor) -> None:
        """Put values (k, ...) into the rows (k,) of what is held, where they are wanted, without waiting for a GPU."""
        held[rows] = torch.where(per_image(wanted, values), values, held[rows])

    @property
    def late(self) -> int:
        """Images that got past the detector only in the last quarter of the iterates."""
        return late_successes(self._passed, self._offers)

    @property
    def credits(self) -> list[str]:
        """The attack that made each image; empty where nothing fooled."""
        return [self._parts[i] if i >= 0 else "" for i in self._by.tolist()]

    @property
    def told(self) -> Tensor:
        """(n,), the true score that the detector told of each image, NaN where nothing fools; float64."""
        return torch.where(self._found, self.score, torch.nan)

    @property
    def found(self) -> Tensor:
        """(n,), something that fools was found."""
        return self._found

    @property
    def below_target(self) -> Tensor:
        """(n,), fooled with a score below the clean median: nothing more to gain."""
        return self.score <= self._target.target_score

    @property
    def not_evaded(self) -> Tensor:
        """(n,), not yet fooled, or flagged."""
        return self.score > self._target.threshold


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


Relaxation = Literal["annealed", "straight-through"]

# Temperatures of the relaxation at the first and last step: wide gradients first, nearly the true codes at the end.
_HOT, _COLD = 4.0, 0.5
# A margin of logits beyond the boundary before an image counts as fooled when the next step is chosen, so that steps
# on the detector do not at once fall back over it; what is kept needs no such margin.
_SAFE = 0.1


class SurrogateAttack(Iterative):
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
        title="Adaptive PGD (frozen)",
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
            return gradient_of(loss, images)
        if self.method == "joint":
            excess = ((found.suspicion - target.target_score) / target.scale).clamp_min(-1.0)
            return gradient_of(lead.clamp_max(1.0) - self.weight * excess, images)
        outward = gradient_of(lead, images, keep=True)
        quiet = gradient_of(-found.suspicion, images)
        chosen, other = (
            torch.where(per_image(fooled, images), quiet, outward),
            torch.where(per_image(fooled, images), outward, quiet),
        )
        return _without(chosen, other)


class MarginAttack(Iterative):
    """PGD on the margin alone, each iterate judged by the true score: where attacks without a surrogate start.

    Arguments as for :class:`FeatureMatching`.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Margin PGD, judged by the detector (frozen)",
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
        return gradient_of(lead, images)


def _without(direction: Tensor, other: Tensor) -> Tensor:
    """``direction`` without its component along ``other``, image by image."""
    # Scaled first: squares of tiny gradients vanish in float32.
    unit = ascent(other, "l2")
    along = (direction * unit).flatten(1).sum(1)
    return direction - per_image(along, direction) * unit


class FeatureMatching(Iterative):
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
        title="Feature matching (frozen)",
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
        return gradient_of(-torch.stack(terms).mean(0), images)


def _logits(model: CountingModel, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(images)
    return logits


class ScoreSquare(Adaptive):
    """Minimise logits and true score together by random search (Square), without gradient or surrogate.

    What is minimised is max(0, −margin) plus the true score above the threshold in units of the detector's spread; an
    image at which both vanish is fooled and passes. The search begins at what other attacks found: a fooling image
    that is still flagged has half of the way behind it.

    Args:
        eps: the budget.
        queries: questions asked per image, at most; each is one forward and one score.
        norm: ``linf`` or ``l2``.
        images: number of evaluate images that are attacked, from the first on; ``None`` for all.
        large_eps: see :class:`~aftershock.attacks.adaptive.base.Adaptive`.

    Raises:
        UsageError: for a parameter out of range.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Square on the true score (frozen)",
        kind="adaptive",
        family="adaptive-square",
        norm="linf",
        paper="after Andriushchenko, Croce, Flammarion, Hein 2020, arXiv:1912.00049",
        gradients=False,
        stochastic=True,
        cost="medium",
        summary="Random search that asks logits and the detector's true score; needs no surrogate.",
    )

    def __init__(
        self,
        eps: float,
        queries: Count = 500,
        norm: Ball = "linf",
        images: int | None = 200,
        large_eps: float | None = None,
    ) -> None:
        super().__init__(eps, norm, images, large_eps)
        self.queries = queries

    @property
    def part(self) -> str:
        """``search``."""
        return "search"

    @property
    def effort(self) -> Effort:
        """Queries."""
        return Effort(queries=self.queries)

    def improve(
        self, best: Best, rows: Tensor, model: CountingModel, clean: Tensor, labels: Tensor, draws: Draws
    ) -> None:
        target = target_of(model)
        # Beyond both boundaries by a hair: other batches round differently.
        slack = 1e-3

        def objective(searched: Tensor, images: Tensor, part: Tensor) -> Tensor:
            asked = searched[part]
            logits, score = target.query(model, images)
            lead = margin(logits, labels[asked])
            best.offer(asked, images, lead > 0, score, self.part)
            excess = (score - target.threshold) / target.scale + slack
            return (slack - lead).clamp_min(0) + excess.clamp_min(0).to(lead.dtype)

        for part, start in ((best.found[rows], best.images), (~best.found[rows], None)):
            chosen = rows[part]
            if len(chosen):
                search(
                    partial(objective, chosen), clean[chosen], self.eps, self._norm, self.queries,
                    draws.take(chosen.tolist()), start=None if start is None else start[chosen],
                )  # fmt: skip


# An attack that still brought images past the detector in its last quarter continues, at most this often, each time
# with twice the steps; in its own batch fewer images tell than in the flag `unconverged`, which stands on all of them.
_FURTHER = 2
_LATE_IMAGES, _LATE_SHARE = 2, 0.01


class FrozenWorstCase(Adaptive):
    """Every adaptive attack, one after the other, each on the images that still stand: the worst case per image.

    Selective and orthogonal PGD on the surrogate (PGD on the margin for a detector without one), feature matching, and
    random search on the true score. A detector without a usable surrogate is attacked less strongly: read its robust
    accuracy as an upper bound.

    Args:
        eps: the budget.
        steps: steps of each gradient attack.
        queries: questions of the random search, per image.
        norm: ``linf`` or ``l2``.
        relaxation: ``annealed`` or ``straight-through``, see
            :class:`~aftershock.attacks.adaptive.surrogate.SurrogateAttack`.
        restarts: runs of each gradient attack, the later ones from random starts and only for images that still
            stand: a detector that takes the nearest of many patterns has many local minima.
        images: number of evaluate images that are attacked, from the first on; ``None`` for all.
        large_eps: see :class:`~aftershock.attacks.adaptive.base.Adaptive`.

    Raises:
        UsageError: for a parameter out of range.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Adaptive worst case (frozen)",
        kind="adaptive",
        family="adaptive-frozen",
        norm="linf",
        paper="Tramer, Carlini, Brendel, Madry 2020, On Adaptive Attacks to Adversarial Example Defenses, "
        "arXiv:2002.08347",
        stochastic=True,
        cost="medium",
        summary="PGD on the surrogate, feature matching, a black box on the true score: the worst case per image.",
    )

    def __init__(
        self,
        eps: float,
        steps: Count = 50,
        queries: Count = 100,
        norm: Ball = "linf",
        relaxation: Relaxation = "annealed",
        restarts: Count = 3,
        images: int | None = 200,
        large_eps: float | None = None,
    ) -> None:
        super().__init__(eps, norm, images, large_eps)
        self.steps = steps
        self.queries = queries
        self.relaxation: Relaxation = relaxation
        self.restarts = restarts

    @property
    def effort(self) -> Effort:
        """What is invested in an image that stands; one that converges late gets more."""
        return Effort(self.steps, self.restarts, self.queries)

    def improve(
        self, best: Best, rows: Tensor, model: CountingModel, clean: Tensor, labels: Tensor, draws: Draws
    ) -> None:
        surrogate = target_of(model).has_surrogate
        for further in range(_FURTHER + 1):
            for attack in self._attacks(surrogate, further):
                attack.improve(best, rows[best.not_evaded[rows]], model, clean, labels, draws)
            if best.late < max(_LATE_IMAGES, _LATE_SHARE * len(rows)):
                return

    def _attacks(self, surrogate: bool, further: int) -> tuple[Adaptive, ...]:
        """Return the attacks of one round: those that go on have twice the steps each time, and starts of their own."""
        eps, norm, relaxation = self.eps, self._norm, self.relaxation
        steps, queries = self.steps * 2**further, self.queries * 2**further
        runs = {"restarts": self.restarts, "first_run": further * self.restarts}
        # Without a surrogate nothing else looks for the classifier's own boundary.
        first: tuple[Adaptive, ...] = (MarginAttack(eps, steps, norm=norm, **runs),)
        if surrogate:
            first = (
                SurrogateAttack(eps, "selective", steps, norm=norm, relaxation=relaxation, **runs),
                SurrogateAttack(eps, "orthogonal", steps, norm=norm, relaxation=relaxation, **runs),
            )
        return (*first, FeatureMatching(eps, steps, norm=norm, **runs), ScoreSquare(eps, queries, norm=norm))
