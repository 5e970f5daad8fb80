"""What a part says of itself is asked when it is made: no mistake of a plugin waits until the work is done."""

from __future__ import annotations

import math
from abc import ABCMeta
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from aftershock.analyses.base import Analysis, AnalysisInfo
from aftershock.attacks.base.perturbation import Perturbation, PerturbationInfo
from aftershock.detectors.base.detector import Detector, DetectorInfo
from aftershock.detectors.base.scores import checked_scores
from aftershock.harness.core.errors import AftershockError, UsageError
from aftershock.harness.core.registry import ANALYSES, DATASETS, DETECTORS, MODELS, PERTURBATIONS, Registry
from aftershock.harness.suite.instances import make_analysis, make_detector, make_perturbation
from aftershock.harness.suite.problems import SuiteError
from aftershock.harness.suite.resolve import load_suite
from aftershock.harness.suite.resolved import Part
from aftershock.harness.tracing.extra_passes import Ascent, InputGradient, View
from aftershock.harness.tracing.traces import Need

MAKE: dict[str, tuple[Registry, Callable[[Part], Any], ABCMeta, object]] = {
    "perturbation": (PERTURBATIONS, make_perturbation, Perturbation, PerturbationInfo("x", "attack", "x", "linf")),
    "detector": (DETECTORS, make_detector, Detector, DetectorInfo("x")),
    "analysis": (ANALYSES, make_analysis, Analysis, AnalysisInfo("x")),
}


@pytest.fixture
def made() -> Iterator[Callable[..., object]]:
    """Registers a class of a kind with some attributes and makes one as a suite would."""
    names: list[tuple[Registry, str]] = []

    def make(kind: str, **attributes: object) -> object:
        registry, factory, base, info = MAKE[kind]
        name = f"made-{kind}-{len(names)}"
        whole = {"info": info, **dict.fromkeys(base.__abstractmethods__), "needs": (Need("bits"),), **attributes}
        if kind == "perturbation" and "needs" not in attributes:
            del whole["needs"]
        registry.register(name)(type("Made", (base,), {**whole, "__module__": __name__}))
        names.append((registry, name))
        return factory(Part(name, name, {}))

    yield make
    for registry, name in names:
        del registry._entries[name]


def info(of: str, /, **changes: object) -> object:
    return replace(MAKE[of][3], **changes)  # type: ignore[type-var]


def raising(self: object) -> object:
    raise KeyError("weights")


GOOD = [
    ("perturbation", {}), ("perturbation", {"eps": 0.1}), ("perturbation", {"eps": 0}), ("perturbation", {"images": 3}),
    ("perturbation", {"eps": 3, "norm": "l0"}), ("perturbation", {"eps": None, "norm": None}), ("detector", {}),
    ("detector", {"needs": ()}), ("detector", {"views": (View("a"),)}), ("analysis", {}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "attributes"), GOOD)
def test_what_is_as_described_is_taken(kind: str, attributes: dict[str, object], made: Callable[..., object]) -> None:
    assert made(kind, **attributes) is not None


WRONG: list[tuple[str, Any]] = [
    *(("perturbation", {"eps": eps}) for eps in ("8/255", True, -0.1, math.nan, math.inf, [0.1], torch.tensor(0.1), 8)),
    *(("perturbation", {"norm": norm}) for norm in ("l3", "Linf", 2, ["linf"], True)),
    *(("perturbation", {"images": images}) for images in ("10", 0, -1, 2.0, True)),
    ("perturbation", {"large_eps": "1/2"}),
    ("perturbation", {"family": 3}),
    ("perturbation", {"learnable": "yes"}),
    ("perturbation", {"effort": 50}),
    ("perturbation", {"source_files": lambda self: ("no-such-file",)}),
    ("perturbation", {"source_files": lambda self: (Path("no-such-file"),)}),
    *(
        ("perturbation", {"covers": lambda self, positions, found=found: found})
        for found in (None, True, [True], [1, 0], "ab", torch.ones(2, dtype=torch.bool))
    ),
    ("perturbation", {"info": None}),
    ("perturbation", {"info": DetectorInfo("x")}),
    *(
        ("perturbation", {"info": info("perturbation", **changes)})
        for changes in (
            {"kind": "atack"},
            {"kind": None},
            {"norm": "l7"},
            {"family": ""},
            {"title": 3},
            {"cost": "cheap"},
            {"stochastic": 1},
            {"minimises": "no"},
            {"paper": None},
            {"library": None},
        )
    ),
    *(
        ("perturbation", {name: property(raising)})
        for name in ("eps", "norm", "images", "family", "learnable", "effort")
    ),
    *(
        ("detector", {"info": info("detector", **changes)})
        for changes in (
            {"title": None},
            {"title": ""},
            {"summary": 3},
            {"supervised": 1},
            {"surrogate": "good"},
            {"randomised": "yes"},
        )
    ),
    *(
        ("detector", {name: value})
        for name, value in (
            ("supervised", "yes"),
            ("surrogate_kind", "exactly"),
            ("surrogate_kind", None),
            ("randomised", 1),
            ("needs", "bits"),
            ("needs", None),
            ("needs", ("bits",)),
            ("needs", (Need("bits", units=0),)),
            ("needs", (Need("bits", taps=3),)),  # type: ignore[arg-type]
            ("views", ("a",)),
            ("views", (View("a"), View("a"))),
            ("views", (View(""),)),
            ("views", (View("a", transform=3),)),  # type: ignore[arg-type]
            ("views", (View("a", ascent=3),)),  # type: ignore[arg-type]
            ("views", (View("a", ascent=Ascent(3, 0.1, 0.1, 1)),)),  # type: ignore[arg-type]
            ("gradients", (View("a"),)),
            ("gradients", (InputGradient("a", 3),)),  # type: ignore[arg-type]
        )
    ),
    *(
        ("detector", {name: property(raising)})
        for name in ("supervised", "needs", "surrogate_kind", "views", "gradients")
    ),
    ("analysis", {"info": AnalysisInfo(3)}),  # type: ignore[arg-type]
    ("analysis", {"info": "a title"}),
    ("analysis", {"needs": ("bits",)}),
    ("analysis", {"reads_perturbed": 1}),
]


@pytest.mark.parametrize(("kind", "attributes"), WRONG)
def test_what_is_not_as_described_is_refused(
    kind: str, attributes: dict[str, object], made: Callable[..., object]
) -> None:
    with pytest.raises((UsageError, KeyError)):
        made(kind, **attributes)


@pytest.mark.parametrize("kind", MAKE)
def test_a_class_of_another_kind_is_refused(kind: str, made: Callable[..., object]) -> None:
    registry, make, *_ = MAKE[kind]
    registry.register(f"no-{kind}")(type("Other", (), {"__module__": __name__}))
    try:
        with pytest.raises(UsageError, match="derive its class"):
            make(Part(f"no-{kind}", "x", {}))
    finally:
        del registry._entries[f"no-{kind}"]


@pytest.mark.parametrize("registry", [DETECTORS, PERTURBATIONS, ANALYSES, MODELS, DATASETS])
@pytest.mark.parametrize("part", [42, "text", math, None, Path()])
def test_what_makes_nothing_is_not_registered(registry: Registry, part: object) -> None:
    with pytest.raises(UsageError, match=f"registers {registry.word}"):
        registry.register("cannot-be")(part)
    assert "cannot-be" not in registry._entries


def test_an_instance_and_a_bare_decorator_are_not_registered() -> None:
    with pytest.raises(UsageError, match="not a class"):
        DETECTORS.register("cannot-be")(DETECTORS.get("msp")())
    with pytest.raises(UsageError, match=r'@register\("name"\)'):
        DETECTORS.register(DETECTORS.get("msp"))


CARELESS = """
from aftershock.attacks import Perturbation, PerturbationInfo, register

@register("careless")
class Careless(Perturbation):
    info = PerturbationInfo("Careless", "attack", "careless", "linf")

    def __init__(self, eps, norm=None):
        self.eps = eps
        self.chosen = norm

    @property
    def norm(self):
        return self.chosen or "linf"

    def perturb(self, model, images, labels, draws):
        return (images + self.eps).clamp(0, 1)
"""


@pytest.mark.parametrize(
    ("params", "eps", "line"),
    [
        ('eps = "8/255"', 8 / 255, ""), ("eps = 0.1", 0.1, ""), ('eps = "much"', 0, 'eps = "much"'),
        ("eps = true", 0, "eps = true"), ("eps = -1", 0, "eps = -1"), ("eps = 8", 0, "eps = 8"),
        ('eps = 0.1\nnorm = "l9"', 0, 'norm = "l9"'), ("eps = inf", 0, "eps = inf"),
    ],
)  # fmt: skip
def test_a_budget_without_an_annotation(params: str, eps: float, line: str, tmp_path: Path) -> None:
    (tmp_path / "careless.py").write_text(CARELESS)
    text = (
        'name = "a"\nplugins = ["careless.py"]\n[data]\nname = "digits"\nfit = 9\ncalibrate = 9\nevaluate = 9\n'
        '[threat]\nnorm = "linf"\neps = 0.1\n[[models]]\nname = "mlp"\n[[detectors]]\nname = "msp"\n'
        f'[[perturbations]]\nname = "careless"\n{params}\n'
    )
    (tmp_path / "a.toml").write_text(text)
    try:
        if not line:
            (part,) = load_suite(tmp_path / "a.toml").perturbations
            assert part.params == {"eps": eps}
            return
        with pytest.raises(SuiteError) as caught:
            load_suite(tmp_path / "a.toml")
        (problem,) = caught.value.problems
        assert text.splitlines()[problem.line - 1] == line
    finally:
        del PERTURBATIONS._entries["careless"]


@pytest.mark.parametrize(
    "scores",
    [
        torch.complex(torch.ones(3), torch.ones(3)),
        torch.ones(3) > 0,
        torch.ones(3).to_sparse(),
        torch.ones(2),
        [1.0] * 3,
        torch.tensor([1.0, math.nan, 0]),
        torch.ones(3, 1),
    ],
)
def test_scores_are_real_numbers(scores: object) -> None:
    with pytest.raises(AftershockError, match=r"score\(\) gave"):
        checked_scores(scores, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int64, torch.uint8])
def test_scores_are_numbers_of_any_real_type(dtype: torch.dtype) -> None:
    found = checked_scores(torch.tensor([0, 1, 2], dtype=dtype), 3)
    assert found.dtype == torch.float64
    assert found.tolist() == [0, 1, 2]
