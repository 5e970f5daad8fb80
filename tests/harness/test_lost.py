"""Analyses of a run in which a perturbation failed: made without it, and the same as in a suite that has it not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aftershock
import torch
from aftershock.analyses.base import Analysis, AnalysisInfo
from aftershock.analyses.base import register as analysis
from aftershock.analyses.findings import Claim, Findings
from aftershock.attacks import Perturbation, PerturbationInfo, register
from support.tables import share_secret
from torch import Tensor


@register("breaks-down")
class BreaksDown(Perturbation):
    """An attack that raises."""

    info = PerturbationInfo(title="breaks down", kind="attack", family="breaks-down")
    eps = 0.3

    def perturb(self, model: torch.nn.Module, images: Tensor, labels: Tensor, draws: object) -> Tensor:
        raise RuntimeError("broken")


@dataclass(frozen=True)
class Seen:
    """The labels of the perturbations that an analysis is given."""

    labels: tuple[str, ...]


@analysis("sees")
class Sees(Analysis[Seen]):
    """Names what it is given."""

    info = AnalysisInfo(title="Sees", paper="none")
    reads_perturbed = True
    needs = ()

    def measure(self, given: Any) -> Seen:
        return Seen(tuple(sorted(given.perturbed)))

    def report(self, measured: Seen) -> Findings:
        return Findings([Claim("seen", label, sentence=label) for label in measured.labels])


@analysis("needs-attack")
class NeedsAttack(Sees):
    """Has nothing to say where there is no attack."""

    info = AnalysisInfo(title="Needs attack", paper="none")

    def measure(self, given: Any) -> Seen:
        if "fgsm" not in given.perturbed:
            raise RuntimeError("no attack")
        return super().measure(given)


@analysis("blind")
class Blind(Sees):
    """Reads clean images alone."""

    info = AnalysisInfo(title="Blind", paper="none")
    reads_perturbed = False


def suite(*perturbations: dict[str, Any], analyses: tuple[str, ...] = ("sees", "blind")) -> dict[str, Any]:
    return {
        "name": "lost", "seeds": [0], "data": {"name": "digits", "fit": 60, "calibrate": 60, "evaluate": 40},
        "threat": {"norm": "linf", "eps": 0.3}, "models": [{"name": "mlp", "epochs": 1, "width": 8}],
        "perturbations": list(perturbations), "detectors": [{"name": "msp"}],
        "analyses": [{"name": name} for name in analyses],
    }  # fmt: skip


GAUSSIAN, FGSM, BROKEN = {"name": "gaussian", "std": 0.5}, {"name": "fgsm", "eps": 0.3}, {"name": "breaks-down"}


def found(run: Path) -> dict[str, Any]:
    return {
        path.parent.name.rpartition("-")[2]: json.loads(path.read_text(encoding="utf-8"))
        for path in run.glob("analyses/*/findings.json")
    }


def test_analyses_are_made_without_a_perturbation_that_failed(tmp_path: Path) -> None:
    made = aftershock.run(suite(GAUSSIAN, BROKEN, FGSM), tmp_path / "a", cache=tmp_path / "cache")
    assert [name for name in made.failed if "analysis" in name] == []
    assert [name for name in made.skipped if "analysis" in name] == []
    assert made.failed, "the attack itself is told"
    results = found(made.folder)
    assert set(results) == {"sees", "blind"}
    assert results["sees"]["findings"]["sentences"] == ["fgsm", "gaussian"]
    assert results["sees"]["without"] == ["breaks-down"] and "without" not in results["blind"]
    page = next((made.folder / "site" / "analyses").glob("*sees*.html")).read_text(encoding="utf-8")
    assert "Made without breaks-down, which failed." in page

    # The result is that of the suite without the attack, not one that passes for whole.
    share_secret(made.folder, tmp_path / "b")
    plain = aftershock.run(suite(GAUSSIAN, FGSM), tmp_path / "b", cache=tmp_path / "cache")
    assert plain.computed == 0
    assert found(plain.folder)["sees"]["findings"] == results["sees"]["findings"]
    assert "without" not in found(plain.folder)["sees"]

    again = aftershock.run(suite(GAUSSIAN, BROKEN, FGSM), tmp_path / "a", cache=tmp_path / "cache")
    assert again.computed == 0 and found(again.folder) == results


def test_an_analysis_that_failed_by_itself_is_not_made_again(tmp_path: Path) -> None:
    made = aftershock.run(suite(GAUSSIAN, BROKEN, analyses=("needs-attack",)), tmp_path / "a", cache=tmp_path / "cache")
    (name,) = (name for name in made.failed if "analysis" in name)
    assert "no attack" in made.failed[name]
    assert not found(made.folder)
