"""Adaptive attacks through the command line: planted detectors that must fall, and one that cannot."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

PARTS = """
import torch
from aftershock.detectors import Detector, DetectorInfo, View, register


@register("blind")
class Blind(Detector):
    # A weak score (how small the logits are) behind no gradient at all.
    info = DetectorInfo(title="energy without a surrogate", needs=())

    def fit(self, clean, perturbed=None):
        return self

    def score(self, traces):
        return -traces.logits.double().logsumexp(1)


@register("useless-surrogate")
class Useless(Blind):
    info = DetectorInfo(title="a surrogate that leads nowhere", needs=(), surrogate="relaxed")

    def surrogate(self, live):
        return 0 * live.logits.sum(1)


@register("grid")
class Grid(Detector):
    # The digits have 17 grey levels; whatever an attack adds leaves that grid, and no gradient leads back to it.
    info = DetectorInfo(title="off the grid", needs=())

    @property
    def views(self):
        return (View("grid", lambda images, generator: (images * 16).round() / 16),)

    def fit(self, clean, perturbed=None):
        return self

    def score(self, traces):
        return (traces.logits - traces.view("grid").logits).abs().amax(1).double()
"""


def table(run: Path, name: str) -> list[dict[str, str]]:
    with (run / "tables" / f"{name}.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, forks: Callable, tiny: Callable) -> Path:
    folder = tmp_path_factory.mktemp("adaptive")
    (folder / "parts.py").write_text(PARTS)
    perturbations = [
        {"name": "pgd", "eps": 0.3},
        # A large budget off the grid: adding exactly 8/16 would stay on it.
        {"name": "adaptive", "eps": [0.05, 0.3], "steps": 15, "queries": 60, "images": 40, "large_eps": 0.47},
    ]
    detectors = [{"name": n} for n in ("energy", "blind", "useless-surrogate", "grid")]
    tiny(folder / "a.toml", perturbations, detectors, plugins=["parts.py"])
    done = forks("run", "a.toml", "--out", "run", cwd=folder, AFTERSHOCK_CACHE=str(folder / "cache"))
    assert done.status == 0, done.output
    return folder / "run"


def undetected(run: Path, perturbation: str, detector: str) -> float:
    (row,) = [r for r in table(run, "attacks") if (r["perturbation"], r["detector"]) == (perturbation, detector)]
    return float(row["undetected_success_at_fpr_5"])


def test_one_attack_is_made_for_each_detector_and_budget_and_seen_by_all(run: Path) -> None:
    labels = {r["perturbation"] for r in table(run, "perturbations") if r["kind"] == "adaptive"}
    detectors = ("energy", "blind", "useless-surrogate", "grid")
    assert labels == {f"adaptive[eps={eps}]@{d}" for eps in ("0.05", "0.3") for d in detectors}
    transfer = [r for r in table(run, "attacks") if r["perturbation"] == "adaptive[eps=0.3]@energy"]
    assert {r["detector"] for r in transfer} == {"none", *detectors}
    # Only the first images of the set were attacked, and only those the model gets right.
    assert all(0 < int(r["n"]) <= 40 for r in transfer)


@pytest.mark.parametrize("detector", ["energy", "blind", "useless-surrogate"])
def test_a_weak_detector_falls_with_or_without_a_useful_surrogate(run: Path, detector: str) -> None:
    assert undetected(run, f"adaptive[eps=0.3]@{detector}", detector) >= 0.9
    (row,) = [r for r in table(run, "leaderboard") if r["detector"] == detector]
    assert row["rank"] != "" and "adaptive-incomplete" not in row["flags"]
    assert float(row["robust_accuracy_at_fpr_5"]) <= 0.15
    assert float(row["adaptive_undetected_at_fpr_5"]) >= 0.9


def test_a_larger_budget_is_no_weaker(run: Path) -> None:
    for detector in ("energy", "blind"):
        small, large = (undetected(run, f"adaptive[eps={eps}]@{detector}", detector) for eps in ("0.05", "0.3"))
        assert small <= large


def test_an_attack_that_never_gets_through_is_flagged_and_its_row_not_ranked(run: Path) -> None:
    (row,) = [r for r in table(run, "leaderboard") if r["detector"] == "grid"]
    assert undetected(run, "adaptive[eps=0.3]@grid", "grid") < 0.5
    assert row["rank"] == "" and "adaptive-incomplete" in row["flags"]
    ranked = [r["detector"] for r in table(run, "leaderboard") if r["rank"]]
    assert set(ranked) == {"energy", "blind", "useless-surrogate", "none"}


def test_every_turned_image_is_credited_to_a_part(run: Path) -> None:
    rows = [r for r in table(run, "attacks") if r["against"] and r["detector"] == "none"]
    credited = {r["perturbation"]: json.loads(r["parts"] or "{}") for r in rows}
    for r in rows:
        assert sum(credited[r["perturbation"]].values()) == round(float(r["success_rate"]) * int(r["n"]))
    # Without a surrogate there is nothing to run PGD on.
    assert set(credited["adaptive[eps=0.3]@blind"]) <= {"start", "feature-matching", "search"}
    assert "selective" in credited["adaptive[eps=0.3]@energy"]
    assert all(r["parts"] == "" for r in table(run, "attacks") if not r["against"])


def test_the_surrogate_that_was_used_is_said(run: Path) -> None:
    kinds = {r["detector"]: r["surrogate"] for r in table(run, "leaderboard")}
    assert (kinds["energy"], kinds["blind"], kinds["useless-surrogate"]) == ("exact", "none", "relaxed")


def test_rounding_to_8_bits_hardly_matters_to_large_perturbations(run: Path) -> None:
    (row,) = [r for r in table(run, "attacks") if (r["perturbation"], r["detector"]) == ("pgd", "energy")]
    assert abs(float(row["success_rate"]) - float(row["success_rate_8bit"])) <= 0.1
    # An attack against another detector is a transfer, whose rounding nobody asked for.
    transfer = [r for r in table(run, "attacks") if r["against"] not in ("", r["detector"])]
    assert transfer and all(r["success_rate_8bit"] == "" for r in transfer)


def test_a_limit_on_forwards_is_a_failure_with_its_reason(
    tmp_path: Path, forks: Callable, tiny: Callable, run: Path
) -> None:
    suite = tiny(tmp_path / "l.toml", [{"name": "pgd", "eps": 0.3, "steps": 10}], [{"name": "msp"}])
    suite.write_text(suite.read_text() + "\n[limits]\nforwards = 5\n")
    cache = str(run.parent / "cache-of-limits")
    done = forks("run", "l.toml", "--out", "run", cwd=tmp_path, AFTERSHOCK_CACHE=cache)
    assert done.status == 1
    (row,) = table(tmp_path / "run", "perturbations")
    assert "stopped after 5 forwards per image" in row["reason"]


PLUGINS = """
import torch
from aftershock.attacks import Perturbation, PerturbationInfo
from aftershock.attacks import register as perturbation
from aftershock.detectors import Detector, DetectorInfo, register


@perturbation("mute")
class Mute(Perturbation):
    # Knows its detector's threshold, and does not say which of its parts made what.
    info = PerturbationInfo(title="one signed step", kind="adaptive", family="mute", norm="linf")

    def __init__(self, eps: float):
        self.eps = eps

    def perturb(self, model, images, labels, draws):
        assert model.defence.threshold < 1e9
        x = images.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(x), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        return (images + self.eps * gradient.sign()).clamp(0, 1)


@register("origins")
class Origins(Detector):
    # Learns nothing, but insists on what the harness says about where fit images come from.
    info = DetectorInfo(title="checks sources", needs=(), supervised=True)

    def fit(self, clean, perturbed=None):
        truth = dict(zip(clean.sources.tolist(), clean.labels.tolist(), strict=True))
        noisy = len(clean.sources) - len(truth)
        made = perturbed.sources.tolist()
        if noisy < 0 or len(set(made)) != len(made) or not set(made) <= set(truth):
            raise ValueError("sources are not positions of clean fit images")
        turned = [truth[s] != p for s, p in zip(made, perturbed.predictions.tolist(), strict=True)]
        if not turned or not all(turned):
            raise ValueError("a success that is put down to another image")
        if perturbed[1:3].sources.tolist() != made[1:3]:
            raise ValueError("a part of traces has other sources")
        return self

    def score(self, traces):
        if traces.sources is not None:
            raise ValueError("score() may not know where an image comes from")
        return -traces.logits.double().logsumexp(1)
"""


def test_what_a_plugin_may_leave_out_and_what_fit_is_told(tmp_path: Path, forks: Callable, tiny: Callable) -> None:
    (tmp_path / "plugins.py").write_text(PLUGINS)
    perturbations = [{"name": "pgd", "eps": 0.3}, {"name": "mute", "eps": 0.3}]
    detectors = [{"name": "origins", "fit_on": ["pgd"]}]
    tiny(tmp_path / "a.toml", perturbations, detectors, plugins=["plugins.py"])
    done = forks("run", "a.toml", "--out", "run", cwd=tmp_path, AFTERSHOCK_CACHE=str(tmp_path / "cache"))
    assert done.status == 0, done.output
    (row,) = [r for r in table(tmp_path / "run", "attacks") if (r["group"], r["detector"]) == ("mute", "origins")]
    assert int(row["n"]) > 20 and row["undetected_success_at_fpr_5"] != "" and row["parts"] in ("", "{}")
