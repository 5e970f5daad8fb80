from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from aftershock.attacks import CountingModel
from aftershock.attacks.base.perturb_batch import perturb_batch
from aftershock.attacks.base.perturbation import Perturbation
from aftershock.attacks.benign.noise import Gaussian, Uniform
from aftershock.attacks.native.pgd import FGSM, PGD, Loss, dlr, input_gradient, margin, shift_of
from aftershock.harness.core.errors import UnavailableError, UsageError
from support.attack_cases import DigitsCase, LinearCase, run
from torch import Tensor, nn

# Of |w·x + b| in units of the dual norm; images this near to the boundary are left out of the closed forms.
SLACK = 1e-4


def expected(
    linear: LinearCase, eps: float, dual: int | str, slack: float = SLACK
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which images the best attack of the budget fools, and which are far enough from the boundary to tell."""
    distance = linear.margins / torch.linalg.vector_norm(linear.model.weight.detach(), float(dual))
    return distance < eps, (distance - eps).abs() > slack


@pytest.mark.parametrize(
    "perturbation",
    [
        FGSM(0.02),
        PGD(0.02),
        PGD(0.02, loss="margin"),
        PGD(0.02, steps=1, step_size=0.02, random_start=False),
        PGD(0.02, restarts=3),
        PGD(0.02, restarts=3, early_stop=True),
        PGD(0.02, momentum=1.0),
        PGD(0.02, targeted=True, loss="margin"),
        PGD(0.02, targeted=True, target="random"),
    ],
)
def test_linf_on_a_linear_model_succeeds_exactly_below_the_dual_norm(
    linear: LinearCase, perturbation: Perturbation
) -> None:
    fooled, clear = expected(linear, 0.02, 1)
    made = run(linear, perturbation)
    assert 30 < fooled.sum() < 170 and clear.sum() > 190 and made.flags == ()
    assert torch.equal(made.success[clear], fooled[clear])
    assert (made.norms["linf"] <= 0.02 + 1e-6).all()


def test_fgsm_from_a_random_start_ends_where_its_step_and_the_budget_say(linear: LinearCase) -> None:
    made = run(linear, FGSM(0.02, random_start=True))
    # Along the ascent direction: min(u + 1.25 eps, eps) with u uniform in [-eps, eps], whose mean is
    # eps (1 - 0.75^2 / 4), and at an end of the budget with chance 1 - 0.75 / 2.
    toward = torch.where(linear.labels == 0, 1.0, -1.0)[:, None] * linear.model.weight.detach().sign()
    along = (made.images - linear.images).flatten(1) * toward / 0.02
    assert float(along.mean()) == pytest.approx(1 - 0.75**2 / 4, abs=0.01)
    assert float((along > 1 - 1e-4).float().mean()) == pytest.approx(1 - 0.75 / 2, abs=0.02)
    assert float(along.min()) >= 0.25 - 1e-4 and made.flags == ()


@pytest.mark.parametrize(
    "perturbation", [FGSM(0.1, norm="l2"), PGD(0.1, norm="l2", random_start=False), PGD(0.1, steps=60, norm="l2")]
)
def test_l2_on_a_linear_model_succeeds_exactly_below_the_dual_norm(
    linear: LinearCase, perturbation: Perturbation
) -> None:
    fooled, clear = expected(linear, 0.1, 2, slack=1e-3)  # a random start leaves a little off the axis
    made = run(linear, perturbation)
    assert 30 < fooled.sum() < 170 and clear.sum() > 180 and made.flags == ()
    assert torch.equal(made.success[clear], fooled[clear])
    assert (made.norms["l2"] <= 0.1 + 1e-6).all() and (made.norms["l2"] > 0.0999).all()


@pytest.mark.parametrize("random_start", [True, False])
def test_l1_on_a_linear_model_succeeds_exactly_below_the_dual_norm(linear: LinearCase, random_start: bool) -> None:
    # One coordinate of 48 per step: the vertex of the L1 ball is the best there is. No image can leave [0, 1].
    fooled, clear = expected(linear, 0.2, "inf", slack=2e-3)
    made = run(linear, PGD(0.2, steps=30, norm="l1", random_start=random_start))
    assert 30 < fooled.sum() < 190 and clear.sum() > 180 and made.flags == ()
    assert torch.equal(made.success[clear], fooled[clear])
    assert (made.norms["l1"] <= 0.2 + 1e-6).all() and (made.norms["l0"] < 10).all()


def test_l1_steps_do_not_spend_themselves_on_coordinates_at_the_end_of_the_range() -> None:
    class Planted(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            value = images.flatten(1) @ torch.tensor([9.0, 2.0, 1.0, -8.0])
            return torch.stack([torch.full_like(value, 10.0), value], 1)

    # The steepest coordinates are at 1 and 0 already: all of 0.6 has to go to the second.
    clean = torch.tensor([1.0, 0.1, 0.1, 0.0]).view(1, 1, 2, 2)
    made = perturb_batch(PGD(0.6, norm="l1", random_start=False), Planted(), clean, torch.tensor([0]), [0], 0)
    assert made.success.all()
    assert torch.allclose(made.images.flatten(), torch.tensor([1.0, 0.7, 0.1, 0.0]), atol=1e-5)


def test_a_larger_share_spreads_an_l1_attack(digits: DigitsCase) -> None:
    changed = [
        run(digits, PGD(1.5, norm="l1", random_start=False, share=share)).norms["l0"].mean() for share in (0.02, 0.3)
    ]
    assert changed[0] < 0.7 * changed[1]


def test_momentum_is_that_of_the_paper(digits: DigitsCase) -> None:
    made = run(digits, PGD(0.06, steps=6, step_size=0.02, momentum=0.9, random_start=False))
    x, velocity = digits.images.clone(), torch.zeros_like(digits.images)
    for _ in range(6):
        gradient = input_gradient(CountingModel(digits.model), x, digits.labels)
        velocity = 0.9 * velocity + gradient / gradient.abs().sum((1, 2, 3), keepdim=True)
        x = torch.clamp(x + 0.02 * velocity.sign(), digits.images - 0.06, digits.images + 0.06).clamp(0, 1)
    # A sum of gradients that cancels may round to either side.
    assert ((made.images - x).abs() > 1e-5).float().mean() < 1e-3
    plain = run(digits, PGD(0.06, steps=6, step_size=0.02, random_start=False))
    assert not torch.equal(made.images, plain.images)


def test_a_targeted_attack_ends_in_its_class(digits: DigitsCase) -> None:
    with torch.no_grad():
        order = digits.model(digits.images).argsort(dim=1, descending=True)
    made = run(digits, PGD(0.3, steps=20, targeted=True, loss="margin"))
    assert (made.predictions == order[:, 1]).float().mean() > 0.95
    drawn = run(digits, PGD(0.3, steps=20, targeted=True, target="random", loss="margin"))
    assert drawn.success.float().mean() > 0.8
    # One class of nine: far from always the likeliest, and every class is somebody's target.
    assert (drawn.predictions == order[:, 1]).float().mean() < 0.4
    assert len(drawn.predictions.unique()) == 10


def test_early_stop_keeps_the_first_iterate_that_fools(digits: DigitsCase) -> None:
    settings: dict[str, Any] = {"step_size": 0.015, "random_start": False}
    stopped = run(digits, PGD(0.06, steps=8, early_stop=True, **settings))
    # The iterate after k steps of a run is the result of a run of k steps.
    iterates = [run(digits, PGD(0.06, steps=k, **settings)) for k in range(1, 9)]
    fooled = torch.stack([made.success for made in iterates])
    assert torch.equal(stopped.success, fooled.any(0))
    first = torch.where(fooled.any(0), fooled.int().argmax(0), 7)
    oracle = torch.stack([iterates[int(k)].images[i] for i, k in enumerate(first)])
    assert ((stopped.images - oracle).abs() > 1e-4).float().mean() < 1e-3
    # The image that k steps fool takes part in k + 1 forwards, the last of them only if there is a further step.
    passes = torch.where(fooled.any(0), (first + 2).clamp_max(8), 8)
    assert stopped.forwards == pytest.approx(passes.float().mean().item())
    assert 0.2 < stopped.success.float().mean() < 0.95


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_looking_at_every_iterate_never_fools_fewer(digits: DigitsCase, loss: Loss) -> None:
    last = run(digits, PGD(0.05, steps=6, restarts=3, loss=loss))
    every = run(digits, PGD(0.05, steps=6, restarts=3, loss=loss, early_stop=True))
    assert every.success[last.success].all() and 0 < last.success.sum() < 80
    assert every.forwards < last.forwards and every.backwards < last.backwards
    whole = run(digits, PGD(0.0, steps=4, restarts=3, early_stop=True))
    assert (whole.forwards, whole.backwards) == (3 * 4 + 2, 3 * 4)


def test_dlr_does_not_care_for_the_scale_of_the_logits(digits: DigitsCase) -> None:
    logits, labels = torch.tensor([[5.0, 1.0, 3.0, 0.0], [2.0, 4.0, 0.0, -2.0]]), torch.tensor([0, 0])
    # (other - own) / (first - third), and towards class 3 over first less the mean of third and fourth.
    assert dlr(logits, labels).tolist() == pytest.approx([(3 - 5) / (5 - 1), (4 - 2) / (4 - 0)])
    towards = dlr(logits, labels, torch.tensor([3, 3]))
    assert towards.tolist() == pytest.approx([(0 - 5) / (5 - 0.5), (-2 - 2) / (4 + 1)])
    assert torch.allclose(dlr(1e4 * logits - 7, labels), dlr(logits, labels))

    class Steep(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return 1e4 * digits.model(images)

    plain, steep = (run(digits, PGD(0.05, loss="dlr", random_start=False), m) for m in (None, Steep()))
    assert (plain.success == steep.success).float().mean() > 0.97
    assert run(digits, PGD(0.05, random_start=False), Steep()).success.sum() < plain.success.sum()


def test_a_loss_that_the_classes_do_not_allow_is_said_beforehand(linear: LinearCase) -> None:
    with pytest.raises(UnavailableError, match="3 classes, not 2"):
        run(linear, PGD(0.02, loss="dlr"))


def test_the_gradient_is_that_of_each_image_alone(digits: DigitsCase) -> None:
    whole = input_gradient(CountingModel(digits.model), digits.images[:5], digits.labels[:5])
    x = digits.images[:5].double().requires_grad_()
    logits = copy.deepcopy(digits.model).double()(x)
    # The derivative of cross-entropy by the logits: softmax minus one-hot.
    upstream = logits.softmax(1) - nn.functional.one_hot(digits.labels[:5], 10)
    (oracle,) = torch.autograd.grad(logits, x, upstream.detach())
    assert torch.allclose(whole.double(), oracle, atol=1e-5)


def test_margin_is_positive_exactly_for_fooled_images() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [-5.0, -6.0, -7.0]])
    assert margin(logits, torch.tensor([1, 1])).tolist() == [-1.0, 1.0]


def test_more_steps_are_not_weaker_on_a_curved_model(digits: DigitsCase) -> None:
    one = run(digits, FGSM(0.08)).success.float().mean()
    many = run(digits, PGD(0.08, steps=20, random_start=False)).success.float().mean()
    assert 0.1 < one < 0.95 and many > one


def test_success_grows_with_the_budget(digits: DigitsCase) -> None:
    rates = [float(run(digits, PGD(eps, loss="margin")).success.float().mean()) for eps in (0, 0.02, 0.05, 0.1, 0.3)]
    assert rates == sorted(rates) and rates[0] == 0 and rates[-1] > 0.95


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_restarts_are_never_worse_and_keep_what_succeeded_first(digits: DigitsCase, loss: Loss) -> None:
    once = run(digits, PGD(0.05, steps=2, step_size=0.03, loss=loss))
    often = run(digits, PGD(0.05, steps=2, step_size=0.03, restarts=8, loss=loss))
    assert 0 < once.success.sum() < len(once.success)
    assert often.success[once.success].all() and often.success.sum() > once.success.sum()
    assert torch.equal(often.images[once.success], once.images[once.success])


@pytest.mark.parametrize(
    "often",
    [
        PGD(0.05, steps=3, restarts=4),
        PGD(0.05, steps=3, restarts=4, early_stop=True, momentum=0.5, targeted=True, target="random"),
        PGD(1.0, steps=3, restarts=4, early_stop=True, norm="l1", share=0.05),
    ],
)
def test_images_that_leave_the_batch_change_nothing_for_the_others(digits: DigitsCase, often: Perturbation) -> None:
    whole = run(digits, often)
    alone = perturb_batch(often, digits.model, digits.images, digits.labels, digits.indices, 0, batch_size=1)
    assert ((whole.images - alone.images).abs() > 1e-4).float().mean() < 1e-3


def test_counts_have_a_closed_form(linear: LinearCase) -> None:
    one = run(linear, PGD(0.02, steps=7))
    assert (one.forwards, one.backwards) == (7, 7)
    # Nothing is ever fooled: every restart is paid, and a check after each but the last.
    never = run(linear, PGD(0.0, steps=7, restarts=3))
    assert not never.success.any() and (never.forwards, never.backwards) == (3 * 7 + 2, 3 * 7)
    # Everything is fooled at once: one run and one check.
    always = run(linear, PGD(0.2, steps=7, restarts=3))
    assert always.success.all() and (always.forwards, always.backwards) == (8, 7)
    # Without a draw, a share p of the images leaves after the first of two restarts.
    some = run(linear, PGD(0.02, steps=7, restarts=2))
    left = 1 - some.success.float().mean().item()
    assert some.forwards == pytest.approx(7 + 1 + 7 * left) and some.backwards == pytest.approx(7 + 7 * left)


def test_the_seed_and_nothing_else_moves_random_starts(digits: DigitsCase) -> None:
    attack = PGD(0.05, steps=2)
    assert torch.equal(run(digits, attack, seed=1).images, run(digits, attack, seed=1).images)
    assert not torch.equal(run(digits, attack, seed=1).images, run(digits, attack, seed=2).images)
    fixed = PGD(0.05, steps=2, random_start=False)
    assert torch.equal(run(digits, fixed, seed=1).images, run(digits, fixed, seed=2).images)


@pytest.mark.parametrize(
    "perturbation", [FGSM(0), FGSM(0, norm="l2"), PGD(0), PGD(0, norm="l2"), PGD(0, norm="l1"), Uniform(0)]
)
def test_a_budget_of_nothing_changes_nothing(linear: LinearCase, perturbation: Perturbation) -> None:
    made = run(linear, perturbation)
    assert torch.equal(made.images, linear.images) and not made.success.any()


def test_the_default_step_is_two_and_a_half_budgets_over_the_steps() -> None:
    assert PGD(0.1, steps=25).step_size == pytest.approx(0.01)
    assert (PGD(0.1, norm="l2").norm, PGD(0.1).norm, FGSM(0.1, norm="l2").norm) == ("l2", "linf", "l2")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(-0.1), "eps = -0.1"),
        (lambda: PGD(float("nan")), "eps = nan"),
        (lambda: PGD(8.0), "8/255"),
        (lambda: FGSM(float("inf"), norm="l2"), "eps = inf"),
        (lambda: FGSM(0.1, norm="l1"), "linf or l2"),  # type: ignore[arg-type]
        (lambda: PGD(0.1, norm="l0"), "linf or l2"),  # type: ignore[arg-type]
        (lambda: PGD(0.1, steps=0), "steps = 0"),
        (lambda: PGD(0.1, steps=2.5), "steps = 2.5"),  # type: ignore[arg-type]
        (lambda: PGD(0.1, step_size=0.0), "step_size"),
        (lambda: PGD(0.1, restarts=0), "restarts = 0"),
        (lambda: PGD(0.1, restarts=2, random_start=False), "random_start"),
        (lambda: PGD(0.1, loss="hinge"), "ce or margin"),  # type: ignore[arg-type]
        (lambda: PGD(0.1, momentum=-0.5), "momentum"),
        (lambda: PGD(0.1, target="random"), "targeted = true"),
        (lambda: PGD(0.1, targeted=True, target="least"), "likeliest or random"),  # type: ignore[arg-type]
        (lambda: PGD(0.1, norm="l1", share=0.0), "share"),
        (lambda: PGD(0.1, norm="l1", share=1.5), "at most 1"),
        (lambda: Gaussian(0.0), "std"),
        (lambda: Gaussian(float("nan")), "std"),
        (lambda: Uniform(1.5), "eps"),
        (lambda: Uniform(-1), "eps"),
    ],
)
def test_wrong_parameters_are_one_sentence(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
    assert PGD(3.0, norm="l2").eps == 3.0


def test_gaussian_noise_has_its_standard_deviation(linear: LinearCase) -> None:
    made = run(linear, Gaussian(0.05))
    delta = made.images - linear.images
    # Images in [0.3, 0.7] lie six standard deviations from the range's ends: nothing is clipped. 9600 draws.
    assert float(delta.std()) == pytest.approx(0.05, rel=0.03) and abs(float(delta.mean())) < 0.002
    assert (made.forwards, made.backwards) == (0, 0)


def test_uniform_noise_fills_its_budget(linear: LinearCase) -> None:
    made = run(linear, Uniform(0.1))
    delta = made.images - linear.images
    assert float(delta.abs().max()) <= 0.1 + 1e-6 and float(delta.abs().max()) > 0.099
    assert float(delta.std()) == pytest.approx(0.1 / 3**0.5, rel=0.03) and made.flags == ()


@pytest.mark.parametrize("perturbation", [Gaussian(2.0), Uniform(1.0)])
def test_noise_stays_in_range(linear: LinearCase, perturbation: Perturbation) -> None:
    made = run(linear, perturbation)
    assert made.images.min() == 0 and made.images.max() == 1 and made.flags == ()


def test_shifts_of_the_distribution_are_their_closed_forms_and_have_a_slope_next_to_the_image() -> None:
    draw = torch.Generator().manual_seed(0)
    clean, logits = 5 * torch.randn(2, 20, 6, generator=draw)
    p, q = clean.double().softmax(1), logits.double().softmax(1)
    assert torch.allclose(shift_of(logits, clean, "kl"), (p * (p / q).log()).sum(1))
    assert torch.allclose(shift_of(logits, clean, "gini"), 1 - q.square().sum(1))
    arc = 2 * (p * q).sqrt().sum(1).clamp(max=1).acos()
    assert torch.allclose(shift_of(logits, clean, "fisher-rao"), arc, atol=1e-6)
    # A model that is sure: the cosine of the arc is 1 in all digits.
    sure = torch.tensor([[40.0, 0.0, 0.0]])
    near = (sure - torch.tensor([[1e-3, 0.0, 0.0]])).requires_grad_()
    (gradient,) = torch.autograd.grad(shift_of(near, sure, "fisher-rao").sum(), near)
    assert bool(gradient.isfinite().all()) and bool((gradient != 0).any())


@pytest.mark.parametrize("loss", ["kl", "gini", "fisher-rao"])
def test_pgd_that_moves_the_distribution_fools_without_a_class_to_go_to(
    digits: DigitsCase, loss: Literal["kl", "gini", "fisher-rao"]
) -> None:
    made = run(digits, PGD(0.3, steps=20, loss=loss))
    assert float(made.success.double().mean()) > (0.3 if loss == "gini" else 0.5)
    with pytest.raises(UsageError, match="random start"):
        PGD(0.3, loss=loss, random_start=False)
    with pytest.raises(UsageError, match="targeted"):
        PGD(0.3, loss=loss, targeted=True)
