"""Adaptive attacks on planted detectors: what they keep, where they step, and what they may not need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pytest
import torch
from aftershock.attacks.adaptive.base import Adaptive
from aftershock.attacks.adaptive.best_found import Best
from aftershock.attacks.adaptive.decision import DecisionAttack
from aftershock.attacks.adaptive.feature_matching import FeatureMatching
from aftershock.attacks.adaptive.iterative import without
from aftershock.attacks.adaptive.score_square import ScoreSquare
from aftershock.attacks.adaptive.surrogate import SurrogateAttack
from aftershock.attacks.adaptive.worst_case import WorstCase
from aftershock.attacks.base.kinds import Effort
from aftershock.attacks.base.perturb_batch import PerturbedBatch, limited, perturb_batch, rounded
from aftershock.attacks.base.perturbation import CountingModel, Perturbation
from aftershock.attacks.base.target import Guides, Observation, StandIn
from aftershock.attacks.base.watched_model import LimitError, Limits
from aftershock.attacks.native.pgd import PGD
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.seeds import Draws
from aftershock.harness.evaluation.rankability import FLOOR
from support.attack_cases import DigitsCase, LinearCase
from torch import Tensor, nn


@dataclass(eq=False)
class Planted:
    """Flags images whose first row is far from mid-grey: an attack that leaves that row alone passes."""

    threshold: float
    images: Tensor
    labels: Tensor
    has_surrogate: bool = True
    helps: bool = True
    target_score: float = 0.0
    scale: float = 0.1
    stand_ins: Mapping[str, StandIn] = field(default_factory=dict)
    rehearsed: Sequence[str] = ()

    def score(self, images: Tensor) -> Tensor:
        return (images[:, :, 0, :] - 0.5).abs().flatten(1).mean(1)

    def observe(
        self, model: nn.Module, images: Tensor, temperature: float = 1.0, straight_through: bool = False,
        surrogate: bool = True,
    ) -> Observation:  # fmt: skip
        value = self.score(images)
        suspicion = (value if self.helps else 0 * value) if self.has_surrogate else None
        logits = model(images)
        return Observation(logits, suspicion, lambda wanted: value.detach().double()[wanted], {"logits": logits})

    def query(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return model(images), self.score(images).double()

    def guides(self) -> Guides:
        return Guides(self.images, self.labels, self.score(self.images).double())


@pytest.fixture
def planted(digits: DigitsCase) -> Planted:
    """Its threshold flags some four in ten clean images, and more of what moves their first row outwards."""
    clean = (digits.images[:, :, 0, :] - 0.5).abs().flatten(1).mean(1)
    return Planted(float(clean.quantile(0.6)), digits.images, digits.labels)


def attacked(digits: DigitsCase, planted: Planted, attack: Perturbation) -> PerturbedBatch:
    return perturb_batch(attack, digits.model, digits.images, digits.labels, digits.indices, 0, target=planted)


def passed(digits: DigitsCase, planted: Planted, attack: Perturbation) -> float:
    made = attacked(digits, planted, attack)
    assert made.flags == ()
    return float((made.success & (planted.score(made.images) <= planted.threshold)).float().mean())


@pytest.mark.parametrize("method", ["orthogonal", "selective", "joint"])
def test_knowing_the_detector_beats_not_knowing_it(
    digits: DigitsCase, planted: Planted, method: Literal["orthogonal", "selective", "joint"]
) -> None:
    oblivious = passed(digits, planted, PGD(0.15))
    assert passed(digits, planted, SurrogateAttack(0.15, method, steps=20)) > max(0.8, oblivious + 0.05)


def test_the_worst_case_works_without_a_usable_surrogate(digits: DigitsCase, planted: Planted) -> None:
    planted.has_surrogate = False
    with pytest.raises(UsageError, match="no surrogate"):
        passed(digits, planted, SurrogateAttack(0.2))
    assert passed(digits, planted, WorstCase(0.2, steps=20, queries=200)) > 0.8
    planted.has_surrogate, planted.helps = True, False
    assert passed(digits, planted, WorstCase(0.2, steps=20, queries=200)) > 0.8


def test_the_worst_case_is_at_least_each_of_its_parts(digits: DigitsCase, planted: Planted) -> None:
    parts = [
        SurrogateAttack(0.1, "selective", steps=15),
        FeatureMatching(0.1, steps=15),
        ScoreSquare(0.1, queries=50),
    ]
    worst = passed(digits, planted, WorstCase(0.1, steps=15, queries=50))
    assert all(worst >= passed(digits, planted, part) for part in parts)


def test_each_image_is_credited_to_the_part_that_made_it(digits: DigitsCase, planted: Planted) -> None:
    attack = WorstCase(0.15, steps=10, queries=50)
    made = attacked(digits, planted, attack)
    known = {*attack.portfolio.parts(planted), "search", "decision", ""}
    assert len(made.credits) == len(made.images) and set(made.credits) <= known and "selective" in made.credits
    assert all(bool(credit) for credit, turned in zip(made.credits, made.success.tolist(), strict=True) if turned)
    planted.has_surrogate = False
    blind = attacked(digits, planted, attack)
    known = {*attack.portfolio.parts(planted), "search", "decision", ""}
    assert set(blind.credits) <= known and "margin" in blind.credits and "selective" not in known
    assert attacked(digits, planted, PGD(0.1)).credits == ()


@pytest.mark.parametrize("attack", [SurrogateAttack(0.1, steps=8), FeatureMatching(0.1, steps=8)])
def test_a_detector_is_asked_only_about_images_that_fool(
    digits: DigitsCase, planted: Planted, attack: Perturbation
) -> None:
    fooled: list[bool] = []

    class Watching(Planted):
        def observe(
            self, model: nn.Module, images: Tensor, temperature: float = 1.0, straight_through: bool = False,
            surrogate: bool = True,
        ) -> Observation:  # fmt: skip
            found = super().observe(model, images)

            def score(wanted: Tensor) -> Tensor:
                with torch.no_grad():
                    predicted = found.logits.argmax(1)[wanted]
                # Within the budget an image stays nearest to its own original.
                fooled.extend((predicted != self.labels_of(images.detach()[wanted])).tolist())
                return found.score(wanted)

            return Observation(found.logits, found.suspicion, score, found.features)

        def labels_of(self, images: Tensor) -> Tensor:
            distance = torch.cdist(images.flatten(1), digits.images.flatten(1))
            return digits.labels[distance.argmin(1)]

    watching = Watching(planted.threshold, planted.images, planted.labels)
    made = attacked(digits, watching, attack)
    assert made.success.any() and fooled and all(fooled)


def test_restarts_get_out_of_a_trap(digits: DigitsCase, planted: Planted) -> None:
    class Trap(Planted):
        # The surrogate leads towards white rows, which are as suspicious as black ones, wherever a row is not dark.
        def observe(
            self, model: nn.Module, images: Tensor, temperature: float = 1.0, straight_through: bool = False,
            surrogate: bool = True,
        ) -> Observation:  # fmt: skip
            found = super().observe(model, images)
            assert found.suspicion is not None
            bright = images[:, :, 0, :].flatten(1).mean(1)
            return Observation(
                found.logits, torch.where(bright > 0.2, -bright, found.suspicion), found.score, found.features
            )

    trap = Trap(planted.threshold, planted.images, planted.labels)
    one, many = (passed(digits, trap, SurrogateAttack(0.15, "selective", steps=10, restarts=n)) for n in (1, 6))
    assert many > one


@pytest.mark.parametrize("eps", [0.05, 0.1])
def test_without_a_surrogate_no_fewer_images_are_turned_than_by_pgd(
    digits: DigitsCase, planted: Planted, eps: float
) -> None:
    planted.has_surrogate = False
    known = attacked(digits, planted, WorstCase(eps, steps=20, queries=50))
    plain = attacked(digits, planted, PGD(eps, steps=20, loss="margin"))
    assert known.success.sum() >= plain.success.sum() - 1


def test_gradients_that_never_reach_the_logits_are_counted(digits: DigitsCase, planted: Planted) -> None:
    inner = next(m for m in digits.model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    seen: list[Tensor] = []

    class Hidden(Planted):
        def observe(
            self, model: nn.Module, images: Tensor, temperature: float = 1.0, straight_through: bool = False,
            surrogate: bool = True,
        ) -> Observation:  # fmt: skip
            found = super().observe(model, images)
            return Observation(found.logits, found.suspicion, found.score, {"hidden": seen[-1]})

    handle = inner.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        # A threshold that nothing passes: every image takes every step.
        made = attacked(
            digits, Hidden(-1.0, planted.images, planted.labels, target_score=-1.0), FeatureMatching(0.05, steps=7)
        )
    finally:
        handle.remove()
    assert made.backwards == pytest.approx(7)


def test_the_search_begins_at_what_others_found(digits: DigitsCase, planted: Planted) -> None:
    # A search of one query returns its start.
    class Pair(ScoreSquare):
        def improve(
            self, best: Best, rows: Tensor, model: CountingModel, clean: Tensor, labels: Tensor, draws: Draws
        ) -> None:
            best.offer(
                rows, clean + 0.01, torch.ones(len(rows), dtype=torch.bool), planted.score(clean).double() + 1, "a"
            )
            asked.append(best.images.clone())
            super().improve(best, rows, model, clean, labels, draws)

    asked: list[Tensor] = []
    seen: list[Tensor] = []

    class Watching(Planted):
        def query(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
            seen.append(images.clone())
            return super().query(model, images)

    watching = Watching(planted.threshold, planted.images[:0], planted.labels, has_surrogate=False)
    attacked(digits, watching, Pair(0.1, queries=1))
    assert torch.equal(seen[0], asked[0])


def test_nothing_passes_at_no_budget_and_all_at_a_large_one(digits: DigitsCase, planted: Planted) -> None:
    clean = attacked(digits, planted, WorstCase(0.0, steps=2, queries=3))
    assert not clean.success.any() and torch.equal(clean.images, digits.images)
    assert passed(digits, planted, WorstCase(0.5, steps=20, queries=100)) == 1.0


@pytest.mark.parametrize("attack", [SurrogateAttack(0.15, steps=10, restarts=2), ScoreSquare(0.15, queries=30)])
def test_results_do_not_depend_on_the_batch_and_repeat(
    digits: DigitsCase, planted: Planted, attack: Perturbation
) -> None:
    def run(size: int) -> Tensor:
        return perturb_batch(
            attack, digits.model, digits.images, digits.labels, digits.indices, 3, batch_size=size, target=planted
        ).images

    assert torch.equal(run(128), run(128))
    # Sums of other batches round differently, which a sign may turn over: rarely.
    assert ((run(128) - run(11)).abs() > 1e-3).float().mean() < 0.01


def test_what_is_kept_is_the_fooling_iterate_with_the_lowest_score(planted: Planted) -> None:
    clean = torch.zeros(3, 1, 2, 2)
    best, rows = Best(clean, planted), torch.arange(3)

    def offer(value: float, fooled: list[bool], score: list[float]) -> None:
        scores = torch.tensor(score, dtype=torch.float64)
        best.offer(rows, clean + value, torch.tensor(fooled), scores, f"part {value}")

    offer(0.1, [False, True, False], [0.0, 5.0, 0.0])
    offer(0.2, [True, True, False], [9.0, 6.0, 0.0])
    offer(0.3, [False, True, False], [0.0, 4.0, 0.0])
    assert best.images.flatten(1)[:, 0].tolist() == pytest.approx([0.2, 0.3, 0.3])
    assert best.value.tolist() == [9.0, 4.0, torch.inf]
    assert best.credits == ["part 0.2", "part 0.3", ""]


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_an_image_is_found_whatever_the_detector_says_of_it(planted: Planted, value: float) -> None:
    """A detector that answers attacks with infinity or NaN must not make them give back images that fool nothing."""
    clean = torch.zeros(3, 1, 2, 2)
    best, rows = Best(clean, planted), torch.arange(3)
    for number, (fooled, score) in enumerate([([True, True, False], value), ([False, True, False], 3.0)], 1):
        scores = torch.full((3,), score, dtype=torch.float64)
        best.offer(rows, clean + number / 10, torch.tensor(fooled), scores, f"part {number}")
    assert best.found.tolist() == [True, True, False] and best.not_evaded.all()
    assert best.images.flatten(1)[:, 0].tolist() == pytest.approx([0.1, 0.2, 0.2])
    assert best.told.isnan().tolist() == [False, False, True] and best.told[:2].tolist() == [torch.inf, 3.0]
    assert best.credits == ["part 1", "part 2", ""]


def test_images_that_get_past_the_detector_late_are_counted(planted: Planted) -> None:
    def late(passed_in: list[int], iterates: int = 12) -> int:
        """Fooled from the start; the score falls below the threshold in the given iterate."""
        best, rows = Best(torch.zeros(len(passed_in), 1, 2, 2), planted), torch.arange(len(passed_in))
        for step in range(1, iterates + 1):
            hidden = torch.tensor([step >= wanted for wanted in passed_in])
            score = torch.where(hidden, planted.threshold - 1.0, planted.threshold + 1.0).double()
            best.offer(rows, torch.ones(len(rows), 1, 2, 2), torch.ones(len(rows), dtype=torch.bool), score, "part")
        return best.late

    assert late([1, 5, 9, 10, 12, 99]) == 2
    assert late([1, 5, 9, 99]) == 0
    # All got there, or there was no last quarter to speak of.
    assert late([1, 5, 10, 12]) == 0
    assert late([6, 99], iterates=7) == 0


def test_the_projection_leaves_nothing_along_the_other_gradient() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 3, 4, 4, generator=draw) for _ in range(2))
    b[0] *= 1e-30
    left = without(a, b)
    unit = torch.nn.functional.normalize(b.double().flatten(1), dim=1, eps=1e-40)
    along = (left.double().flatten(1) * unit).sum(1)
    assert torch.allclose(along, torch.zeros(5, dtype=torch.float64), atol=1e-5)
    assert torch.equal(without(a, torch.zeros_like(a)), a)


def test_without_a_detector_there_is_nothing_to_know(digits: DigitsCase) -> None:
    with pytest.raises(UsageError, match="against a detector"):
        WorstCase(0.1).perturb(CountingModel(digits.model), digits.images, digits.labels, Draws(0, digits.indices))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WorstCase(eps=2.0), "at most 1"),
        (lambda: WorstCase(eps=0.1, large_eps=0.05), "large_eps"),
        (lambda: SurrogateAttack(0.1, method="best"), "method"),  # type: ignore[arg-type]
        (lambda: SurrogateAttack(0.1, relaxation="hard"), "relaxation"),  # type: ignore[arg-type]
        (lambda: ScoreSquare(0.1, queries=0), "queries"),
        (lambda: FeatureMatching(0.1, images=0), "images"),
    ],
)
def test_wrong_parameters_are_one_sentence(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_a_budget_curve_of_one_run_is_the_perturbation_shrunk_and_judged_again(linear: LinearCase) -> None:
    # Along the weight vector, each image exactly to 1.1 times its distance from the boundary.
    weight = linear.model.weight.detach()
    distance = linear.margins / weight.norm()
    side = torch.where(linear.labels == 1, -1.0, 1.0)
    found = linear.images + (1.1 * distance * side).view(-1, 1, 1, 1) * (weight / weight.norm()).view(1, 3, 4, 4)
    for eps in (0.0, float(distance.median()), 10.0):
        made = limited(linear.model, linear.images, found, linear.labels, eps, "l2")
        assert (made.norms["l2"] <= eps * (1 + 1e-5) + 1e-6).all()
        clear = (distance - eps).abs() > 1e-3
        assert torch.equal(made.success[clear], (distance < eps)[clear])
    none = limited(linear.model, linear.images, found, linear.labels, 3.0, "l0")
    assert not none.success.any() and torch.equal(none.images, linear.images)


def test_rounding_leaves_multiples_of_1_255(digits: DigitsCase) -> None:
    made = rounded(digits.model, digits.images, (digits.images + 0.2).clamp(0, 1), digits.labels)
    assert torch.allclose(made.images * 255, (made.images * 255).round(), atol=1e-4)
    lost = rounded(digits.model, digits.images, digits.images + 0.001, digits.labels)
    assert torch.allclose(lost.images, (digits.images * 255).round() / 255, atol=1 / 255)


def test_a_model_that_rolls_dice_is_flagged_and_a_still_one_is_not(digits: DigitsCase) -> None:
    class Noisy(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return digits.model(images) + torch.randn(len(images), 1)

    for model, flagged in ((Noisy(), True), (digits.model, False)):
        made = perturb_batch(PGD(0.1), model, digits.images, digits.labels, digits.indices, 0)
        assert ("randomised-model" in made.flags) is flagged


def test_a_quantised_input_hides_its_gradient_and_is_flagged(digits: DigitsCase) -> None:
    class Quantised(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return digits.model((images * 8).round() / 8)

    labels = Quantised()(digits.images).argmax(1)
    made = perturb_batch(PGD(0.1, random_start=False), Quantised(), digits.images, labels, digits.indices, 0)
    assert "zero-gradient" in made.flags and not made.success.any()


def test_what_an_adaptive_attack_found_before_a_limit_stands(digits: DigitsCase, planted: Planted) -> None:
    """The limit is exact and the same on every machine, so what was found by then is a result."""
    attack, case = WorstCase(0.15, steps=10, queries=50), (digits.model, digits.images, digits.labels, digits.indices)
    made = perturb_batch(attack, *case, 0, target=planted, limits=Limits(forwards=9))
    assert made.flags == ("limit",) and made.forwards <= 9
    assert made.success.float().mean() > 0.5
    assert made.told[made.success].tolist() == pytest.approx(planted.score(made.images)[made.success].tolist())
    whole = attacked(digits, planted, attack)
    hidden, more = (m.success & (planted.score(m.images) <= planted.threshold) for m in (made, whole))
    assert 0 < hidden.sum() < more.sum()
    again = perturb_batch(attack, *case, 0, target=planted, limits=Limits(forwards=9))
    assert torch.equal(made.images, again.images)


def test_what_another_attack_found_before_a_limit_is_its_own_secret(digits: DigitsCase) -> None:
    case = (digits.model, digits.images, digits.labels, digits.indices, 0)
    made = perturb_batch(PGD(0.1, steps=20), *case, limits=Limits(backwards=7))
    assert made.flags == ("limit",) and made.backwards <= 8
    assert torch.equal(made.images, digits.images) and not made.success.any()

    # Each batch is ended for itself, by its own images.
    class Second(PGD):
        def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
            return super().perturb(model, images, labels, draws) if len(images) == 50 else images + 0.01

    made = perturb_batch(Second(0.1, steps=20), *case, 50, limits=Limits(backwards=7))
    assert made.flags == ("limit",)
    assert torch.equal(made.images[:50], digits.images[:50]) and torch.equal(
        made.images[50:], digits.images[50:] + 0.01
    )


def test_a_limit_of_time_is_a_failure_with_one_sentence(digits: DigitsCase, planted: Planted) -> None:
    """Machines differ: what was found by then would be another result on each."""
    for attack in (PGD(0.1), WorstCase(0.1)):
        with pytest.raises(LimitError, match="stopped after 0 seconds per image: raise seconds under"):
            perturb_batch(
                attack, digits.model, digits.images, digits.labels, digits.indices, 0, target=planted,
                limits=Limits(seconds=0),
            )  # fmt: skip


def test_every_adaptive_attack_says_what_it_invests() -> None:
    assert WorstCase(0.1).effort == Effort(50, 3, 1000) and WorstCase(0.1).effort >= FLOOR
    assert WorstCase(0.1, steps=7, restarts=1, queries=9).effort == Effort(7, 1, 9)
    assert SurrogateAttack(0.1, steps=7, restarts=2).effort == Effort(7, 2, 0)
    assert ScoreSquare(0.1, queries=9).effort == Effort(queries=9)
    assert PGD(0.1).effort is None
    assert Effort(50, 2) | Effort(1, 3, 100) == Effort(50, 3, 100)
    assert not Effort(50, 2, 99) >= FLOOR


class Rounds:
    """Watches which rounds of the worst case are made, with which attacks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.attacks: list[list[Adaptive]] = []
        real = WorstCase._attacks

        def watched(attack: WorstCase, model: CountingModel, further: int) -> list[Adaptive]:
            self.attacks.append(real(attack, model, further))
            return self.attacks[-1]

        monkeypatch.setattr(WorstCase, "_attacks", watched)


@pytest.mark.parametrize(("late", "rounds"), [([0], 1), ([1], 1), ([2, 0], 2), ([2, 2, 2], 3)])
def test_the_worst_case_goes_on_while_images_get_past_late(
    digits: DigitsCase, planted: Planted, late: list[int], rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, left = Rounds(monkeypatch), iter(late)
    with monkeypatch.context() as patched:
        patched.setattr(Best, "late", property(lambda best: next(left, 0)))
        attacked(digits, planted, WorstCase(0.05, steps=3, queries=4, restarts=2))
    assert len(watched.attacks) == rounds
    for further, made in enumerate(watched.attacks):
        *gradient, search, decision = made
        # Twice the steps and queries each time, and starts that no earlier round had.
        assert isinstance(search, ScoreSquare) and search.queries == 4 * 2**further
        assert isinstance(decision, DecisionAttack) and decision.queries == 4 * 2**further
        runs = {(vars(a)["steps"], vars(a)["restarts"], vars(a)["first_run"]) for a in gradient}
        assert runs == {(3 * 2**further, 1, 2 * further), (3 * 2**further, 1, 2 * further + 1)}


def test_a_detector_that_yields_late_gets_more_steps(
    digits: DigitsCase, planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dark images pass only as the first round ends, and bright ones only in the second."""

    class Yields(Planted):
        asked = 0

        def score(self, images: Tensor) -> Tensor:
            self.asked += 1
            dark = images.flatten(1).mean(1) < float(digits.images.mean())
            return torch.where(dark & (self.asked > first) | (self.asked > first + 20), -1.0, 1.0)

    # As often as the first round looks, less its last search: guides are scored, too.
    first = 120
    watched = Rounds(monkeypatch)
    # Below no image's target_score, so that none is left out before a round ends.
    yields = Yields(0.0, planted.images, planted.labels, target_score=-2.0, has_surrogate=False)
    made = attacked(digits, yields, WorstCase(0.3, steps=10, queries=2, restarts=2))
    assert len(watched.attacks) == 2 and made.success.all()
    assert set(made.told.tolist()) == {-1.0}
