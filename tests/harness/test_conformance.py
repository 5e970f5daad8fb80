"""The kits of perturbations, models and data sets: sound parts pass, and each way of breaking a rule is caught."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from aftershock import (
    Dataset,
    DataSource,
    Draws,
    ImageSplit,
    Perturbation,
    PerturbationInfo,
    UsageError,
    check_part,
    parametrize_with_checks,
)
from aftershock.harness.conformance import KITS, ConformanceWarning
from aftershock.harness.conformance.kit import Finding
from aftershock.harness.core.registry import PartKind
from torch import Tensor, nn


class SoundNoise(Perturbation):
    """Uniform noise."""

    info = PerturbationInfo(
        title="Noise", kind="noise", family="noise", norm="linf", gradients=False, stochastic=True, paper="none",
        summary="Uniform noise.",
    )  # fmt: skip

    def __init__(self, eps: float = 0.2) -> None:
        self.eps: float = eps

    def perturb(self, model: Any, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        return (images + self.eps * (2 * draws.uniform(images) - 1)).clamp(0, 1)


def noise(change: Callable[[Tensor, Tensor, Any], Any], **about: Any) -> type[Perturbation]:
    """Sound noise whose result, given the images and the model, is changed."""

    class Changed(SoundNoise):
        info = PerturbationInfo(**{**vars(SoundNoise.info), **about})

        def perturb(self, model: Any, images: Tensor, labels: Tensor, draws: Draws) -> Any:
            return change(super().perturb(model, images, labels, draws), images, model)

    return Changed


def _trains(result: Tensor, images: Tensor, model: Any) -> Tensor:
    model.model.train()
    return result


def _moves_weights(result: Tensor, images: Tensor, model: Any) -> Tensor:
    with torch.no_grad():
        next(iter(model.model.buffers())).add_(0.0)
        parameter = next(iter(model.model.parameters()))
        parameter.add_(1e-6)
    return result


def _sets_threads(result: Tensor, images: Tensor, model: Any) -> Tensor:
    torch.set_default_dtype(torch.float64)
    return result


def _asks(result: Tensor, images: Tensor, model: Any) -> Tensor:
    model(images)
    return result


_STARTS: list[int] = []


def _drifts(result: Tensor, images: Tensor, model: Any) -> Tensor:
    _STARTS.append(1)
    return (result + 1e-3 * len(_STARTS)).clamp(0, 1)


ATTACK = {"kind": "attack", "family": "mine"}
PERTURBATIONS: Mapping[str, tuple[Any, str]] = {
    "info": (noise(lambda r, x, m: r, kind="nois"), "info.kind = 'nois'"),
    "described": (noise(lambda r, x, m: r, paper="", summary=""), "paper and summary"),
    "perturbs": (noise(lambda r, x, m: r[:, :, :4]), r"the shape \(24, 1, 4, 8\)"),
    "in-range": (noise(lambda r, x, m: r + 1), r"outside \[0, 1\]"),
    "budget": (noise(lambda r, x, m: (x + 0.3).clamp(0, 1)), r"linf 0\.3, and its budget is 0\.2"),
    "seeded": (noise(_drifts), "the same images and seed"),
    "batches": (noise(lambda r, x, m: (r + 0.1 * r.mean()).clamp(0, 1)), "in batches of 7, 1"),
    "one-image": (noise(lambda r, x, m: r.squeeze()if len(r) == 1 else r), "one image came back in another shape"),
    "inputs": (noise(lambda r, x, m: x.mul_(0.9)), "writes into the images"),
    "model": (noise(_trains), "the model's mode"),
    "global-state": (noise(_sets_threads), "dtype"),
    "detached": (noise(lambda r, x, m: r.requires_grad_()), "requires a gradient"),
    "float32": (noise(lambda r, x, m: r.double()), "another type"),
    "effect": (noise(lambda r, x, m: x.clone()), "changes none"),
    "gradients": (
        noise(
            lambda r, x, m: torch.autograd.grad((0 * m(r.requires_grad_())).sum(), r)[0] + x, gradients=True, **ATTACK
        ),
        "zero-gradient",
    ),
    "declared-box": (noise(lambda r, x, m: r, gradients=True, **ATTACK), "takes no gradient"),
    "declared-kind": (noise(_asks), "asks the model"),
    "declared-draws": (noise(lambda r, x, m: r, stochastic=False), "another seed gives other results"),
    "declared-cost": (noise(lambda r, x, m: [m(x) for _ in range(60)] and r, gradients=False, **ATTACK), "is medium"),
}  # fmt: skip


def network(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A small network."""
    size = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.ReLU(), nn.Linear(16, classes))


class Other(nn.Module):
    """A network whose output is changed."""

    def __init__(self, change: Callable[[Tensor, Tensor], Any], shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.inner, self.change = network(shape, classes), change

    def forward(self, images: Tensor) -> Any:
        return self.change(self.inner(images), images)


def other(change: Callable[[Tensor, Tensor], Any]) -> Callable[..., nn.Module]:
    def make(shape: tuple[int, int, int], classes: int) -> nn.Module:
        """A network whose output is changed."""
        return Other(change, shape, classes)

    return make


def _drops(shape: tuple[int, int, int], classes: int) -> nn.Module:
    torch.set_default_dtype(torch.float64)
    made = network(shape, classes).float()
    return made


_MADE: list[int] = []


def _another(shape: tuple[int, int, int], classes: int) -> nn.Module:
    made = network(shape, classes)
    _MADE.append(1)
    with torch.no_grad():
        made.get_parameter("1.weight").add_(len(_MADE))
    return made


class Compiled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))

    def get_extra_state(self) -> object:
        return {"packed": "object"}

    def set_extra_state(self, state: object) -> None:
        pass


MODELS: Mapping[str, tuple[Any, str]] = {
    "makes": (lambda: "a network", "must be a torch.nn.Module"),
    "logits": (other(lambda z, x: z.softmax(1)), "look like probabilities"),
    "task": (lambda shape, classes: network((1, 8, 8), 10), "."),
    "taps": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "no tap|ReLU"),
    "batches": (other(lambda z, x: z - z.mean(0) if len(z) > 1 else z), "in another batch"),
    "seeded": (_another, "gave another network"),
    "global-state": (_drops, "dtype"),
    "documented": (lambda: network((1, 8, 8), 10), "no docstring"),
    "deterministic": (other(lambda z, x: z + torch.randn_like(z)), "have other logits"),
    "gradient": (other(lambda z, x: z.detach()), "cannot be differentiated"),
    "state": (Compiled, "more than plain tensors"),
    "float32": (other(lambda z, x: z.double()), "float64"),
    "inputs": (other(lambda z, x: (x.zero_(), z)[1]), "in place"),
}  # fmt: skip


def images_of(count: int, seed: int) -> Tensor:
    return torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


def shapes(root: Path, train: int = 300, test: int = 400) -> DataSource:
    """Noise of two classes."""
    return changed()(root, train, test)


def changed(
    load: Callable[[], Any] | None = None, files: tuple[Path, ...] = (), fingerprint: Any = None, **more: Any
) -> Any:
    """A sound data set of which some fields are others."""

    def find(root: Path, train: int = 300, test: int = 400) -> DataSource:
        def sound() -> Dataset:
            fields: dict[str, Any] = {
                "name": "noise", "classes": ("a", "b"), "shape": (1, 6, 6),
                "train": ImageSplit(images_of(train, 0), torch.arange(train) % 2),
                "test": ImageSplit(images_of(test, 1), torch.arange(test) % 2), "mean": (0.5,), "std": (0.289,),
            }  # fmt: skip
            return Dataset(**{**fields, **{k: v() if callable(v) else v for k, v in more.items()}})

        return DataSource("noise", files, load or sound, {"train": train} if fingerprint is None else fingerprint)

    return find


class Drawn:
    """Images that are drawn when they are read."""

    def __len__(self) -> int:
        return 300

    def read(self, rows: Any) -> Tensor:
        return images_of(len(rows), int(rows[0]))


def _seeds() -> Any:
    torch.manual_seed(3)
    return (0.289,)


LABELS = torch.arange(300) % 2
DATASETS: Mapping[str, tuple[Any, str]] = {
    "found": (changed(files=(Path("/no/such/file"),)), "does not exist"),
    "loads": (changed(load=lambda: [1, 2]), "load\\(\\) gave list"),
    "images": (changed(train=lambda: ImageSplit(255 * images_of(300, 0), LABELS)), "go from 0.* to 25"),
    "labels": (changed(train=lambda: ImageSplit(images_of(300, 0), LABELS + 1)), "from 1 to 2, and `classes` names 2"),
    "constants": (changed(mean=(0.5, 0.5)), "2 means"),
    "rows": (changed(train=lambda: ImageSplit(Drawn(), LABELS)), "in another order"),
    "repeatable": (changed(train=lambda: ImageSplit(torch.rand(300, 1, 6, 6), LABELS)), "other train images"),
    "fingerprint": (changed(fingerprint={}), "neither files nor a fingerprint"),
    "global-state": (changed(std=_seeds), "torch's global generator"),
    "normalisation": (changed(mean=(0.2,)), r"mean and std are \(0.2,\)"),
    "classes": (changed(classes=("a", "b", "c")), "1 of 3 classes have no train image"),
    "duplicates": (changed(test=lambda: ImageSplit(images_of(400, 0), torch.arange(400) % 2)), "also in the train"),
    "enough": (changed(test=lambda: ImageSplit(images_of(90, 1), torch.arange(90) % 2)), "has 90 images"),
}  # fmt: skip

BROKEN: Mapping[PartKind, Mapping[str, tuple[Any, str]]] = {
    "perturbation": PERTURBATIONS, "model": MODELS, "dataset": DATASETS,
}  # fmt: skip
CASES = [(kind, name, *case) for kind, cases in BROKEN.items() for name, case in cases.items()]


@pytest.mark.parametrize("kind", BROKEN)
def test_there_is_a_broken_part_for_every_check(kind: PartKind) -> None:
    assert set(BROKEN[kind]) == set(KITS[kind].checks) - {"channels"}


@pytest.mark.parametrize(("kind", "name", "part", "message"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_each_check_catches_what_breaks_its_rule(kind: PartKind, name: str, part: Any, message: str) -> None:
    dtype = torch.get_default_dtype()
    try:
        (finding,) = check_part(kind, part, only=[name])
    finally:
        torch.set_default_dtype(dtype)
    check = KITS[kind].checks[name]
    assert finding.status == ("failed" if check.level == "rule" else "warning"), finding
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(finding.detail)
    assert finding.fix and finding.fix in str(finding)


@parametrize_with_checks("perturbation", [SoundNoise, SoundNoise(eps=0.1)])
def test_a_sound_perturbation_passes(perturbation: Perturbation, check: Callable[[object], None]) -> None:
    check(perturbation)


@parametrize_with_checks("model", [network, "cnn"])
def test_a_sound_model_passes(model: object, check: Callable[[object], None]) -> None:
    check(model)


@parametrize_with_checks("dataset", [shapes, "digits"])
def test_a_sound_data_set_passes(dataset: object, check: Callable[[object], None]) -> None:
    check(dataset)


@pytest.mark.parametrize("name", ["pgd", "fgsm", "square", "gaussian", "corruption.contrast"])
def test_built_in_perturbations_keep_every_rule(name: str) -> None:
    params = {"pgd": {"eps": 0.2}, "fgsm": {"eps": 0.2}, "square": {"eps": 0.2}, "gaussian": {"std": 0.1}}.get(name, {})
    findings = check_part("perturbation", name, {"severity": 3} if name.startswith("corruption") else params)
    assert not [str(f) for f in findings if f.status == "failed"]


def test_an_analysis_that_no_suite_names_is_checked() -> None:
    findings = check_part("analysis", "propagation")
    assert not [str(f) for f in findings if f.status != "passed"]


def test_the_weights_of_the_model_are_watched() -> None:
    from aftershock.harness.conformance.fixture import make_fixture

    parameter = next(iter(make_fixture().traced_model.model.parameters()))
    before = parameter.detach().clone()
    try:
        (finding,) = check_part("perturbation", noise(_moves_weights), only=["model"])
    finally:
        with torch.no_grad():
            parameter.copy_(before)
    assert finding.status == "failed" and "weights" in finding.detail


def test_what_does_not_apply_is_skipped_with_the_reason() -> None:
    adaptive = check_part("perturbation", "adaptive", {"eps": 0.2})
    assert {f.status for f in adaptive if f.name not in ("info", "described")} == {"skipped"}
    (budget,) = check_part("perturbation", "gaussian", {"std": 0.1}, only=["budget"])
    assert (budget.status, budget.detail) == ("skipped", "it has no budget")


def test_a_recommendation_in_pytest_is_a_warning() -> None:
    @parametrize_with_checks("perturbation", [noise(lambda r, x, m: r, paper="")])
    def contract(perturbation: Any, check: Any) -> None: ...

    (mark,) = contract.pytestmark
    (check,) = [case.values[1] for case in mark.args[1] if case.id.endswith("-described")]
    with pytest.warns(ConformanceWarning, match="info lacks paper"):
        check(mark.args[1][0].values[0])


def test_an_unexpected_exception_says_how_to_see_it() -> None:
    def raises(result: Tensor, images: Tensor, model: Any) -> Tensor:
        raise KeyError("relu")

    (finding,) = check_part("perturbation", noise(raises), only=["perturbs"])
    assert finding.status == "failed" and "KeyError: 'relu'" in finding.detail and "--debug" in finding.fix
    with pytest.raises(KeyError):
        check_part("perturbation", noise(raises), only=["perturbs"], debug=True)


def test_kinds_parts_and_parameters_that_are_wrong_are_one_sentence() -> None:
    for given, message in (
        (("detectr", "msp"), "no kind 'detectr'"),
        (("perturbation", "fgsn"), "did you mean 'fgsm'"),
        (("perturbation", "fgsm"), "--param NAME=VALUE"),
        (("perturbation", dict), "is not a perturbation: derive its class from aftershock.Perturbation"),
        (("model", "cn"), "did you mean 'cnn'"),
        (("model", nn.Linear(2, 2)), "give a function that returns"),
        (("dataset", 3), "is not a data set"),
    ):
        with pytest.raises(UsageError, match=message):
            check_part(*given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(isinstance(f, Finding) for f in check_part("dataset", "digits", only=["found"]))
