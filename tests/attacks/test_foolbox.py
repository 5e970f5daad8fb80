"""Every attack of foolbox through the harness: a few always, all of them where AFTERSHOCK_ATTACKS is set."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
import torch
from aftershock.attacks import CountingModel
from aftershock.attacks.base.perturb_batch import PerturbedBatch, perturb_batch
from aftershock.attacks.base.perturbation import Perturbation
from aftershock.attacks.libraries import declare as library
from aftershock.attacks.libraries.foolbox import black_box as foolbox_black_box
from aftershock.attacks.libraries.foolbox import gradient as foolbox_attacks
from aftershock.attacks.libraries.foolbox.adapter import FoolboxAttack
from aftershock.attacks.libraries.foolbox.gradient import UNUSABLE
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.registry import PERTURBATIONS
from aftershock.harness.core.seeds import Draws
from support.attack_cases import Case, DigitsCase, LinearCase
from support.generators import generator_states
from torch import Tensor, nn

CLASSES: Mapping[str, type[FoolboxAttack]] = {
    name: value
    for module in (foolbox_attacks, foolbox_black_box)
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, FoolboxAttack) and getattr(value, "attack", None) == name
}

CORE = (
    "LinfFastGradientAttack", "LinfProjectedGradientDescentAttack", "L2ProjectedGradientDescentAttack",
    "LinfBasicIterativeAttack", "L2DeepFoolAttack", "L2CarliniWagnerAttack", "EADAttack", "DDNAttack", "LInfFMNAttack",
    "L2RepeatedAdditiveGaussianNoiseAttack", "BoundaryAttack", "HopSkipJumpAttack",
)  # fmt: skip

# What the tests set where the presets are slow or, on 64 pixels, too weak to fool anything.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "BoundaryAttack": {"steps": 200},
    "HopSkipJumpAttack": {"steps": 3},
    "L2CarliniWagnerAttack": {"binary_search_steps": 3, "steps": 30},
    "EADAttack": {"binary_search_steps": 3, "steps": 30},
    "L2ContrastReductionAttack": {"eps": 2.5},
}
# A generous budget where there has to be one; noise needs more of it.
GENEROUS = {"linf": 0.25, "l2": 2.0, "l1": 12.0}
NOISY = {"linf": 0.6, "l2": 5.0}


def made_for_tests(name: str) -> FoolboxAttack:
    cls, settings = CLASSES[name], dict(SETTINGS.get(name, {}))
    if not cls.info.minimises and cls.info.norm is not None:
        settings.setdefault("eps", (NOISY if cls.info.family == "noise" else GENEROUS)[cls.info.norm])
    return cls(**settings)


def run(
    case: Case, perturbation: Perturbation, n: int = 16, model: nn.Module | None = None, **more: Any
) -> PerturbedBatch:
    images, labels = case.images[:n], case.labels[:n]
    return perturb_batch(perturbation, model or case.model, images, labels, case.indices[:n], 5, **more)


@pytest.mark.parametrize("name", CLASSES)
def test_every_attack_through_the_harness(digits: DigitsCase, name: str) -> None:
    if name not in CORE and not os.environ.get("AFTERSHOCK_ATTACKS"):
        pytest.skip("one of the many: set AFTERSHOCK_ATTACKS=1 to run every attack")
    if CLASSES[name].missing():
        pytest.skip(str(CLASSES[name].missing()))
    attack = made_for_tests(name)
    digits.model.train()
    before, gradients = (
        generator_states(),
        [None if p.grad is None else p.grad.clone() for p in digits.model.parameters()],
    )
    made = run(digits, attack)
    assert generator_states() == before and digits.model.training
    assert all(p.requires_grad for p in digits.model.parameters())
    for parameter, gradient in zip(digits.model.parameters(), gradients, strict=True):
        assert gradient is None or (parameter.grad is not None and torch.equal(parameter.grad, gradient))
    # No flag: nothing attached, in [0, 1], within the budget, finite.
    assert made.flags == ()
    assert made.success.float().mean() >= 0.1
    if not attack.info.minimises and attack.eps is not None:
        assert attack.norm is not None and made.norms[attack.norm].max() <= attack.eps * 1.0001
    assert (made.backwards > 0) == attack.info.gradients
    assert torch.equal(run(digits, attack).images, made.images)
    if attack.batch_invariant:
        parts = run(digits, attack, batch_size=5)
        # Decisions at a boundary amplify rounding, which depends on the batch; one image of sixteen may differ.
        assert ((parts.images - made.images).abs() > 1e-3).flatten(1).any(1).sum() <= 1
    images, labels = digits.images[:2], digits.labels[:2]
    raw = attack.perturb(CountingModel(digits.model).eval(), images.clone(), labels, Draws(5, range(2)))
    assert not raw.requires_grad and raw.dtype == torch.float32 and raw.shape == images.shape


@pytest.mark.skipif(not os.environ.get("AFTERSHOCK_ATTACKS"), reason="all attacks: set AFTERSHOCK_ATTACKS=1")
@pytest.mark.parametrize("name", CLASSES)
def test_every_attack_on_colour_images(name: str) -> None:
    if CLASSES[name].missing():
        pytest.skip(str(CLASSES[name].missing()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(196, 4)).eval()
        images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        labels = model(images).argmax(1)
    settings = {"steps": 2} if name in ("BoundaryAttack", "HopSkipJumpAttack") else {}
    made = perturb_batch(CLASSES[name](**settings), model, images, labels, range(2), 0)
    assert made.flags == () and made.images.shape == images.shape
    # These may find nothing on a random model; whatever does not look at the result has changed the image.
    assert made.norms["linf"].max() > 0 or CLASSES[name].info.minimises or not CLASSES[name].info.gradients


def test_every_class_of_foolbox_is_offered_or_has_a_reason() -> None:
    pytest.importorskip("foolbox")
    import foolbox

    theirs = {c.__name__: c for c in vars(foolbox.attacks).values() if inspect.isclass(c)}
    assert len(theirs) == 59
    assert set(CLASSES) | set(UNUSABLE) == set(theirs) and not set(CLASSES) & set(UNUSABLE)
    for name, target in PERTURBATIONS.builtins.items():
        if name.startswith("foolbox."):
            assert PERTURBATIONS.get(name) is CLASSES[name.removeprefix("foolbox.")], target


# The library's parameters that are objects, or that must not be set, with the reason.
NOT_SET = {
    "init_attack": "an object; `init` names the starting point instead",
    "distance": "an object; `distance` names it",
    "tensorboard": "writes files",
    "channel_axis": "images here are (n, channels, height, width)",
    "abort_early": "stops the whole batch",
    "stepsize_search": "the other one couples the batch",
}


@pytest.mark.parametrize("name", CLASSES)
def test_every_number_word_and_flag_of_the_library_is_a_parameter(name: str) -> None:
    import foolbox

    theirs = set(inspect.signature(getattr(foolbox.attacks, name).__init__).parameters) - {"self", "args", "kwargs"}
    ours = inspect.signature(CLASSES[name]).parameters
    allowed = set(NOT_SET)
    if name.endswith("FMNAttack"):
        # Only used from an `init_attack`.
        allowed.add("binary_search_steps")
    assert theirs - set(ours) <= allowed
    assert set(ours) - theirs <= {"eps", "distance", "init", "init_steps"}
    assert ("eps" in ours) == (CLASSES[name].info.norm is not None)
    if CLASSES[name].info.minimises:
        assert ours["eps"].default is None
    assert all(p.default is not inspect.Parameter.empty and p.annotation is not p.empty for p in ours.values())


def test_minimising_is_said_of_exactly_the_library_s_minimisers() -> None:
    import foolbox

    for name, cls in CLASSES.items():
        theirs = getattr(foolbox.attacks, name)
        assert cls.info.minimises == issubclass(theirs, foolbox.attacks.base.MinimizationAttack), name
        assert cls.info.library == "foolbox" and cls.info.summary.endswith(".")


def test_what_is_not_offered_does_not_work(digits: DigitsCase) -> None:
    import foolbox

    model = foolbox.PyTorchModel(digits.model.eval(), bounds=(0, 1), device="cpu")
    goal = foolbox.criteria.Misclassification(digits.labels[:4])
    for name, error in (("L0FMNAttack", NotImplementedError), ("GenAttack", ValueError), ("DatasetAttack", ValueError)):
        with pytest.raises(error):
            getattr(foolbox.attacks, name)()(model, digits.images[:4], goal, epsilons=0.1)
    assert inspect.isabstract(foolbox.attacks.Attack) and len(UNUSABLE) == 4


@pytest.mark.parametrize(
    ("name", "settings", "dual", "share"),
    [
        ("L2CarliniWagnerAttack", {"steps": 60}, 2, 0.05),
        ("DDNAttack", {"init_epsilon": 0.1, "steps": 100}, 2, 0.05),
        # The library's own projection does nothing, and ends at more than twice the distance on the digits.
        ("L2FMNAttack", {}, 2, 0.05),
        ("LInfFMNAttack", {}, 1, 0.15),
        ("HopSkipJumpAttack", {"steps": 6}, 2, 0.15),
    ],
)  # fmt: skip
def test_minimisers_find_the_distance_to_a_linear_boundary(
    linear: LinearCase, name: str, settings: dict[str, Any], dual: int, share: float
) -> None:
    made = run(linear, CLASSES[name](**settings), 12)
    distance = linear.margins[:12] / torch.linalg.vector_norm(linear.model.weight.detach(), dual)
    norm = CLASSES[name].info.norm
    assert norm is not None
    found = made.norms[norm]
    assert made.success.all() and (found >= distance * 0.999).all()
    assert found.sum() / distance.sum() - 1 < share


@pytest.mark.parametrize("name", ["L2DeepFoolAttack", "DDNAttack", "BoundaryAttack"])
def test_an_explicit_budget_shortens_what_the_same_run_finds(digits: DigitsCase, name: str) -> None:
    settings = dict(SETTINGS.get(name, {}))
    free, limited = run(digits, CLASSES[name](**settings)), run(digits, CLASSES[name](eps=0.4, **settings))
    assert limited.flags == () and limited.norms["l2"].max() <= 0.4 * 1.00001
    inside = free.norms["l2"] <= 0.4
    assert torch.allclose(limited.images[inside], free.images[inside], atol=1e-6)
    assert (limited.success >= (inside & free.success)).all()
    beyond = limited.norms["l2"][~inside]
    assert torch.allclose(beyond, torch.full_like(beyond, 0.4), rtol=1e-4)


def test_an_l0_budget_is_all_or_nothing(digits: DigitsCase) -> None:
    free, limited = run(digits, CLASSES["PointwiseAttack"]()), run(digits, CLASSES["PointwiseAttack"](eps=2))
    few = free.norms["l0"] <= 2
    assert 0 < few.sum() < 16
    assert torch.equal(limited.images[few], free.images[few])
    assert torch.equal(limited.images[~few], digits.images[:16][~few])
    assert CLASSES["PointwiseAttack"]().norm == "l0" and CLASSES["PointwiseAttack"](distance="l2").norm == "l2"
    assert CLASSES["HopSkipJumpAttack"](constraint="linf").norm == "linf"


class Stubborn(nn.Module):
    """Class 0 whatever the image is, with a margin of 1."""

    def forward(self, images: Tensor) -> Tensor:
        nothing = images.flatten(1).sum(1) * 0
        return torch.stack([nothing + 1, nothing, nothing], 1)


@pytest.mark.parametrize(
    "name",
    ["L2CarliniWagnerAttack", "EADAttack", "NewtonFoolAttack", "VirtualAdversarialAttack", "GaussianBlurAttack",
     "LinearSearchBlendedUniformNoiseAttack", "BoundaryAttack", "HopSkipJumpAttack", "PointwiseAttack",
     "BinarizationRefinementAttack"],
)  # fmt: skip
def test_images_that_nothing_fools_come_back_as_they_were(digits: DigitsCase, name: str) -> None:
    # The library raises, or gives black images, NaN, or the most that it tried.
    attack = CLASSES[name](**{k: v for k, v in SETTINGS.get(name, {}).items() if k == "steps"})
    images = digits.images[:3]
    made = perturb_batch(attack, Stubborn(), images, torch.zeros(3, dtype=torch.int64), range(3), 0)
    assert torch.equal(made.images, images) and not made.success.any()
    assert set(made.flags) <= {"zero-gradient", "non-finite-gradient"}


@pytest.mark.parametrize("name", ["BoundaryAttack", "HopSkipJumpAttack"])
def test_one_image_without_a_starting_point_does_not_stop_the_others(name: str) -> None:
    class Bright(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            value = 20 * (images.flatten(1).mean(1) - 0.35)
            return torch.stack([-value, value], 1)

    # Uniform noise has a mean of 0.5: it is never dark, so only the dark images can be made to start.
    images = torch.cat([torch.full((2, 1, 10, 10), 0.3), torch.full((2, 1, 10, 10), 0.8)])[[0, 2, 1, 3]]
    labels = torch.tensor([0, 1, 0, 1])
    made = perturb_batch(CLASSES[name](steps=3), Bright(), images, labels, range(4), 0)
    assert made.success.tolist() == [True, False, True, False]
    assert torch.equal(made.images[[1, 3]], images[[1, 3]])


def test_a_binarising_model_needs_only_the_step_over_its_threshold(digits: DigitsCase) -> None:
    class Binary(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return digits.model((images >= 0.5).float() * 0.8 + 0.1)

    with torch.no_grad():
        labels = Binary()(digits.images[:16]).argmax(1)
    attack = CLASSES["BinarizationRefinementAttack"]()
    made = perturb_batch(attack, Binary(), digits.images[:16], labels, range(16), 0)
    assert made.success.float().mean() > 0.8
    changed = made.images[made.success][made.images[made.success] != digits.images[:16][made.success]]
    assert ((changed - 0.5).abs() < 1e-6).all()


def test_the_model_s_own_errors_are_not_taken_for_the_library_s(digits: DigitsCase) -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) == 4:
                raise ValueError("mine")
            return digits.model(images)

    with pytest.raises(ValueError, match="mine"):
        run(digits, CLASSES["BoundaryAttack"](steps=2), 4, Broken())


def test_brendel_and_bethge_say_that_they_need_numba(linear: LinearCase, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "numba":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(library, "version", version)
    attack = CLASSES["L2BrendelBethgeAttack"]()
    assert "pip install numba" in str(type(attack).missing())
    assert attack.inapplicable((3, 4, 4), 2) is None
    with pytest.raises(UsageError, match="numba"):
        run(linear, attack, 4)
    assert CLASSES["DDNAttack"].missing() is None
    monkeypatch.setattr(library, "version", lambda name: "1")
    assert type(attack).missing() is None


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("LinfProjectedGradientDescentAttack", {"eps": 8}, "eps"),
        ("LinfProjectedGradientDescentAttack", {"steps": 0}, "steps"),
        ("LinfProjectedGradientDescentAttack", {"rel_stepsize": 0.0}, "rel_stepsize"),
        ("LinfProjectedGradientDescentAttack", {"abs_stepsize": -1.0}, "abs_stepsize"),
        ("LinfProjectedGradientDescentAttack", {"step": 3}, "step"),
        ("SparseL1DescentAttack", {"quantile": 1.5}, "quantile"),
        ("HopSkipJumpAttack", {"constraint": "l1"}, "constraint"),
        ("BoundaryAttack", {"init": "noise"}, "init"),
        ("EADAttack", {"decision_rule": "L2"}, "decision_rule"),
        ("L2DeepFoolAttack", {"loss": "hinge"}, "loss"),
        ("LinfDeepFoolAttack", {"eps": 8}, "eps"),
    ],
)
def test_wrong_parameters_are_named(name: str, settings: Mapping[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        CLASSES[name](**settings)
