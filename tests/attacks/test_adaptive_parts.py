"""What the worst case is made of: paces, pixels, stand-ins, the search on the alarm alone, and the rehearsal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from aftershock.attacks.adaptive.decision import DecisionAttack
from aftershock.attacks.adaptive.paces import HalvingSteps
from aftershock.attacks.adaptive.pixels import EightBits, VaryingPixels
from aftershock.attacks.adaptive.rehearsal import Informed, Stage, rehearse
from aftershock.attacks.adaptive.score_square import ScoreSquare
from aftershock.attacks.adaptive.stand_ins import Gaussian, Nearest, Student, from_states, states_of
from aftershock.attacks.adaptive.surrogate import MarginAttack, SurrogateAttack
from aftershock.attacks.adaptive.worst_case import WorstCase
from aftershock.attacks.base.perturb_batch import PerturbedBatch, perturb_batch
from aftershock.attacks.base.perturbation import Perturbation
from aftershock.attacks.base.target import Guides, Observation, StandIn, TargetDetector
from aftershock.harness.core.errors import UsageError
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from support.attack_cases import DigitsCase
from torch import Tensor, nn


@dataclass(eq=False)
class Mid:
    """Flags images whose mean grey is far from that of the clean images, in one of several forms."""

    clean: Tensor
    labels: Tensor
    form: str = "hidden"
    scale: float = 0.02
    target_score: float = 0.0
    stand_ins: Mapping[str, StandIn] = field(default_factory=dict)
    rehearsed: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.middle = self.clean.mean()
        self.cut = float(self.raw(self.clean).quantile(0.9))
        self.threshold = 0.5 if self.form == "binary" else self.cut
        self.has_surrogate = self.form in ("nan", "exact")

    def raw(self, images: Tensor) -> Tensor:
        if self.form == "binary":
            # How rough an image is: squares of random sign make it rougher, a mixture of two clean ones does not.
            return images.diff(dim=2).abs().flatten(1).mean(1) + images.diff(dim=3).abs().flatten(1).mean(1)
        return (images.flatten(1).mean(1) - self.middle).abs()

    def told(self, images: Tensor) -> Tensor:
        raw = self.raw(images).double()
        if self.form == "off-grid":
            off = (images * 255 - (images * 255).round()).abs().flatten(1).amax(1) > 1e-2
            return raw + off.double()
        return (raw > self.cut).double() if self.form == "binary" else raw

    def passes(self, images: Tensor) -> Tensor:
        return self.told(images) <= self.threshold

    def observe(
        self, model: nn.Module, images: Tensor, temperature: float = 1.0, straight_through: bool = False,
        surrogate: bool = True,
    ) -> Observation:  # fmt: skip
        logits, told = model(images), self.told(images.detach())
        suspicion = self.raw(images) * (torch.nan if self.form == "nan" else 1.0) if self.has_surrogate else None
        return Observation(logits, suspicion, lambda wanted: told[wanted], {"pixels": images})

    def query(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return model(images), self.told(images)

    def guides(self) -> Guides:
        return Guides(self.clean, self.labels, self.told(self.clean))


def mid(digits: DigitsCase, form: str = "hidden") -> Mid:
    return Mid(digits.images, digits.labels, form)


def made_by(digits: DigitsCase, target: TargetDetector, attack: Perturbation) -> PerturbedBatch:
    return perturb_batch(attack, digits.model, digits.images, digits.labels, digits.indices, 0, target=target)


def share(made: PerturbedBatch, target: Mid) -> float:
    return float((made.success & target.passes(made.images)).double().mean())


@given(st.floats(0.004, 0.3), st.integers(0, 100))
def test_what_is_shown_of_an_iterate_lies_on_the_levels_of_a_file_and_within_the_budget(eps: float, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    clean = (torch.rand(3, 1, 4, 4, generator=draws) * 255).round() / 255
    images = (clean + eps * (2 * torch.rand(clean.shape, generator=draws) - 1)).clamp(0, 1)
    shown = EightBits("linf").of(images, clean, eps)
    assert float((shown * 255 - (shown * 255).round()).abs().max()) < 1e-4
    assert float((shown - clean).abs().max()) <= eps + 1e-6
    assert float((shown - images).abs().max()) <= 1 / 255 + 1e-6
    round_in_l2 = EightBits("l2").of(images, clean, eps)
    assert bool(((round_in_l2 - clean).abs() <= (images - clean).abs() + 1e-6).all())


def test_pixels_that_never_vary_are_left_alone() -> None:
    clean = torch.rand(5, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    clean[:, :, 0] = 0.25
    grid = VaryingPixels(Guides(clean, torch.zeros(5, dtype=torch.int64), torch.zeros(5)))
    shown = grid.of(clean + 0.1, clean, 0.1)
    assert torch.equal(shown[:, :, 0], clean[:, :, 0]) and torch.equal(shown[:, :, 1:], (clean + 0.1)[:, :, 1:])


def test_halved_steps_reach_the_top_of_a_hill_that_whole_steps_jump_over() -> None:
    top = torch.full((4, 1, 2, 2), 0.53)
    clean = torch.full_like(top, 0.5)
    walk = HalvingSteps(clean, clean, 0.2, "linf", 60, 0.4)
    for step in range(60):
        value = -(walk.images - top).flatten(1).square().sum(1)
        walk.move(step, top - walk.images, value, torch.ones(4, dtype=torch.bool))
    assert float((walk.images - top).abs().max()) < 0.02


def test_the_gaussian_is_the_mahalanobis_distance_with_a_shrunk_covariance() -> None:
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    vectors = torch.randn(60, 8, generator=draws) @ torch.randn(8, 8, generator=draws) + labels[:, None]
    made = Gaussian.fitted(vectors, labels, 0.0, 1.0)
    values = vectors.double()
    means = torch.stack([values[labels == c].mean(0) for c in range(3)])
    centred = values - means[labels]
    spread = centred.square().mean(0).sqrt()
    covariance = 0.95 * (centred / spread).T @ (centred / spread) / 60 + 0.05 * torch.eye(8, dtype=torch.float64)
    new = torch.randn(10, 8, generator=draws) * 5
    offsets = (new.double()[:, None] - means) / spread
    wanted = torch.einsum("ncd,de,nce->nc", offsets, torch.linalg.inv(covariance), offsets).amin(1) / 2
    assert torch.allclose(made.distance(new).double(), wanted, rtol=1e-3)


def test_nearest_falls_towards_clean_images_and_its_gradient_is_finite_where_it_meets_one() -> None:
    vectors = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    made = Nearest.fitted(vectors, 0.0, 1.0)
    there = vectors[:1].clone().requires_grad_()
    found = made.distance(there)
    (gradient,) = torch.autograd.grad(found.sum(), there)
    assert bool(gradient.isfinite().all()) and float(found.detach()) < float(made.distance(vectors[:1] + 1))


def test_a_student_ranks_as_it_was_taught_also_where_scores_are_not_finite() -> None:
    draws = torch.Generator().manual_seed(0)
    vectors = torch.randn(1200, 6, generator=draws)
    scores = (vectors[:, 0].abs() + vectors[:, 1]).double()
    taught = scores[:900].clone()
    taught[scores[:900] > 2.5] = torch.inf
    made = Student.taught(vectors[:900], taught, 0.0, 1.0, 0)
    assert spearmanr(made.value(vectors[900:]).numpy(), scores[900:].numpy()).statistic > 0.95
    again = Student.taught(vectors[:900], taught, 0.0, 1.0, 0)
    assert torch.equal(made.value(vectors), again.value(vectors))


def test_stand_ins_come_back_from_their_states() -> None:
    vectors = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    made: dict[str, StandIn] = {
        "gaussian": Gaussian.fitted(vectors, torch.arange(40) % 2, 1.0, 2.0),
        "nearest": Nearest.fitted(vectors, 1.0, 2.0),
        "student": Student.taught(vectors, vectors[:, 0].double(), 1.0, 2.0, 0),
    }
    seen = Observation(vectors, None, lambda wanted: vectors[:, 0], {})
    back = from_states(states_of(made))
    assert set(back) == set(made) and all(torch.equal(back[name](seen), made[name](seen)) for name in made)


@pytest.mark.parametrize("aim", ["likeliest", "quietest"])
def test_an_aim_is_a_class_of_its_own_in_each_run(digits: DigitsCase, aim: str) -> None:
    target = mid(digits, "exact")
    attack = SurrogateAttack(0.3, "joint", steps=15, pace="halving", aim=aim)  # type: ignore[arg-type]
    assert share(made_by(digits, target, attack), target) > 0.5
    with torch.no_grad():
        runs = [
            attack.carried(digits.model, target, digits.images, digits.labels, run)["class"]  # type: ignore[arg-type]
            for run in range(3)
        ]
    assert all(bool((run != digits.labels).all()) for run in runs) and bool((runs[0] != runs[1]).all())


def test_a_surrogate_of_nan_does_not_kill_the_margin(digits: DigitsCase) -> None:
    target = mid(digits, "nan")
    for method in ("selective", "orthogonal", "joint"):
        made = made_by(digits, target, SurrogateAttack(0.3, method, steps=15))
        assert float(made.success.double().mean()) > 0.8


def test_the_alarm_alone_is_enough(digits: DigitsCase) -> None:
    """A score of 0 or 1 shows a search on the score no way down."""
    target = mid(digits, "binary")
    blind, decided = (made_by(digits, target, attack(0.4, queries=400)) for attack in (ScoreSquare, DecisionAttack))
    assert share(decided, target) > share(blind, target) + 0.1
    assert decided.flags == () and float(decided.norms["linf"].max()) <= 0.4 + 1e-5


@pytest.fixture
def stage(digits: DigitsCase) -> Callable[[Mid], Stage]:
    return lambda target: Stage(digits.model, target, digits.images, digits.labels, 0)


def test_a_rehearsal_teaches_a_student_where_the_surrogate_is_missing_or_misleads(
    digits: DigitsCase, stage: Callable[[Mid], Stage]
) -> None:
    attack = WorstCase(0.15, steps=15, queries=1)
    hidden = mid(digits)
    learned = rehearse(attack, stage(hidden))
    assert set(learned.follows) == {"student"}
    # On images as an attack makes them; at the bottom, where its own path ends, all scores are nearly the same.
    made = made_by(digits, hidden, MarginAttack(0.15, steps=5))
    with torch.no_grad():
        found = hidden.observe(digits.model, made.images, surrogate=False)
    ranks = spearmanr(learned.stand_ins["student"](found).numpy(), hidden.told(made.images).numpy())
    assert ranks.statistic > 0.8
    assert set(learned.stand_ins) == {"student", "gaussian", "nearest"}
    assert {p.part for p in learned.parts} <= set(attack.portfolio.parts(Informed(hidden, learned.stand_ins)))
    open_ = rehearse(attack, stage(mid(digits, "exact")))
    # What follows the score, or is enough without that being looked at, needs no student.
    assert open_.follows.get("own", 1.0) > 0.99 and "student" not in open_.stand_ins
    assert rehearse(attack, stage(mid(digits, "nan"))).follows["own"] == 0.0


def test_hiding_the_surrogate_gains_next_to_nothing(digits: DigitsCase, stage: Callable[[Mid], Stage]) -> None:
    attack = WorstCase(0.12, steps=20, queries=50, restarts=1)
    shares = {}
    for form in ("exact", "hidden"):
        target = mid(digits, form)
        learned = rehearse(attack, stage(target))
        informed = Informed(target, learned.stand_ins, [p.part for p in learned.parts])
        shares[form] = share(made_by(digits, informed, attack), target)
    assert shares["exact"] > 0.2 and shares["hidden"] > shares["exact"] - 0.05


def test_what_no_file_can_hold_is_not_shown_to_a_detector_that_looks_for_it(digits: DigitsCase) -> None:
    target = mid(digits, "off-grid")
    on_grid = replace(digits, images=(digits.images * 255).round() / 255)
    made = made_by(on_grid, target, WorstCase(0.15, steps=15, queries=20, restarts=1))
    assert share(made, target) > 0.5 and any(credit.endswith("8-bit") for credit in made.credits)


def test_a_stand_in_that_was_not_learned_is_one_sentence(digits: DigitsCase) -> None:
    attack = SurrogateAttack(0.2, "joint", pace="halving", surrogate="student")
    with pytest.raises(UsageError, match=r'only = \["joint-student-halving"\]'):
        made_by(digits, mid(digits), attack)


def test_one_part_can_run_alone_by_its_name(digits: DigitsCase) -> None:
    target = mid(digits, "exact")
    made = made_by(digits, target, WorstCase(0.2, steps=10, only=["orthogonal"]))
    assert set(made.credits) - {""} == {"orthogonal"}
    with pytest.raises(UsageError, match="selective"):
        made_by(digits, target, WorstCase(0.2, only=["joint-student-halving"]))
    with pytest.raises(UsageError, match="list"):
        WorstCase(0.2, only="selective")
