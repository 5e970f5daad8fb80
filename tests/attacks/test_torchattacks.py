from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from aftershock.attacks.base.perturb_batch import PerturbedBatch, perturb_batch
from aftershock.attacks.base.perturbation import CountingModel, Perturbation
from aftershock.attacks.libraries.declare import LibraryAttack
from aftershock.attacks.libraries.torchattacks import gradient as torchattacks_attacks
from aftershock.attacks.libraries.torchattacks import other as torchattacks_search
from aftershock.attacks.libraries.torchattacks.adapter import CW, TorchattacksAttack
from aftershock.attacks.libraries.torchattacks.gradient import DIFGSM, FGSM, MIFGSM, PGD, PGDRS, PIFGSM, TIFGSM, UPGD
from aftershock.attacks.libraries.torchattacks.other import (
    APGD,
    APGDT,
    APGDTL2,
    EADEN,
    EADL1,
    FAB,
    FABL2,
    JSMA,
    SPSA,
    UNUSABLE,
    DeepFool,
    OnePixel,
    Pixle,
    SparseFool,
    Square,
    SquareL2,
)
from aftershock.attacks.native.pgd import margin
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.registry import PERTURBATIONS
from support.attack_cases import Case, DigitsCase, LinearCase
from support.generators import generator_states
from torch import Tensor, nn

pytestmark = pytest.mark.torchattacks

PARTS: dict[str, type[LibraryAttack]] = {
    name: part
    for module in (torchattacks_attacks, torchattacks_search)
    for name, part in vars(module).items()
    if isinstance(part, type) and issubclass(part, LibraryAttack) and name[0] != "_" and hasattr(part, "attack")
} | {"CW": CW}
CORE = (
    "FGSM", "PGD", "PGDL2", "MIFGSM", "APGD", "APGDT", "FAB", "Square", "DeepFool", "EADL1", "OnePixel", "Pixle",
)  # fmt: skip
EVERY = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name not in CORE and not os.environ.get("AFTERSHOCK_ATTACKS"),
            reason="set AFTERSHOCK_ATTACKS=1 to run every attack of torchattacks",
        ),
    )
    for name in sorted(PARTS)
]
GENEROUS: dict[str, dict[str, Any]] = {
    "CW": {"c": 20.0, "lr": 0.05},
    "EADL1": {"initial_const": 10.0, "binary_search_steps": 3, "steps": 30},
    "EADEN": {"initial_const": 10.0, "binary_search_steps": 3, "steps": 30},
    "FAB": {"steps": 12},
    "FABL2": {"steps": 12},
    "GN": {"std": 0.3},
    "JSMA": {"gamma": 0.5},
    "OnePixel": {"pixels": 3, "steps": 10},
    "SPSA": {"eps": 0.3, "samples": 64},
    "Square": {"eps": 0.3, "n_queries": 200},
    "SquareL2": {"eps": 2.0, "n_queries": 200},
}


def generous(name: str) -> TorchattacksAttack:
    part = PARTS[name]
    budget: dict[str, Any] = {}
    if "eps" in inspect.signature(part).parameters and not part.info.minimises:
        budget = {"eps": 2.0 if part.info.norm == "l2" else 0.3}
    made = part(**budget | GENEROUS.get(name, {}))
    assert isinstance(made, TorchattacksAttack)
    return made


class Grey(nn.Module):
    """The digits' model on three channels, by their mean."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.mean(1, keepdim=True))
        return logits


def run(case: Case, perturbation: Perturbation, seed: int = 0, batch_size: int = 128, n: int = 12) -> PerturbedBatch:
    model, images = case.model, case.images[:n]
    if getattr(perturbation, "channels", None) == 3:
        model, images = Grey(model), images.repeat(1, 3, 1, 1)
    return perturb_batch(perturbation, model, images, case.labels[:n], case.indices[:n], seed, batch_size)


def classifier(classes: int) -> nn.Module:
    """An untrained linear model of the linear case's images."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, classes))
    random = torch.Generator().manual_seed(classes)
    with torch.no_grad():
        weight = model.get_parameter("1.weight").copy_(torch.randn(classes, 48, generator=random))
        model.get_parameter("1.bias").copy_(-weight.sum(1) / 2)
    return model


@pytest.mark.parametrize("name", EVERY)
def test_every_attack_keeps_the_rules(digits: DigitsCase, name: str) -> None:
    attack = generous(name)
    digits.model.train()
    gradients = [torch.randn_like(p) for p in digits.model.parameters()]
    for parameter, gradient in zip(digits.model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    np.random.seed(5)
    before = generator_states()
    made = run(digits, attack)
    assert generator_states() == before
    assert digits.model.training and all(m.training for m in digits.model.modules())
    assert all(p.requires_grad for p in digits.model.parameters())
    for parameter, gradient in zip(digits.model.parameters(), gradients, strict=True):
        assert parameter.grad is not None and torch.equal(parameter.grad, gradient)

    assert not {"attached", "dtype", "shape", "non-finite", "out-of-range", "over-budget"} & set(made.flags)
    assert made.images.min() >= 0 and made.images.max() <= 1 and not made.images.requires_grad
    if attack.eps is not None:
        assert attack.norm is not None
        assert (made.norms[attack.norm] <= attack.eps * (1 + 1e-5) + 1e-7).all()
    if attack.info.kind == "attack":
        assert made.success.float().mean() >= (0.1 if name == "OnePixel" else 0.5)
        assert made.forwards >= 1 and (made.backwards > 0) == attack.info.gradients
    else:
        assert (made.norms["linf"] > 0).all() and made.forwards == 0

    assert torch.equal(run(digits, attack).images, made.images)
    if attack.info.stochastic:
        assert not torch.equal(run(digits, attack, seed=1).images, made.images)
    else:
        assert torch.equal(run(digits, attack, seed=1).images, made.images)
    if attack.batch_invariant:
        parts = run(digits, attack, batch_size=5)
        # A sum in another order may turn the sign of a gradient that is almost 0.
        assert torch.equal(parts.success, made.success)
        assert ((parts.images - made.images).abs() > 1e-3).float().mean() < 0.01


def test_every_name_of_the_library_is_a_perturbation_or_has_a_reason() -> None:
    import torchattacks

    used = {part.attack for part in PARTS.values()}
    assert used | set(UNUSABLE) == set(torchattacks.__all__) and not used & set(UNUSABLE)
    assert all(reason.endswith(".") for reason in UNUSABLE.values())
    # Every argument of the library is either ours to give or a setting, under its name or another.
    ours = {"self", "model", "device", "verbose", "seed", "n_classes", "norm"}
    # PIFGSM stores two that it never reads; Pixle's pairs are two sides here; CW's and EAD's kappa is the model's.
    left_out = {"momentum", "prob", "x_dimensions", "y_dimensions", "batch_max", "abort_early", "n_restarts"}
    for part in PARTS.values():
        given = set(part().settings) | {"kappa", "eps"} | ours | left_out
        assert set(inspect.signature(getattr(torchattacks, part.attack).__init__).parameters) <= given, part.attack


def test_all_are_registered_under_their_names() -> None:
    registered = {n.partition(".")[2]: n for n in PERTURBATIONS.builtins if n.startswith("torchattacks.")}
    assert {short: PERTURBATIONS.get(name) for short, name in registered.items()} == PARTS


@pytest.mark.parametrize("part", [FGSM, PGD, MIFGSM, APGD])
def test_on_a_linear_model_the_margin_decides(linear: LinearCase, part: Any) -> None:
    eps = 0.02
    made = perturb_batch(part(eps=eps), linear.model, linear.images, linear.labels, linear.indices, 0)
    reach = eps * linear.model.weight.detach().abs().sum()
    assert torch.equal(made.success, linear.margins < reach) and 0 < made.success.sum() < 200
    assert made.flags == ()


@pytest.mark.parametrize(("part", "dual", "factor"), [(DeepFool, 2, 1.02), (FABL2, 2, 1.0), (FAB, 1, 1.0)])
def test_on_a_linear_model_minimal_attacks_find_the_distance(
    linear: LinearCase, part: Any, dual: int, factor: float
) -> None:
    made = perturb_batch(part(), linear.model, linear.images, linear.labels, linear.indices, 0)
    distance = linear.margins / torch.linalg.vector_norm(linear.model.weight.detach(), dual)
    assert made.success.float().mean() > 0.98
    # FAB ends where a step, shrunk by beta, is just misclassified.
    found = made.norms[part.info.norm] / (factor * distance)
    assert ((found[made.success] - 1).abs() < 0.06).float().mean() > 0.95


def test_one_pixel_declares_its_pixels_as_a_budget_that_the_harness_checks(digits: DigitsCase) -> None:
    attack = OnePixel(pixels=2, steps=3, popsize=10)
    assert (attack.eps, attack.norm, OnePixel.info.minimises) == (2.0, "l0", False)
    made = run(digits, attack)
    assert made.flags == () and (made.norms["l0"] <= 2).all() and made.norms["l0"].max() > 0
    # A library that does not keep to it would be found out.
    attack.eps = 1.0
    over = run(digits, attack)
    wide = made.norms["l0"] > 1
    assert over.flags == ("over-budget",) and wide.any() and not over.success[wide].any()


@pytest.mark.parametrize("part", [JSMA, SparseFool])
def test_an_l0_budget_given_to_a_minimising_attack_is_all_or_nothing(digits: DigitsCase, part: Any) -> None:
    free = run(digits, generous(part.attack))
    eps = float(free.norms["l0"].median())
    held = run(digits, part(**GENEROUS.get(part.attack, {}), eps=eps))
    inside = free.norms["l0"] <= eps
    assert 0 < inside.sum() < 12 and held.flags == ("over-budget",)
    assert torch.equal(held.images[inside], free.images[inside])
    assert torch.equal(held.images[~inside], digits.images[:12][~inside]) and not held.success[~inside].any()


def test_a_step_follows_the_budget(digits: DigitsCase) -> None:
    assert torch.equal(run(digits, PGD(eps=0.1, steps=5)).images, run(digits, PGD(eps=0.1, steps=5, alpha=0.05)).images)
    assert not torch.equal(run(digits, PGD(eps=0.1, steps=5)).images, run(digits, PGD(eps=0.1, alpha=0.01)).images)
    parts = (
        (SPSA(eps=0.1, steps=4), "lr", 0.0625),
        (torchattacks_attacks.FFGSM(eps=0.08), "alpha", 0.1),
        (PGD(), "alpha", 2 / 255),
    )
    for attack, name, expected in parts:
        assert isinstance(attack, TorchattacksAttack)
        assert attack.arguments(0)[name] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("attack", "shape", "classes", "reason"),
    [
        (TIFGSM(), (1, 8, 8), 10, "3 channels only, not 1"),
        (PIFGSM(), (1, 28, 28), 10, "3 channels only, not 1"),
        (DIFGSM(), (3, 8, 12), 10, "square images only"),
        (DIFGSM(), (3, 1, 1), 10, "at least 2 x 2"),
        (Pixle(), (3, 8, 12), 10, "square images only"),
        (JSMA(), (3, 64, 64), 10, "at most 4,096"),
        (APGDT(), (1, 8, 8), 3, "at least 4 classes, not 3"),
        (APGD(loss="dlr"), (1, 8, 8), 2, "at least 3 classes, not 2"),
        (UPGD(loss="dlr"), (1, 8, 8), 2, "at least 3 classes, not 2"),
        (SquareL2(), (3, 14, 14), 10, "do not fit"),
        (SquareL2(), (3, 4, 4), 10, "do not fit"),
    ],
)
def test_what_an_attack_cannot_do_is_a_reason(
    attack: LibraryAttack, shape: tuple[int, int, int], classes: int, reason: str
) -> None:
    assert reason in str(attack.inapplicable(shape, classes))
    assert attack.inapplicable((3, 32, 32), 10) is None


def test_deepfool_is_still_wrong_when_checked_in_another_batch(digits: DigitsCase) -> None:
    # The library stops at the boundary itself, where a rounding decides.
    made = run(digits, DeepFool(), n=60)
    assert made.success.all() and run(digits, SparseFool(), n=30).success.all()
    with torch.no_grad():
        assert (margin(digits.model(made.images), digits.labels[:60]) > 2e-5).all()


def test_square_in_l2_is_refused_exactly_where_the_library_fails() -> None:
    refused = []
    for side in range(3, 34):
        torch.manual_seed(side)
        model = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 3)).requires_grad_(False)
        images = torch.rand(2, 1, side, side)
        attack, labels = SquareL2(eps=1e-3, n_queries=3), model(images).argmax(1)
        if attack.inapplicable((1, side, side), 3) is None:
            assert attack.run(CountingModel(model), images, labels).shape == images.shape
        else:
            refused.append(side)
            with pytest.raises((RuntimeError, ZeroDivisionError)):
                attack.run(CountingModel(model), images, labels)
    assert {3, 4, 14} <= set(refused) and not {5, 8, 16, 28, 32} & set(refused)


@pytest.mark.parametrize("part", [EADL1, EADEN])
def test_ead_leaves_alone_what_it_does_not_need(digits: DigitsCase, part: Any) -> None:
    # The library by itself moves every value, since its first step writes into the images that it starts from.
    made = run(digits, part(beta=0.05, initial_const=10.0, binary_search_steps=2))
    assert made.success.float().mean() > 0.9
    assert (made.norms["l0"][made.success] < 40).all()


def test_ead_reaches_its_confidence_wherever_zero_lies_among_the_logits(digits: DigitsCase) -> None:
    class Shifted(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return digits.model(images) - 50

    attack = EADL1(kappa=3.0, initial_const=10.0, binary_search_steps=2)
    made = perturb_batch(attack, Shifted(), digits.images[:8], digits.labels[:8], range(8), 0)
    assert made.success.float().mean() > 0.8
    with torch.no_grad():
        assert (margin(digits.model(made.images), digits.labels[:8])[made.success] >= 3 - 1e-3).all()


def test_a_model_of_other_than_ten_classes(linear: LinearCase) -> None:
    images = linear.images[:6]
    model = classifier(3)
    labels = model(images).argmax(1)
    # Below class 2 of 3 the library by itself would aim at a class that there is not.
    assert (labels == 2).any()
    made = perturb_batch(JSMA(gamma=0.5), model, images, labels, range(6), 0)
    assert made.success.all() and torch.equal(made.predictions, (labels + 1) % 3)
    model = classifier(14)
    labels = model(images).argmax(1)
    made = perturb_batch(APGDT(eps=0.2, targets=13, steps=10), model, images, labels, range(6), 0)
    assert made.success.all()
    few = perturb_batch(APGDT(eps=0.001, targets=2, steps=10), model, images, labels, range(6), 0)
    many = perturb_batch(APGDT(eps=0.001, targets=13, steps=10), model, images, labels, range(6), 0)
    assert many.forwards > 4 * few.forwards > 0


def test_smoothing_takes_more_noise_samples_than_its_library_takes_at_once(linear: LinearCase) -> None:
    attack = PGDRS(steps=1, noise_batch_size=2100, noise_type="uniform")
    made = perturb_batch(attack, linear.model, linear.images[:2], linear.labels[:2], range(2), 0)
    assert made.forwards == 2100 and (made.norms["linf"] > 0).all()


def test_targeted_apgd_in_l2_does_not_depend_on_who_comes_first(digits: DigitsCase) -> None:
    # In a batch the library steps every image by the first image's step size.
    attack = APGDTL2(eps=0.6, steps=20)
    turned = perturb_batch(
        attack, digits.model, digits.images[:6].flip(0), digits.labels[:6].flip(0), digits.indices[:6][::-1], 0
    )
    assert torch.equal(run(digits, attack, n=6).images, turned.images.flip(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(eps=8), "images lie in"),
        (lambda: PGD(eps=None), "eps = None"),
        (lambda: PGD(alpha=0.0), "alpha = 0.0"),
        (lambda: PGD(steps=0), "steps = 0"),
        (lambda: PGD(decay=1.0), "no parameter decay"),
        (lambda: DIFGSM(resize_rate=1.0), "resize_rate"),
        (lambda: DIFGSM(diversity_prob=1.5), "diversity_prob"),
        (lambda: PGDRS(noise_type="guassian"), "gaussian or uniform"),
        (lambda: UPGD(loss="margin"), "ce or dlr"),
        (lambda: DeepFool(eps=-1.0), "eps = -1.0"),
        (lambda: Square(p_init=2.0), "p_init"),
        (lambda: Pixle(smallest_patch=5, largest_patch=4), "larger than"),
        (lambda: Pixle(pixel_mapping="nearest"), "give random"),  # type: ignore[arg-type]
        (lambda: CW(eps=-1.0), "eps = -1.0"),
    ],
)
def test_wrong_parameters_are_one_sentence(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_a_budget_only_limits_what_counts_where_an_attack_minimises(digits: DigitsCase) -> None:
    free = run(digits, DeepFool())
    eps = float(free.norms["l2"].median())
    held = run(digits, DeepFool(eps=eps))
    inside = free.norms["l2"] <= eps
    assert torch.equal(held.images[inside], free.images[inside]) and held.flags == ("over-budget",)
    assert (held.norms["l2"] <= eps * (1 + 1e-5)).all()


def test_the_library_is_imported_only_when_an_attack_runs() -> None:
    code = (
        "import sys, aftershock.attacks.libraries.torchattacks.other as s; s.APGD().inapplicable((1, 8, 8), 10);"
        "print(sorted({'torchattacks', 'torchvision', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
