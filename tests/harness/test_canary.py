"""The canary: an attack that works gets past it, one that does nothing or was disturbed does not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
import torch
from aftershock.attacks.adaptive.feature_matching import FeatureMatching
from aftershock.attacks.adaptive.score_square import ScoreSquare
from aftershock.attacks.adaptive.surrogate import MarginAttack, SurrogateAttack
from aftershock.attacks.adaptive.worst_case import WorstCase
from aftershock.attacks.base.perturbation import CountingModel, Perturbation, PerturbationInfo
from aftershock.attacks.base.watched_model import Limits
from aftershock.harness.core.seeds import Draws
from aftershock.harness.data.types import Dataset
from aftershock.harness.run.tasks.canary import KNOWN_VALUE, canary_standing, reach
from support.cells import ledger
from support.commands import Forks
from support.suites import Tiny
from torch import Tensor

LIMITS = Limits(1e5, 5e4, 120)


def standing(attack: Perturbation, shape: tuple[int, int, int] = (1, 8, 8), classes: int = 10) -> Any:
    task = cast(Dataset, SimpleNamespace(shape=shape, classes=tuple(map(str, range(classes)))))
    return canary_standing(attack, task, LIMITS, torch.device("cpu"))


@pytest.mark.parametrize(("shape", "classes"), [((1, 8, 8), 10), ((3, 16, 16), 2), ((1, 1, 40), 3)])
@pytest.mark.parametrize(
    "attack",
    [
        WorstCase(0.2, 50, 100, restarts=2), WorstCase(0.5 / 255, 50, 100), WorstCase(0.5, norm="l2"),
        SurrogateAttack(0.1), FeatureMatching(0.1), ScoreSquare(0.1),
    ],
    ids=lambda attack: f"{type(attack).__name__}-{attack.norm}-{attack.eps:.3f}",
)  # fmt: skip
def test_every_built_in_attack_reaches_the_known_value(
    attack: Perturbation, shape: tuple[int, int, int], classes: int
) -> None:
    assert standing(attack, shape, classes) == (KNOWN_VALUE, "")


def test_an_attack_that_knows_no_detector_fools_the_model_and_is_flagged() -> None:
    assert standing(MarginAttack(0.2)) == (1.0, "")


class Idle(Perturbation):
    """Says what the floor asks, and does nothing."""

    info: ClassVar[PerturbationInfo] = PerturbationInfo(title="idle", kind="adaptive", family="x", norm="linf")

    def __init__(self, eps: float | None = 0.2) -> None:
        self.eps = eps

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        return images


class Broken(Idle):
    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        raise RuntimeError("no\nsuch thing")


def test_an_attack_that_does_nothing_or_stops_leaves_every_image() -> None:
    assert standing(Idle()) == (1.0, "")
    assert standing(Broken()) == (1.0, "RuntimeError: no such thing")


def test_without_a_budget_from_which_the_answer_follows_there_is_none() -> None:
    assert standing(Idle(None)) is None and standing(Idle(), (1, 1, 1)) is None
    assert reach("l0", 5, 64) is None
    assert reach("l2", 0.8, 64) == pytest.approx(0.1) and reach("l1", 6.4, 64) == pytest.approx(0.1)


def test_code_beside_the_attack_that_disturbs_it_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands where a function stood is looked after; what stands in the function itself is not."""

    def nothing(self: Any, best: Any, rows: Any, model: Any, clean: Any, labels: Any, draws: Any) -> None:
        return None

    monkeypatch.setattr(WorstCase.improve, "__code__", nothing.__code__)
    assert standing(WorstCase(0.2)) == (1.0, "")


PATCHING = """
import torch
from aftershock import Detector, DetectorInfo, register_detector
from aftershock.attacks.adaptive.worst_case import WorstCase


def disturb():
    WorstCase.improve.__code__ = (lambda self, best, rows, model, clean, labels, draws: None).__code__
    torch.Tensor.sign = torch.Tensor.abs


disturb()


@register_detector("patching")
class Patching(Detector):
    info = DetectorInfo(title="patching")

    def fit(self, clean, perturbed=None):
        disturb()
        return self

    def score(self, traces):
        disturb()
        return -traces.logits.double().amax(1)
"""


@pytest.mark.slow
def test_what_a_plugin_does_in_its_process_does_not_reach_the_attack(forks: Forks, tmp_path: Path, tiny: Tiny) -> None:
    (tmp_path / "patching.py").write_text(PATCHING, encoding="utf-8")
    attack = {"name": "adaptive", "eps": 0.3, "steps": 10, "queries": 10, "images": 20}
    tiny(tmp_path / "a.toml", [attack], [{"name": "patching"}, {"name": "msp"}], plugins=["patching.py"])
    done = forks("run", "a.toml", "--out", "run", "--only", "/0/perturb", cwd=tmp_path)
    assert done.status == 0, done.output
    found = {r.name.part: r.values["canary"] for r in ledger(tmp_path / "run").values() if r.name.kind == "perturb"}
    assert found == {"adaptive@patching": [KNOWN_VALUE, ""], "adaptive@msp": [KNOWN_VALUE, ""]}
