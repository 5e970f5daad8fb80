"""PGD on the classifier and a differentiable form of the detector's score, and on the classifier alone."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...harness.core.errors import UsageError
from ...harness.core.ranges import Count, Natural, Positive
from ..base.geometry import ascent, per_image
from ..base.perturbation import CountingModel, PerturbationInfo
from ..base.target import Observation, TargetDetector
from .iterative import Aim, Carried, Iterative, Pace, gradient_of, without
from .pixels import Ball, Pixels

Relaxation = Literal["annealed", "straight-through"]
Method = Literal["orthogonal", "selective", "joint"]
Surrogate = Literal["own", "student", "gaussian", "nearest"]
STAND_INS: tuple[Surrogate, ...] = ("student", "gaussian", "nearest")

# Temperatures of the relaxation at the first and last step: wide gradients first, nearly the true codes at the end.
_HOT, _COLD = 4.0, 0.5
# A margin of logits beyond the boundary before an image counts as fooled when the next step is chosen, so that steps
# on the detector do not at once fall back over it; what is kept needs no such margin.
_SAFE = 0.1
# By how much the balance of the two terms moves in a step in which one of them is still whole and the other gone.
_PULL = 1.0


def temperature(share: float) -> float:
    """Return the relaxation's temperature when a share of the steps is done."""
    return float(_HOT ** (1 - share) * _COLD**share)


def followed(found: Observation, target: TargetDetector, source: Surrogate, part: str) -> Tensor:
    """Return what an attack follows, (n,), with its graph, in the units of the detector's score.

    Args:
        found: a pass.
        target: the detector.
        source: its ``own`` surrogate, or the stand-in of this name.
        part: who asks, as a part of the worst case.

    Raises:
        UsageError: where there is none.
    """
    if source != "own":
        if source not in target.stand_ins:
            raise UsageError(
                f"There is no stand-in {source!r} here: `adaptive` learns them in its rehearsal, "
                f'and only = ["{part}"] runs this part alone.'
            )
        return target.stand_ins[source](found)
    if found.suspicion is None:
        raise UsageError(
            "The detector offers no surrogate for gradient attacks: use `adaptive`, which also asks its true score."
        )
    return found.suspicion


class SurrogateAttack(Iterative):
    """PGD on classifier and surrogate.

    - ``orthogonal`` (Bryniarski et al. 2021): while an image is not fooled, the gradient of the margin without its
      component along the detector's; once it is fooled, that of the detector without its component along the margin's.
      Two backward passes a step.
    - ``selective`` (there too): the same switch without projections; one backward pass.
    - ``joint``: what is missing of the margin and what the suspicion is above the threshold, together. Both gradients
      have length 1 and a weight of each image's own, which moves towards the term of which more is left (of the most
      that was missing), so that both fall at the same rate: the multipliers of a Lagrangian, as in Carlini and Wagner
      2017 (arXiv 1705.07263), but set by the image instead of by hand. Two backward passes a step.

    Args:
        eps: the budget.
        method: see above.
        steps: steps of one run.
        step_size: see :class:`~.iterative.Iterative`.
        norm: ``linf`` or ``l2``.
        relaxation: ``annealed`` lowers the surrogate's temperature during the run; ``straight-through`` uses hard
            codes forwards and relaxed ones backwards (BPDA). Detectors without a relaxation ignore it.
        restarts: runs per image; from the second on, from a random start, and only for images that still stand.
        images: number of evaluate images that are attacked, from the first on; ``None`` for all.
        large_eps: see :class:`~.base.Adaptive`.
        first_run: number of the first run, see :class:`~.iterative.Iterative`.
        pace: see :class:`~.iterative.Iterative`.
        aim: see :class:`~.iterative.Iterative`.
        pixels: see :class:`~.base.Adaptive`.
        surrogate: the detector's ``own``, or what the harness learned of it (see :mod:`.stand_ins`): ``student``,
            ``gaussian`` or ``nearest``.

    Raises:
        UsageError: for a parameter out of range, or a detector without such a surrogate.
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
        method: Method = "orthogonal",
        steps: Count = 50,
        step_size: Positive | None = None,
        norm: Ball = "linf",
        relaxation: Relaxation = "annealed",
        restarts: Count = 1,
        images: int | None = 200,
        large_eps: float | None = None,
        first_run: Natural = 0,
        pace: Pace = "falling",
        aim: Aim = "any",
        pixels: Pixels = "any",
        surrogate: Surrogate = "own",
    ) -> None:
        super().__init__(eps, steps, step_size, norm, restarts, images, large_eps, first_run, pace, aim, pixels)
        self.method = method
        self.relaxation: Relaxation = relaxation
        self.surrogate: Surrogate = surrogate

    @property
    def part(self) -> str:
        """The method, and what is not as by default."""
        chosen = ((self.surrogate, "own"), (self.relaxation, "annealed"))
        return self.method + "".join(f"-{value}" for value, default in chosen if value != default) + self.how

    def observe(self, model: CountingModel, target: TargetDetector, images: Tensor, step: int) -> Observation:
        straight, own = self.relaxation == "straight-through", self.surrogate == "own"
        return target.observe(model, images, temperature(step / self.steps), straight, surrogate=own)

    def carried(
        self, model: CountingModel, target: TargetDetector, clean: Tensor, labels: Tensor, run: int
    ) -> Carried:  # fmt: skip
        found = super().carried(model, target, clean, labels, run)
        if self.method == "joint":
            nothing = torch.zeros(len(clean), device=clean.device)
            # The weights' logit, and the most that was missing of each term.
            found |= {"balance": nothing, "most-lead": nothing, "most-excess": nothing}
        return found

    def direction(
        self, found: Observation, images: Tensor, lead: Tensor, target: TargetDetector, carried: Carried
    ) -> Tensor:
        suspicion = followed(found, target, self.surrogate, self.part)
        if self.method == "joint":
            return self._balanced(suspicion, images, lead, target, carried)
        fooled = per_image(lead.detach() > _SAFE, images)
        if self.method == "selective":
            loss = torch.where(fooled.flatten(), -suspicion / target.scale, lead)
            if not bool(suspicion.isfinite().all()):
                # NaN times zero: a surrogate's would also kill the margin's gradient.
                outward, quiet = gradient_of(lead, images, keep=True), gradient_of(-suspicion, images)
                return torch.where(fooled, quiet, outward)
            return gradient_of(loss, images)
        outward, quiet = gradient_of(lead, images, keep=True), gradient_of(-suspicion, images)
        chosen, other = torch.where(fooled, quiet, outward), torch.where(fooled, outward, quiet)
        return without(chosen, other)

    def _balanced(
        self, suspicion: Tensor, images: Tensor, lead: Tensor, target: TargetDetector, carried: Carried
    ) -> Tensor:
        """Return both gradients, weighted by what each image still misses."""
        missing = (_SAFE - lead.detach()).clamp_min(0)
        excess = self._excess(suspicion, target)
        carried["most-lead"] = torch.maximum(carried["most-lead"], missing)
        carried["most-excess"] = torch.maximum(carried["most-excess"], excess)
        left = missing / carried["most-lead"].clamp_min(1e-6) - excess / carried["most-excess"].clamp_min(1e-6)
        carried["balance"] = (carried["balance"] + _PULL * left).clamp(-4, 4)
        weight = per_image(carried["balance"].sigmoid(), images)
        outward, quiet = gradient_of(lead, images, keep=True), gradient_of(-suspicion, images)
        # Once nothing is missing of the margin, only its direction is spared.
        outward = torch.where(per_image(missing > 0, images), outward, 0.0)
        return weight * ascent(outward, "l2") + (1 - weight) * ascent(quiet, "l2")

    def progress(
        self, found: Observation, lead: Tensor, scores: Tensor, target: TargetDetector, carried: Carried
    ) -> Tensor:
        """See the base; what ``joint`` gives up of the margin is no step back if the detector's term gains more."""
        if self.method != "joint":
            return super().progress(found, lead, scores, target, carried)
        with torch.no_grad():
            excess = self._excess(followed(found, target, self.surrogate, self.part), target)
        missing = (_SAFE - lead).clamp_min(0)
        return -(missing / carried["most-lead"].clamp_min(1e-6) + excess / carried["most-excess"].clamp_min(1e-6))

    @staticmethod
    def _excess(suspicion: Tensor, target: TargetDetector) -> Tensor:
        """What the suspicion is above a score that passes for sure, in units of the clean scores' spread, (n,)."""
        # Half-way below the threshold: a stand-in or a relaxation does not meet it exactly.
        aim = (target.threshold + target.target_score) / 2
        return ((suspicion.detach() - aim) / target.scale).nan_to_num(nan=0.0, posinf=1e6).clamp_min(0).float()


class MarginAttack(Iterative):
    """PGD on the margin alone, each iterate judged by the true score: what needs nothing of a detector but its answer.

    Arguments as for :class:`~.iterative.Iterative`.
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
        """``margin``, and what is not as by default."""
        return "margin" + self.how

    def observe(self, model: CountingModel, target: TargetDetector, images: Tensor, step: int) -> Observation:
        return target.observe(model, images, surrogate=False)

    def direction(
        self, found: Observation, images: Tensor, lead: Tensor, target: TargetDetector, carried: Carried
    ) -> Tensor:
        return gradient_of(lead, images)
