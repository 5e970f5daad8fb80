from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
import torch
from aftershock.attacks import CountingModel
from aftershock.attacks import builtin as builtin_perturbations
from aftershock.attacks.base.perturb_batch import perturb_batch
from aftershock.attacks.libraries import declare as library
from aftershock.attacks.libraries.foolbox import gradient as foolbox_attacks
from aftershock.attacks.libraries.foolbox.adapter import L2DeepFool, LinfDeepFool
from aftershock.attacks.libraries.torchattacks import other as torchattacks_search
from aftershock.attacks.libraries.torchattacks.adapter import CW
from aftershock.attacks.native.pgd import PGD, margin
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.registry import PERTURBATIONS
from aftershock.harness.core.seeds import Draws
from support.attack_cases import DigitsCase, LinearCase, run
from torch import Tensor, nn

LIBRARY = [pytest.param(CW(c=20.0, lr=0.05), marks=pytest.mark.torchattacks), L2DeepFool(), LinfDeepFool()]
names = ["CW", "L2DeepFool", "LinfDeepFool"]


@pytest.mark.parametrize(
    ("perturbation", "dual", "overshoot"),
    [(L2DeepFool(), 2, 0.02), (L2DeepFool(overshoot=0.5), 2, 0.5), (LinfDeepFool(), 1, 0.02)],
)
def test_deepfool_on_a_linear_model_goes_beyond_the_boundary_by_its_overshoot(
    linear: LinearCase, perturbation: Any, dual: int, overshoot: float
) -> None:
    made = run(linear, perturbation)
    distance = linear.margins / torch.linalg.vector_norm(linear.model.weight.detach(), dual)
    assert made.success.all() and made.flags == ()
    # The library adds 1e-4 to the distance for stability.
    expected = (1 + overshoot) * (distance + 1e-4)
    assert torch.allclose(made.norms[perturbation.norm], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("perturbation", LIBRARY, ids=names)
def test_real_runs_fool_with_less_than_pgd(digits: DigitsCase, perturbation: Any) -> None:
    made = run(digits, perturbation)
    assert made.success.float().mean() > 0.9 and made.flags == ()
    eps = {"linf": 0.3, "l2": 2.0}[perturbation.norm]
    pgd = run(digits, PGD(eps, norm=perturbation.norm))
    both = made.success & pgd.success
    assert both.sum() > 60
    assert made.norms[perturbation.norm][both].mean() < 0.6 * pgd.norms[perturbation.norm][both].mean()
    assert made.forwards > 1 and made.backwards > 1


@pytest.mark.parametrize("perturbation", LIBRARY, ids=names)
def test_results_do_not_depend_on_the_batch(digits: DigitsCase, perturbation: Any) -> None:
    whole, parts = run(digits, perturbation), run(digits, perturbation, batch_size=7)
    assert torch.equal(whole.success, parts.success)
    assert ((whole.images - parts.images).abs() > 1e-3).float().mean() < 1e-3


@pytest.mark.parametrize("perturbation", LIBRARY, ids=names)
def test_a_training_model_without_parameters_and_loud_libraries(
    linear: LinearCase, perturbation: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, bias = linear.model.weight.detach(), linear.model.bias.detach()

    class Bare(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            value = images.flatten(1) @ weight + bias
            return torch.stack([torch.zeros_like(value), value], 1)

    model = Bare()
    # As in a program that set up no logging; pytest gives the root logger handlers of its own.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    made = run(linear, perturbation, model)
    assert made.success.all() and made.flags == () and model.training
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == []


def test_warnings_of_a_library_stay_inside_its_adapter(linear: LinearCase) -> None:
    class Loud(L2DeepFool):
        def run(self, model: CountingModel, images: Tensor, labels: Tensor) -> Tensor:
            warnings.warn("numpy 2 will not like this", DeprecationWarning, stacklevel=1)
            return images

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(linear, Loud())
        warnings.warn("mine", UserWarning, stacklevel=1)
    assert [str(w.message) for w in caught] == ["mine"]


@pytest.mark.torchattacks
def test_cw_counts_one_pass_per_step(digits: DigitsCase) -> None:
    # With so large a step the cost of the batch rises, where the library by itself would stop all of it.
    made = run(digits, CW(steps=20, lr=2.0))
    assert (made.forwards, made.backwards) == (20, 20)


@pytest.mark.torchattacks
def test_cw_does_not_care_where_zero_lies_among_the_logits(digits: DigitsCase) -> None:
    class Shifted(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return digits.model(images) - 50

    made, shifted = run(digits, CW(c=10.0, lr=0.05)), run(digits, CW(c=10.0, lr=0.05), Shifted())
    assert made.success.float().mean() > 0.9
    assert (made.success == shifted.success).float().mean() > 0.97
    both = made.success & shifted.success
    assert torch.allclose(made.norms["l2"][both].mean(), shifted.norms["l2"][both].mean(), rtol=0.02)


@pytest.mark.torchattacks
def test_cw_confidence_is_reached_or_the_image_comes_back(digits: DigitsCase) -> None:
    made = run(digits, CW(c=50.0, kappa=4.0, steps=100, lr=0.05))
    assert made.success.float().mean() > 0.8
    with torch.no_grad():
        reached = margin(digits.model(made.images), digits.labels)
    assert (reached[made.success] >= 4 - 1e-3).all()
    assert torch.equal(made.images[~made.success], digits.images[~made.success])
    assert made.norms["l2"][made.success].mean() > run(digits, CW(c=50.0, steps=100, lr=0.05)).norms["l2"].mean()


@pytest.mark.torchattacks
def test_cw_minimises_whatever_its_budget(digits: DigitsCase) -> None:
    free, held = run(digits, CW(c=20.0, lr=0.05)), run(digits, CW(c=20.0, lr=0.05, eps=0.5))
    inside = free.norms["l2"] <= 0.5
    assert CW.info.minimises and 0 < inside.sum() < len(inside)
    assert torch.equal(held.images[inside], free.images[inside]) and held.flags == ("over-budget",)
    assert (held.norms["l2"] <= 0.5 + 1e-5).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CW(c=0.0), "c = 0.0"),
        (lambda: CW(kappa=-1.0), "kappa"),
        (lambda: CW(steps=0), "steps"),
        (lambda: CW(lr=float("nan")), "lr"),
        (lambda: L2DeepFool(candidates=1), "candidates"),
        (lambda: LinfDeepFool(overshoot=-0.1), "overshoot"),
        (lambda: LinfDeepFool(steps=True), "steps"),
    ],
)
def test_wrong_parameters_are_one_sentence(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(4, 3, 4, 4).double(), "float32"),
        (torch.rand(4, 48), "float32"),
        (torch.rand(3, 3, 4, 4), "n labels"),
        (torch.rand(4, 3, 4, 4) - 0.5, r"\[0, 1\]"),
    ],
)
def test_the_adapter_itself_checks_its_input(linear: LinearCase, images: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        L2DeepFool().perturb(CountingModel(linear.model), images, torch.zeros(4, dtype=torch.int64), Draws(0, range(4)))


def test_a_missing_library_is_told_with_what_to_do(linear: LinearCase, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(library, "version", missing)
    assert CW.missing() == (
        "CW needs the package torchattacks, which is not installed: run 'pip install torchattacks' (with --no-deps to "
        "keep a requests newer than 2.25)."
    )
    # What is missing on this machine says nothing about the task.
    assert L2DeepFool().inapplicable((3, 8, 8), 10) is None
    with pytest.raises(UsageError, match="pip install foolbox"):
        perturb_batch(L2DeepFool(), linear.model, linear.images[:2], linear.labels[:2], range(2), 0)


def test_what_an_attack_cannot_do_without_is_a_reason() -> None:
    class ThreeChannels(CW):
        channels = 3

    assert ThreeChannels().inapplicable((3, 8, 8), 10) is None
    assert "3 channels only, not 1" in str(ThreeChannels().inapplicable((1, 8, 8), 10))
    assert "at least two classes" in str(CW().inapplicable((1, 8, 8), 1))


def test_adapters_import_their_libraries_only_when_they_run() -> None:
    code = (
        "import sys; import aftershock.attacks.libraries.torchattacks.adapter as t;"
        "import aftershock.attacks.libraries.foolbox.adapter as f;"
        "t.CW().inapplicable((1, 8, 8), 10); f.L2DeepFool().inapplicable((1, 8, 8), 10);"
        "print(sorted({'torchattacks', 'foolbox', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def attack_classes(base: type, *packages: str) -> set[str]:
    """The names of all classes of attacks that are defined in some packages and that their library exports."""
    found = set()
    for package in map(importlib.import_module, packages):
        exported = set(vars(package)) | set(vars(sys.modules[package.__name__.partition(".")[0]]))
        for entry in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{entry.name}")
            classes = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, base)]
            found |= {c.__name__ for c in classes if c.__module__ == module.__name__} & exported
    return found


@pytest.mark.parametrize(
    ("library_name", "unusable", "count"),
    [("foolbox", foolbox_attacks.UNUSABLE, 55), ("torchattacks", torchattacks_search.UNUSABLE, 41)],
)
def test_every_usable_attack_class_of_a_library_is_registered(
    library_name: str, unusable: Mapping[str, str], count: int
) -> None:
    library_ = pytest.importorskip(library_name)
    if library_name == "foolbox":
        classes = attack_classes(library_.attacks.Attack, "foolbox.attacks")
    else:
        classes = attack_classes(library_.attack.Attack, "torchattacks.attacks", "torchattacks.wrappers")
    prefix = f"{library_name}."
    # Every reason is of a class that exists, so that none stays when the library changes.
    assert set(unusable) <= classes and all(unusable.values())
    registered = [n for n in builtin_perturbations.BUILTIN if n.startswith(prefix)]
    parts = {name.removeprefix(prefix): PERTURBATIONS.get(name) for name in registered}
    assert {part.attack for part in parts.values()} == classes - set(unusable)
    assert len(parts) == count and all(part.info.library == library_name for part in parts.values())
    # Where a class has two norms that are two attacks here, the second one's name says so.
    assert all(name in (part.attack, f"{part.attack}L2") for name, part in parts.items())


def test_the_registered_names_say_what_they_are() -> None:
    registered = ("torchattacks.CW", "foolbox.L2DeepFoolAttack", "foolbox.LinfDeepFoolAttack")
    assert [PERTURBATIONS.get(name) for name in registered] == [CW, L2DeepFool, LinfDeepFool]
    for name in PERTURBATIONS.builtins:
        part = PERTURBATIONS.get(name)
        assert part.info.title and part.info.summary and part.info.family
        room = name.partition(".")[0]
        borrowed = {"torchattacks": "torchattacks", "foolbox": "foolbox"}
        assert part.info.library == borrowed.get(room, "")
