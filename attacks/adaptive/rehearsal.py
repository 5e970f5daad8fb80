"""What an attack learns of a detector before it meets the images that count: stand-ins, and which of its parts work.

All of it happens on clean images of another set, which the detector was not fitted on and no result stands on. The
images are the same for every batch of the attack to come, so nothing depends on how that is cut into batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from ...harness.core.model_state import device_of, untouched
from ...harness.core.seeds import Draws, derive_seed, forked_rng
from ..base.geometry import random_in_ball
from ..base.perturb_batch import PerturbedBatch, perturb_batch
from ..base.target import Guides, Observation, StandIn, TargetDetector
from ..base.watched_model import Limits
from .base import Adaptive
from .features import described
from .pixels import Ball
from .portfolio import Part
from .stand_ins import Gaussian, Nearest, Student
from .surrogate import STAND_INS, MarginAttack, Surrogate, SurrogateAttack
from .worst_case import WorstCase

# A surrogate whose suspicions rank an attack's iterates like the true scores do needs no student.
FOLLOWS = 0.8
# Steps of the attacks that a student learns from, how often it learns from its own, and by how much of the budget.
_LESSON_STEPS, _REFRESHES, _REACHES = 20, 1, (1.0, 3.0)
_MIXED = (0.25, 0.5, 0.75)
# The first round of the rehearsal: its images, the share of the steps that it takes, and how many parts it leaves.
_FIRST_IMAGES, _SHORT, _LEFT = 12, 0.5, 4


def trusts(target: TargetDetector, follows: Mapping[str, float]) -> bool:
    """Return whether a detector has a surrogate of its own that ranks like its score, as far as a rehearsal looked."""
    return target.has_surrogate and follows.get("own", 1.0) >= FOLLOWS


def leading(target: TargetDetector, follows: Mapping[str, float]) -> Surrogate | None:
    """Return what gives an attack its gradients: a surrogate that can be trusted, else what was learned, if anything.

    Args:
        target: the detector.
        follows: how well what an attack follows ranks like the true score, where a rehearsal looked at that.
    """
    learned = [name for name in STAND_INS if name in target.stand_ins]
    own: list[Surrogate] = ["own"] if target.has_surrogate else []
    return next(iter([*own, *learned] if trusts(target, follows) else [*learned, *own]), None)


@dataclass(frozen=True)
class Rehearsed:
    """How one part did in the last round that it took part in.

    Attributes:
        part: its name.
        passed: of the images of that round, how many it got past the detector.
        images: how many these were.
        excess: the median of the true scores above the threshold, in units of the clean spread, 1e5 where nothing
            fooled.
    """

    part: str
    passed: int
    images: int
    excess: float


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """What was learned.

    Attributes:
        stand_ins: by name.
        parts: how each part did, in the order in which they shall run.
        follows: rank correlation of suspicions with true scores on the iterates of an attack that goes down the
            suspicion: of the detector's ``own`` surrogate, and of the ``student``; where that was looked at.
    """

    stand_ins: Mapping[str, StandIn]
    parts: tuple[Rehearsed, ...]
    follows: Mapping[str, float]


@dataclass(eq=False)
class Informed:
    """A target of which something was learned; see :class:`~..base.target.TargetDetector`."""

    target: TargetDetector
    stand_ins: Mapping[str, StandIn]
    rehearsed: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.threshold, self.target_score = self.target.threshold, self.target.target_score
        self.scale, self.has_surrogate = self.target.scale, self.target.has_surrogate

    def observe(
        self, model: nn.Module, images: Tensor, temperature: float = 1.0, straight_through: bool = False,
        surrogate: bool = True,
    ) -> Observation:  # fmt: skip
        """See the protocol."""
        return self.target.observe(model, images, temperature, straight_through, surrogate)

    def query(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the protocol."""
        return self.target.query(model, images)

    def guides(self) -> Guides:
        """See the protocol."""
        return self.target.guides()


@dataclass(eq=False)
class _Noting(Informed):
    """Notes vectors, true scores and suspicions of every image that is looked at: the student's or the detector's."""

    vectors: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    suspicions: list[Tensor] = field(default_factory=list)

    def observe(
        self, model: nn.Module, images: Tensor, temperature: float = 1.0, straight_through: bool = False,
        surrogate: bool = True,
    ) -> Observation:  # fmt: skip
        found = super().observe(model, images, temperature, straight_through, surrogate)
        student = self.stand_ins.get("student")
        with torch.no_grad():
            self.vectors.append(described(found).detach().cpu())
            self.scores.append(found.score(torch.ones(len(images), dtype=torch.bool, device=images.device)).cpu())
            seen = found.suspicion if student is None else student(found)
            self.suspicions += [] if seen is None else [seen.detach().cpu().double()]
        return found

    @property
    def follows(self) -> float:
        """Rank correlation of suspicions and true scores; 0 where one of them does not vary or is not finite."""
        if len(self.suspicions) != len(self.scores) or not self.scores:
            return 0.0
        seen, true = torch.cat(self.suspicions), torch.cat(self.scores)
        known = seen.isfinite() & true.isfinite()
        if int(known.sum()) < len(known) / 2 or bool(seen[known].std() == 0) or bool(true[known].std() == 0):
            return 0.0
        return float(spearmanr(seen[known].numpy(), true[known].numpy()).statistic)


@dataclass(frozen=True, eq=False)
class Stage:
    """Where a rehearsal takes place.

    Attributes:
        model: images in [0, 1] to logits.
        target: the detector.
        images: clean ones that the model gets right and the detector was not fitted on, float32 in [0, 1].
        labels: their classes.
        seed: of all draws.
        limits: what each attack may spend per image.
    """

    model: nn.Module
    target: TargetDetector
    images: Tensor
    labels: Tensor
    seed: int
    limits: Limits | None = None

    def made(self, attack: Adaptive, target: TargetDetector, rows: slice, *axes: str | int) -> PerturbedBatch:
        """Return what an attack makes of some of the images."""
        images, labels = self.images[rows], self.labels[rows]
        return perturb_batch(
            attack, self.model, images, labels, range(len(images)), derive_seed(self.seed, attack.part, *axes),
            target=target, limits=self.limits,
        )  # fmt: skip


def rehearse(attack: WorstCase, stage: Stage) -> Rehearsal:
    """Learn stand-ins for a detector's score, and in which order an attack's parts should run.

    Args:
        attack: whose budget, norm, steps and parts are meant.
        stage: model, detector and images.
    """
    with untouched(stage.model), forked_rng(derive_seed(stage.seed, "rehearsal")):
        stage.model.eval()
        stand_ins = _of_clean_images(stage)
        enough = _first_part(attack, stage, Informed(stage.target, stand_ins))
        if enough is not None:
            return Rehearsal(stand_ins, (enough,), {})
        follows = _taught(attack, stage, stand_ins)
        return Rehearsal(stand_ins, _ordered(attack, stage, Informed(stage.target, stand_ins)), follows)


def _of_clean_images(stage: Stage) -> dict[str, StandIn]:
    """Return the stand-ins that know only clean images."""
    target, guides = stage.target, stage.target.guides()
    if len(guides.images) < 2:
        return {}
    with torch.no_grad():
        seen = described(target.observe(stage.model, guides.images, surrogate=False)).detach().cpu()
    return {
        "gaussian": Gaussian.fitted(seen, guides.labels.cpu(), target.target_score, target.scale),
        "nearest": Nearest.fitted(seen, target.target_score, target.scale),
    }


def _first_part(attack: WorstCase, stage: Stage, informed: Informed) -> Rehearsed | None:
    """Return how the detector's own surrogate did if it gets every image of the first round past; else ``None``."""
    if not stage.target.has_surrogate:
        return None
    name, make = next(iter(attack.portfolio.parts(informed).items()))
    found = _tried(attack, stage, informed, name, make)
    return found if found.passed == found.images else None


def _taught(attack: WorstCase, stage: Stage, stand_ins: dict[str, StandIn]) -> dict[str, float]:
    """Add a student to the stand-ins where the detector's own surrogate does not follow its score.

    Returns:
        how well the own surrogate and the student follow, by name.
    """
    target, eps, norm = stage.target, attack.eps, attack.ball
    follows: dict[str, float] = {}
    lessons: list[_Noting] = []

    def lesson(part: Adaptive, *axes: str | int) -> _Noting:
        noting = _Noting(target, stand_ins)
        stage.made(part, noting, slice(None), "lesson", *axes)
        lessons.append(noting)
        return noting

    if target.has_surrogate:
        follows["own"] = lesson(SurrogateAttack(eps, "selective", _LESSON_STEPS, norm=norm)).follows
        if follows["own"] >= FOLLOWS:
            return follows
    for reach in _REACHES:
        further = min(eps * reach, 1.0) if norm == "linf" else eps * reach
        lesson(MarginAttack(further, _LESSON_STEPS, norm=norm))
    lessons.append(_mixtures(stage, eps, norm))
    for refresh in range(_REFRESHES + 1):
        vectors = torch.cat([v for note in lessons for v in note.vectors])
        scores = torch.cat([s for note in lessons for s in note.scores])
        seed = derive_seed(stage.seed, "student", refresh)
        stand_ins["student"] = Student.taught(vectors, scores, target.target_score, target.scale, seed)
        if refresh < _REFRESHES:
            part = SurrogateAttack(eps, "joint", _LESSON_STEPS, norm=norm, pace="halving", surrogate="student")
            follows["student"] = lesson(part, refresh).follows
    return follows


def _mixtures(stage: Stage, eps: float, norm: Ball) -> _Noting:
    """Look at the images, at them with noise within the budget, and at mixtures with guides."""
    noting, guides = _Noting(stage.target, {}), stage.target.guides()
    draws = Draws(derive_seed(stage.seed, "noise"), range(len(stage.images)))
    looked = [stage.images, (stage.images + random_in_ball(stage.images, eps, norm, draws)).clamp(0, 1)]
    if len(guides.images):
        others = guides.images.to(stage.images.device)[torch.arange(len(stage.images)) % len(guides.images)]
        looked += [others, *(stage.images + share * (others - stage.images) for share in _MIXED)]
    device = device_of(stage.model)
    with torch.no_grad():
        for images in looked:
            noting.observe(stage.model, images.to(device), surrogate=False)
    return noting


def _ordered(attack: WorstCase, stage: Stage, informed: Informed) -> tuple[Rehearsed, ...]:
    """Successive halving over the parts: all of them briefly on a few images, the best longer on the others."""
    parts, second = attack.portfolio.parts(informed), slice(_FIRST_IMAGES, None)
    tried: list[Rehearsed] = []
    for name, make in parts.items():
        tried.append(_tried(attack, stage, informed, name, make))
        if tried[-1].passed == tried[-1].images:
            break
    # Stable: where nothing tells two parts apart, the cheaper one comes first.
    tried.sort(key=lambda one: (-one.passed, one.excess))
    if tried[0].passed == tried[0].images or len(stage.images) <= _FIRST_IMAGES:
        return tuple(tried)
    better = tried[:_LEFT]
    again = {
        one.part: _passed(stage.made(parts[one.part](attack.steps, 1, 0), informed, second), informed) for one in better
    }
    found: list[Rehearsed] = []
    missing = torch.ones(len(stage.images) - _FIRST_IMAGES, dtype=torch.bool)
    while again:
        # The part that gets the most of what the parts before it leave; then the one that comes nearest.
        name = min(again, key=lambda n: (-int((again[n][0] & missing).sum()), again[n][1]))
        passed, excess = again.pop(name)
        found.append(Rehearsed(name, int(passed.sum()), len(passed), excess))
        missing &= ~passed
    return (*found, *(one for one in tried if one not in better))


def _tried(attack: WorstCase, stage: Stage, informed: Informed, name: str, make: Part) -> Rehearsed:
    """Return how a part does in the first round."""
    steps = max(int(attack.steps * _SHORT), 1)
    made = stage.made(make(steps, 1, 0), informed, slice(0, _FIRST_IMAGES), "first")
    passed, excess = _passed(made, informed)
    return Rehearsed(name, int(passed.sum()), len(passed), excess)


def _passed(made: PerturbedBatch, target: TargetDetector) -> tuple[Tensor, float]:
    """Return which images fool and pass, bool (n,), and the median excess over the threshold."""
    scores = torch.where(made.success, made.told, torch.inf).nan_to_num(nan=torch.inf)
    excess = ((scores - target.threshold) / target.scale).clamp(-1e5, 1e5)
    return scores <= target.threshold, float(excess.median())
