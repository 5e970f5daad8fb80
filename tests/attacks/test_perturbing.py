from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from aftershock.attacks import CountingModel, Perturbation, PerturbationInfo
from aftershock.attacks.base.perturb_batch import perturb_batch
from aftershock.attacks.base.perturbation import Norm, norms
from aftershock.attacks.base.watched_model import WatchedModel
from aftershock.attacks.benign.noise import Gaussian
from aftershock.attacks.native.autopgd import AutoPGD
from aftershock.attacks.native.pgd import FGSM, PGD
from aftershock.harness.core.errors import UnavailableError, UsageError
from aftershock.harness.core.seeds import Draws
from support.attack_cases import DigitsCase, LinearCase
from support.generators import generator_states
from torch import Tensor, nn

Change = Callable[[CountingModel, Tensor, Tensor], Tensor]


class Planted(Perturbation):
    """A perturbation that does whatever a test wants."""

    info: ClassVar[PerturbationInfo] = PerturbationInfo(title="planted", kind="attack", family="planted")

    def __init__(self, change: Change, eps: float | None = None, norm: Norm | None = None) -> None:
        self.change, self.eps, self._norm = change, eps, norm

    @property
    def norm(self) -> Norm | None:
        return self._norm

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        return self.change(model, images, labels)


def unchanged(model: CountingModel, images: Tensor, labels: Tensor) -> Tensor:
    return images


def test_results_are_measured(linear: LinearCase) -> None:
    made = perturb_batch(FGSM(0.05), linear.model, linear.images, linear.labels, linear.indices, seed=0)
    assert made.images.dtype == torch.float32 and made.images.shape == linear.images.shape
    assert not made.images.requires_grad and made.images.device.type == "cpu"
    with torch.no_grad():
        assert torch.equal(made.predictions, linear.model(made.images).argmax(1))
    assert torch.equal(made.success, made.predictions != linear.labels)
    assert 0 < made.success.sum() < len(made.success)
    delta = (made.images.double() - linear.images.double()).flatten(1)
    assert torch.allclose(made.norms["linf"].double(), delta.abs().amax(1), atol=1e-6)
    assert torch.allclose(made.norms["l2"].double(), delta.pow(2).sum(1).sqrt(), atol=1e-5)
    assert torch.allclose(made.norms["l1"].double(), delta.abs().sum(1), atol=1e-4)
    assert (made.norms["l0"] == 16).all()
    assert (made.forwards, made.backwards, made.flags) == (1, 1, ())


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.03), ("l2", 0.5), ("l1", 2.0)])
def test_an_attack_beyond_its_budget_is_projected_and_flagged(linear: LinearCase, norm: Norm, eps: float) -> None:
    cheat = Planted(lambda model, images, labels: images + torch.linspace(-0.3, 0.3, 48).view(3, 4, 4), eps, norm)
    made = perturb_batch(cheat, linear.model, linear.images, linear.labels, linear.indices, seed=0)
    assert made.flags == ("over-budget",)
    assert (made.norms[norm] <= eps + 1e-6).all()
    assert (made.norms[norm] >= eps * 0.999).all()


def test_an_l0_budget_is_checked_and_what_is_beyond_it_is_no_success(linear: LinearCase) -> None:
    def change(model: CountingModel, images: Tensor, labels: Tensor) -> Tensor:
        # Towards the other class in all channels of the first three pixels, in every other image of the first two.
        sign = torch.where(labels == 0, 1.0, -1.0).view(-1, 1, 1, 1) * linear.model.weight.view(3, 4, 4).sign()
        moved = images.flatten(2).clone()
        moved[:, :, :2] = torch.where(sign.flatten(2)[:, :, :2] > 0, 1.0, 0.0)
        moved[::2, :, 2] = torch.where(sign.flatten(2)[::2, :, 2] > 0, 1.0, 0.0)
        return moved.view_as(images).detach()

    case = (linear.model, linear.images, linear.labels, linear.indices, 0)
    free, held = perturb_batch(Planted(change), *case), perturb_batch(Planted(change, 2, "l0"), *case)
    assert free.flags == () and free.success[::2].sum() > 10 and free.success[1::2].sum() > 10
    assert free.norms["l0"].tolist() == [3, 2] * 100
    assert held.flags == ("over-budget",) and held.norms["l0"].tolist() == [0, 2] * 100
    assert not held.success[::2].any() and torch.equal(held.images[::2], linear.images[::2])
    assert torch.equal(held.success[1::2], free.success[1::2])
    assert torch.equal(held.images[1::2], free.images[1::2])
    assert perturb_batch(Planted(change, 3, "l0"), *case).flags == ()


def test_only_images_beyond_their_budget_are_touched(linear: LinearCase) -> None:
    def cheat(model: CountingModel, images: Tensor, labels: Tensor) -> Tensor:
        moved = images + 0.02
        moved[0] += 0.1
        return moved

    made = perturb_batch(Planted(cheat, 0.05, "linf"), linear.model, linear.images, linear.labels, range(200), 0, 200)
    assert made.flags == ("over-budget",)
    assert torch.equal(made.images[1:], linear.images[1:] + 0.02)
    assert float(made.norms["linf"][0]) == pytest.approx(0.05, abs=1e-6)


def test_rounding_at_the_boundary_is_no_cheat(linear: LinearCase) -> None:
    exact = Planted(lambda model, images, labels: images + 8 / 255, 8 / 255, "linf")
    assert perturb_batch(exact, linear.model, linear.images, linear.labels, linear.indices, seed=0).flags == ()


def broken_values(value: float) -> Change:
    def change(model: CountingModel, images: Tensor, labels: Tensor) -> Tensor:
        images = images + 0.01
        images[1, 0, 0, 0] = value
        return images

    return change


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_non_finite_image_is_replaced_by_the_clean_one(linear: LinearCase, value: float) -> None:
    made = perturb_batch(Planted(broken_values(value)), linear.model, linear.images, linear.labels, linear.indices, 0)
    assert made.flags == ("non-finite",)
    assert torch.equal(made.images[1], linear.images[1])
    assert torch.equal(made.images[0], linear.images[0] + 0.01)


def test_out_of_range_is_clipped_and_a_rounding_is_not_flagged(linear: LinearCase) -> None:
    made = perturb_batch(Planted(broken_values(1.5)), linear.model, linear.images, linear.labels, linear.indices, 0)
    assert made.flags == ("out-of-range",) and float(made.images.max()) == 1
    made = perturb_batch(Planted(broken_values(-2.9e-8)), linear.model, linear.images, linear.labels, range(200), 0)
    assert made.flags == () and float(made.images.min()) == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda model, images, labels: images[:, :1],
        lambda model, images, labels: images[:-1],
        lambda model, images, labels: None,
        lambda model, images, labels: images.numpy(),
    ],
)
def test_a_wrong_shape_counts_as_nothing_found(linear: LinearCase, change: Change) -> None:
    made = perturb_batch(Planted(change), linear.model, linear.images, linear.labels, linear.indices, seed=0)
    assert made.flags == ("shape",)
    assert torch.equal(made.images, linear.images) and not made.success.any()


def test_graphs_and_other_dtypes_are_taken_off(linear: LinearCase) -> None:
    attached = Planted(lambda model, images, labels: images.requires_grad_() * 0.9)
    made = perturb_batch(attached, linear.model, linear.images, linear.labels, linear.indices, seed=0)
    assert made.flags == ("attached",) and not made.images.requires_grad
    double = Planted(lambda model, images, labels: images.double())
    made = perturb_batch(double, linear.model, linear.images, linear.labels, linear.indices, seed=0)
    assert made.flags == ("dtype",) and made.images.dtype == torch.float32


def test_an_attack_that_writes_into_its_input_is_measured_against_the_clean_image(linear: LinearCase) -> None:
    before = linear.images.clone()
    inplace = Planted(lambda model, images, labels: images.add_(0.1), 0.01, "linf")
    made = perturb_batch(inplace, linear.model, linear.images, linear.labels, linear.indices, seed=0)
    assert torch.equal(linear.images, before)
    assert made.flags == ("over-budget",) and float(made.norms["linf"].max()) == pytest.approx(0.01, abs=1e-6)


def test_success_claimed_on_a_model_in_another_mode_is_none(linear: LinearCase) -> None:
    # Dropout in train mode turns predictions; the harness measures in eval mode.
    model = nn.Sequential(nn.Dropout(0.9), linear.model)

    def train_mode(model: CountingModel, images: Tensor, labels: Tensor) -> Tensor:
        model.train()
        return images

    made = perturb_batch(Planted(train_mode), model, linear.images, linear.labels, linear.indices, seed=0)
    assert not made.success.any()


def mixed_model() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 36, 10)
    )
    model.train()
    model[1].eval()
    model.get_parameter("0.weight").requires_grad_(False)
    last = model.get_parameter("5.weight")
    last.grad = torch.full_like(last, 0.25)
    return model


def snapshot(model: nn.Module) -> list[object]:
    return [
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [None if p.grad is None else (id(p.grad), p.grad.sum().item()) for p in model.parameters()],
        {name: value.clone().tolist() for name, value in model.state_dict().items()},
        *generator_states(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    ]


def vandal(model: CountingModel, images: Tensor, labels: Tensor) -> Tensor:
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    nn.functional.cross_entropy(model(images), labels).backward()
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    torch.set_grad_enabled(False)
    return images


def raising(model: CountingModel, images: Tensor, labels: Tensor) -> Tensor:
    vandal(model, images, labels)
    raise RuntimeError("planted")


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("change", [unchanged, vandal, raising])
def test_everything_is_as_before(digits: DigitsCase, change: Change, context: Callable[[], torch.no_grad]) -> None:
    model = mixed_model()
    with context():
        before = snapshot(model)
        if change is raising:
            with pytest.raises(RuntimeError, match="planted"):
                perturb_batch(Planted(change), model, digits.images, digits.labels, digits.indices, seed=0)
        else:
            perturb_batch(Planted(change), model, digits.images, digits.labels, digits.indices, seed=0)
        assert snapshot(model) == before


def test_the_attack_sees_an_eval_model_with_frozen_parameters_and_a_working_autograd(digits: DigitsCase) -> None:
    seen = []

    def look(model: CountingModel, images: Tensor, labels: Tensor) -> Tensor:
        seen.append(
            (
                any(m.training for m in model.modules()),
                any(p.requires_grad for p in model.parameters()),
                model(images.requires_grad_()).requires_grad,
            )
        )
        return images.detach()

    with torch.no_grad():
        perturb_batch(Planted(look), mixed_model(), digits.images, digits.labels, digits.indices, seed=0)
    assert seen == [(False, False, True)]


def test_global_draws_are_seeded_by_micro_batch(linear: LinearCase) -> None:
    def change(model: CountingModel, images: Tensor, labels: Tensor) -> Tensor:
        return images + 0.01 * torch.rand(1) + 0.01 * float(np.random.rand()) + 0.01 * random.random()

    def run(seed: int) -> Tensor:
        return perturb_batch(
            Planted(change), linear.model, linear.images, linear.labels, linear.indices, seed, batch_size=64
        ).images

    assert torch.equal(run(1), run(1))
    shifts = [(run(seed) - linear.images)[:, 0, 0, 0] for seed in (1, 2)]
    # Four micro-batches with two seeds: eight different shifts.
    assert len({round(float(s[i]), 5) for s in shifts for i in (0, 64, 128, 192)}) == 8


@pytest.mark.parametrize("perturbation", [Gaussian(0.1), FGSM(0.1, random_start=True), PGD(0.1), PGD(0.8, norm="l2")])
def test_images_do_not_depend_on_batch_size_or_on_neighbours(digits: DigitsCase, perturbation: Perturbation) -> None:
    def run(rows: slice, batch_size: int) -> Tensor:
        part = (digits.images[rows], digits.labels[rows], digits.indices[rows])
        return perturb_batch(perturbation, digits.model, *part, seed=5, batch_size=batch_size).images

    whole = run(slice(None), 128)
    for other, rows in ((run(slice(None), 7), slice(None)), (run(slice(40, 51), 128), slice(40, 51))):
        # Batched matrix products round differently, which can turn the sign of a gradient that is next to nothing.
        assert ((other - whole[rows]).abs() > 1e-4).float().mean() < 1e-3


def test_no_images_work(linear: LinearCase) -> None:
    made = perturb_batch(PGD(0.1), linear.model, linear.images[:0], linear.labels[:0], [], seed=0)
    assert made.images.shape == (0, 3, 4, 4) and made.predictions.dtype == torch.int64
    assert made.success.shape == (0,) and made.success.dtype == torch.bool
    assert set(made.norms) == {"linf", "l2", "l1", "l0"} and all(v.shape == (0,) for v in made.norms.values())
    assert (made.forwards, made.backwards, made.flags) == (0, 0, ())


def test_passes_are_counted_per_image_and_measuring_is_free(linear: LinearCase) -> None:
    def three_forwards_one_backward(model: CountingModel, images: Tensor, labels: Tensor) -> Tensor:
        model(images[: len(images) // 2])
        model(images)
        images = images.requires_grad_()
        model(images).sum().backward()
        return images.detach()

    made = perturb_batch(
        Planted(three_forwards_one_backward), linear.model, linear.images, linear.labels, linear.indices, 0, 50
    )
    assert (made.forwards, made.backwards) == (2.5, 1)
    assert made.seconds > 0


def test_a_zero_gradient_is_flagged_only_where_the_attack_is_blind(linear: LinearCase) -> None:
    class Saturated(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return 1e5 * linear.model(images)

    saturated = Saturated()
    rows = linear.margins > 0.05
    part = (linear.images[rows], linear.labels[rows], range(int(rows.sum())))
    blind = perturb_batch(PGD(0.2, random_start=False), saturated, *part, seed=0)
    assert blind.flags == ("zero-gradient",) and blind.success.sum() == 0
    seeing = perturb_batch(PGD(0.2, random_start=False, loss="margin"), saturated, *part, seed=0)
    assert seeing.flags == () and seeing.success.all()


class Quantised(nn.Module):
    """The linear model on pixels of 64 steps, which have a gradient of 0, for batches of less than ``from_`` images."""

    def __init__(self, linear: LinearCase, from_: int) -> None:
        super().__init__()
        self.linear, self.from_ = linear, from_

    def forward(self, images: Tensor) -> Tensor:
        return self.linear.model(images if len(images) >= self.from_ else torch.round(images * 64) / 64)


@pytest.mark.parametrize(
    "attack",
    [
        PGD(0.02, steps=8, early_stop=True),
        PGD(0.02, steps=3, restarts=3),
        AutoPGD(0.02, steps=8),
        AutoPGD(0.02, steps=4, restarts=2),
    ],
)
def test_a_zero_gradient_is_seen_in_an_attack_that_drops_what_it_fooled(
    linear: LinearCase, attack: Perturbation
) -> None:
    # Passes of the whole batch have gradients; only the part that still stands after some were fooled has none.
    rows = torch.cat([linear.margins.argsort()[:40], linear.margins.argsort()[-40:]])
    case = (linear.images[rows], linear.labels[rows], range(80), 0)
    blind = perturb_batch(attack, Quantised(linear, 80), *case)
    assert blind.flags == ("zero-gradient",) and 20 < blind.success.sum() < 60
    assert perturb_batch(attack, Quantised(linear, 1), *case).flags == ()
    # Quantised for all, as such models are.
    assert perturb_batch(attack, Quantised(linear, 1000), *case).flags == ("zero-gradient",)
    # Nothing is dropped, so nothing is ever quantised.
    assert perturb_batch(PGD(0.02, steps=8), Quantised(linear, 80), *case).flags == ()


class Slow(nn.Module):
    """Turned by as many steps of 0.01 on the first element as an image's second element says, in hundredths."""

    def forward(self, images: Tensor) -> Tensor:
        way = images[:, 0, 0, 0] - 0.3
        return torch.stack([torch.zeros_like(way), way - images[:, 0, 0, 1].detach() + 1e-4], 1)


def slow_images(steps: list[int]) -> tuple[Tensor, Tensor, range]:
    images = torch.full((len(steps), 1, 1, 2), 0.3)
    # Turned in gradient pass s + 1: before the first pass there is no step.
    images[:, 0, 0, 1] = torch.tensor(steps) / 100
    return images, torch.zeros(len(steps), dtype=torch.int64), range(len(steps))


@pytest.mark.parametrize("early_stop", [False, True])
def test_late_images_are_counted_whether_or_not_an_attack_drops_what_it_fooled(early_stop: bool) -> None:
    def late(turned_after: list[int], steps: int = 12, batch_size: int = 128) -> int:
        class Hold(PGD):
            # The second element is the images' own.
            def _direction(self, gradient: Tensor, images: Tensor) -> Tensor:
                return gradient.sign()

        attack = Hold(0.5, steps=steps, step_size=0.01, random_start=False, early_stop=early_stop, loss="margin")
        case = slow_images(turned_after)
        made = perturb_batch(attack, Slow(), *case, 0, batch_size)
        assert made.flags == ()
        return made.late

    # Twelve passes: those after the ninth are the last quarter. The last image is never turned.
    assert late([1, 2, 5, 8, 9, 10, 11, 40]) == 3
    assert late([1, 2, 5, 8, 40]) == 0
    # Nothing stands: no step more would turn more.
    assert late([1, 2, 5, 9, 10, 11]) == 0
    # Batches are counted each for itself, and short runs not at all.
    assert late([10, 40, 9, 40, 1, 2], batch_size=2) == 2
    assert late([5, 6, 40], steps=7) == 0


def test_parts_of_a_part_are_put_down_to_the_right_images(linear: LinearCase) -> None:
    def nested(model: CountingModel, images: Tensor, labels: Tensor) -> Tensor:
        first, second = torch.tensor([3, 5, 8, 13]), torch.tensor([1, 3])
        part = model.of(first).of(second)
        for _ in range(8):
            moved = images[first][second].requires_grad_()
            (gradient,) = torch.autograd.grad(part(moved).sum(), moved)
        assert isinstance(model, WatchedModel)
        watch = model._watch
        assert watch.passes.nonzero().flatten().tolist() == [5, 13] and watch.passes.max() == 8
        assert gradient.shape == (2, 3, 4, 4) and part.forwards == model.forwards == part.backwards == 16
        assert part.target is model.target
        return images

    perturb_batch(Planted(nested), linear.model, linear.images, linear.labels, linear.indices, 0, 200)


def test_a_non_finite_gradient_is_flagged(linear: LinearCase) -> None:
    class Root(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            # The derivative of the root at 0 is infinite, and infinity times 0 is NaN.
            return linear.model(images) + (images * 0).sqrt().flatten(1).sum(1, keepdim=True)

    made = perturb_batch(FGSM(0.1), Root(), linear.images, linear.labels, linear.indices, seed=0)
    assert "non-finite-gradient" in made.flags


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.rand(4, 3, 4, 4).double()}, "float32"),
        ({"images": torch.rand(4, 48)}, "float32 of shape"),
        ({"images": torch.full((4, 3, 4, 4), 1.01)}, r"\[0, 1\]"),
        ({"images": torch.full((4, 3, 4, 4), float("nan"))}, r"\[0, 1\]"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "Labels of 4 images"),
        ({"labels": torch.zeros(4)}, "int64"),
        ({"labels": torch.tensor([0, 1, 2, 0])}, "2 classes"),
        ({"labels": torch.tensor([0, 1, -1, 0])}, "2 classes"),
        ({"indices": [1, 2]}, "2 indices"),
        ({"batch_size": 0}, "batch_size"),
        ({"model": nn.Identity()}, "logits"),
    ],
)
def test_wrong_inputs_are_one_sentence(linear: LinearCase, change: dict[str, object], message: str) -> None:
    arguments: dict[str, Any] = {
        "model": linear.model,
        "images": torch.rand(4, 3, 4, 4),
        "labels": torch.zeros(4, dtype=torch.int64),
        "indices": [0, 1, 2, 3],
        "seed": 0,
    }
    with pytest.raises(UsageError, match=message):
        perturb_batch(Planted(unchanged), **(arguments | change))


def test_an_inapplicable_perturbation_says_why(linear: LinearCase) -> None:
    class Never(Planted):
        def inapplicable(self, shape: tuple[int, int, int], classes: int) -> str | None:
            return f"not for {shape} and {classes}"

    with pytest.raises(UnavailableError, match=r"not for \(3, 4, 4\) and 2"):
        perturb_batch(Never(unchanged), linear.model, linear.images, linear.labels, linear.indices, seed=0)


def test_norms_count_pixels_once() -> None:
    delta = torch.zeros(2, 3, 2, 2)
    delta[0, :, 0, 0] = 0.5
    found = norms(delta)
    assert found["l0"].tolist() == [1, 0] and found["l1"].tolist() == [1.5, 0]
