"""Adaptive attacks through the command line: planted detectors that must fall, and one that cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import Forks
from support.suites import Tiny
from support.tables import read_table

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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, forks: Forks, tiny: Tiny) -> Path:
    folder = tmp_path_factory.mktemp("adaptive")
    (folder / "parts.py").write_text(PARTS)
    perturbations = [
        {"name": "pgd", "eps": 0.3},
        # A large budget off the grid: adding exactly 8/16 would stay on it.
        {"name": "adaptive", "eps": [0.05, 0.3], "steps": 10, "queries": 30, "images": 40, "large_eps": 0.53},
    ]
    detectors = [{"name": n} for n in ("energy", "blind", "useless-surrogate", "grid")]
    tiny(folder / "a.toml", perturbations, detectors, plugins=["parts.py"])
    done = forks("run", "a.toml", "--out", "run", cwd=folder, AFTERSHOCK_CACHE=str(folder / "cache"))
    assert done.status == 0, done.output
    return folder / "run"


def undetected(run: Path, perturbation: str, detector: str) -> float:
    (row,) = [
        r for r in read_table(run, "attacks.csv") if (r["perturbation"], r["detector"]) == (perturbation, detector)
    ]
    return float(row["undetected_success_at_fpr_5"])


def test_one_attack_is_made_for_each_detector_and_budget_and_seen_by_all(run: Path) -> None:
    labels = {r["perturbation"] for r in read_table(run, "perturbations.csv") if r["kind"] == "adaptive"}
    detectors = ("energy", "blind", "useless-surrogate", "grid")
    assert labels == {f"adaptive[eps={eps}]@{d}" for eps in ("0.05", "0.3") for d in detectors}
    transfer = [r for r in read_table(run, "attacks.csv") if r["perturbation"] == "adaptive[eps=0.3]@energy"]
    assert {r["detector"] for r in transfer} == {"none", *detectors}
    # Only the first images of the set were attacked, and only those the model gets right.
    assert all(0 < int(r["n"]) <= 40 for r in transfer)


@pytest.mark.parametrize("detector", ["energy", "blind", "useless-surrogate"])
def test_a_weak_detector_falls_with_or_without_a_useful_surrogate(run: Path, detector: str) -> None:
    assert undetected(run, f"adaptive[eps=0.3]@{detector}", detector) >= 0.9
    (row,) = [r for r in read_table(run, "leaderboard.csv") if r["detector"] == detector]
    # Its fall is proof enough, but the attack covers only 40 images, and with fewer steps than the protocol asks for.
    assert row["rank"] == "" and row["not_ranked_reason"] == "below-floor"
    assert row["n_images"] == "40"
    assert float(row["robust_accuracy_at_fpr_5"]) <= 0.15
    assert float(row["adaptive_undetected_at_fpr_5"]) >= 0.9


def test_a_larger_budget_is_no_weaker(run: Path) -> None:
    for detector in ("energy", "blind"):
        small, large = (undetected(run, f"adaptive[eps={eps}]@{detector}", detector) for eps in ("0.05", "0.3"))
        assert small <= large


def test_an_attack_that_never_gets_through_is_flagged_and_its_row_not_ranked(run: Path) -> None:
    (row,) = [r for r in read_table(run, "leaderboard.csv") if r["detector"] == "grid"]
    assert undetected(run, "adaptive[eps=0.3]@grid", "grid") < 0.5
    assert row["rank"] == "" and row["not_ranked_reason"].startswith("adaptive-incomplete")


def test_a_detector_of_rounding_falls_to_images_that_were_saved(run: Path) -> None:
    """It flags what is not on the data's 17 levels, so every image within the threat is also rounded to these."""
    (row,) = [r for r in read_table(run, "leaderboard.csv") if r["detector"] == "grid"]
    assert undetected(run, "pgd", "grid") < 0.2
    assert float(row["robust_accuracy_at_fpr_5"]) <= 0.15
    assert float(row["adaptive_undetected_at_fpr_5"]) >= 0.85


def test_every_turned_image_is_credited_to_a_part(run: Path) -> None:
    rows = [r for r in read_table(run, "attacks.csv") if r["against"] and r["detector"] == "none"]
    credited = {r["perturbation"]: json.loads(r["parts"] or "{}") for r in rows}
    for r in rows:
        assert sum(credited[r["perturbation"]].values()) == round(float(r["success_rate"]) * int(r["n"]))
    # Without a surrogate there is nothing to run PGD on.
    assert set(credited["adaptive[eps=0.3]@blind"]) <= {"margin", "feature-matching", "search"}
    assert "selective" in credited["adaptive[eps=0.3]@energy"]
    assert all(r["parts"] == "" for r in read_table(run, "attacks.csv") if not r["against"])


def test_the_surrogate_that_was_used_is_said(run: Path) -> None:
    kinds = {r["detector"]: r["surrogate"] for r in read_table(run, "leaderboard.csv")}
    assert (kinds["energy"], kinds["blind"], kinds["useless-surrogate"]) == ("exact", "none", "relaxed")


def test_rounding_to_8_bits_hardly_matters_to_large_perturbations(run: Path) -> None:
    (row,) = [r for r in read_table(run, "attacks.csv") if (r["perturbation"], r["detector"]) == ("pgd", "energy")]
    assert abs(float(row["success_rate"]) - float(row["success_rate_8bit"])) <= 0.1
    # An attack against another detector is a transfer, whose rounding nobody asked for.
    transfer = [r for r in read_table(run, "attacks.csv") if r["against"] not in ("", r["detector"])]
    assert transfer and all(r["success_rate_8bit"] == "" for r in transfer)


def test_what_a_limit_on_forwards_ended_is_a_result_with_a_flag(
    tmp_path: Path, forks: Forks, tiny: Tiny, run: Path
) -> None:
    suite = tiny(tmp_path / "l.toml", [{"name": "pgd", "eps": 0.3, "steps": 10}], [{"name": "msp"}])
    suite.write_text(suite.read_text() + "\n[limits]\nforwards = 5\n")
    cache = str(run.parent / "cache-of-limits")
    done = forks("run", "l.toml", "--out", "run", cwd=tmp_path, AFTERSHOCK_CACHE=cache)
    assert done.status == 0, done.output
    (row,) = read_table(tmp_path / "run", "perturbations.csv")
    # PGD keeps what it found to itself: the clean images stand in.
    assert (row["reason"], row["success_rate"], row["max_linf"]) == ("", "0", "0")
    assert "limit" in row["flags"].split("; ") and float(row["forwards_per_image"]) <= 5
    board = {r["detector"]: r for r in read_table(tmp_path / "run", "leaderboard.csv")}
    assert "limit" in board["none"]["flags"] and board["none"]["robust_accuracy_is_upper_bound"] == "1"


NO_GRADIENT = """
import torch
from sklearn.datasets import load_digits
from torch import nn


class Nearest(nn.Module):
    # The nearest of ten means, of images that are rounded to bytes first.
    def __init__(self):
        super().__init__()
        x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
        means = torch.stack([x[y == k].mean(0) for k in range(10)]).float() / 16
        self.register_buffer("weight", 2 * means.T)
        self.register_buffer("bias", -means.square().sum(1))

    def forward(self, images):
        # Images are not negative: the tap changes nothing.
        seen = torch.relu((images * 255).to(torch.uint8).float() / 255)
        return seen.flatten(1) @ self.weight + self.bias


def nearest():
    return Nearest()
"""


def test_a_model_without_a_gradient_is_attacked_by_asking_it(tmp_path: Path, forks: Forks, tiny: Tiny) -> None:
    (tmp_path / "parts.py").write_text(NO_GRADIENT)
    perturbations = [
        {"name": "pgd", "eps": 0.3}, {"name": "square", "eps": 0.3, "queries": 60},
        {"name": "adaptive", "eps": 0.3, "steps": 2, "restarts": 1, "queries": 60, "images": 60},
    ]  # fmt: skip
    suite = tiny(tmp_path / "n.toml", perturbations, [{"name": "energy"}], price_images=4)
    model = '[[models]]\nname = "mlp"\nepochs = 3\nwidth = 32'
    assert model in suite.read_text()
    given = '[[models]]\nfactory = "parts.py:nearest"\nlabel = "nearest"\nnormalise = false'
    suite.write_text(suite.read_text().replace(model, given))
    done = forks("run", "n.toml", "--out", "run", cwd=tmp_path, AFTERSHOCK_CACHE=str(tmp_path / "cache"))
    assert done.status == 0, done.output
    made = {r["perturbation"]: r for r in read_table(tmp_path / "run", "perturbations.csv")}
    sentence = "the model gives no gradient with respect to its input"
    assert sentence in made["pgd"]["reason"] and "square" in made["pgd"]["reason"]
    for name in ("square", "adaptive@energy"):
        assert (made[name]["reason"], int(made[name]["n"]) > 30) == ("", True)
        assert float(made[name]["success_rate"]) > 0.3
    board = {r["detector"]: r for r in read_table(tmp_path / "run", "leaderboard.csv")}
    assert board.keys() == {"energy", "none"}
    for row in board.values():
        assert row["rank"] == "" and "black-box-only" in row["not_ranked_reason"].split("; ")
        # What the others found counts, and can only be too little.
        assert row["robust_accuracy_at_fpr_5"] != "" and "pgd" not in row["flags"]
        # Without a gradient there is no search for the smallest perturbation, which needs no further flag.
        assert row["price"] == "" and "ladder-unchecked" not in row["flags"]


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
        assert model.target.threshold < 1e9
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


def test_what_a_plugin_may_leave_out_and_what_fit_is_told(tmp_path: Path, forks: Forks, tiny: Tiny) -> None:
    (tmp_path / "plugins.py").write_text(PLUGINS)
    perturbations = [{"name": "pgd", "eps": 0.3}, {"name": "mute", "eps": 0.3}]
    detectors = [{"name": "origins", "fit_on": ["pgd"]}]
    tiny(tmp_path / "a.toml", perturbations, detectors, plugins=["plugins.py"])
    done = forks("run", "a.toml", "--out", "run", cwd=tmp_path, AFTERSHOCK_CACHE=str(tmp_path / "cache"))
    assert done.status == 0, done.output
    (row,) = [
        r for r in read_table(tmp_path / "run", "attacks.csv") if (r["group"], r["detector"]) == ("mute", "origins")
    ]
    assert int(row["n"]) > 20 and row["undetected_success_at_fpr_5"] != "" and row["parts"] in ("", "{}")


def test_feature_matching_attacks_a_detector_whose_surrogate_takes_gradients(
    tmp_path: Path, forks: Forks, tiny: Tiny
) -> None:
    """Its aims are the features of clean images, which need no surrogate and no graph."""
    attacks = [{"name": "feature-matching", "eps": 0.3, "steps": 3, "images": 20}]
    tiny(tmp_path / "a.toml", attacks, [{"name": "odin"}])
    only = ("--only", "perturb/feature-matching")
    done = forks("run", "a.toml", "--out", "run", *only, cwd=tmp_path, AFTERSHOCK_CACHE=str(tmp_path / "cache"))
    assert done.status == 0, done.output
    (row,) = [
        r for r in read_table(tmp_path / "run", "perturbations.csv") if r["perturbation"] == "feature-matching@odin"
    ]
    assert row["reason"] == "" and 0 < int(row["n"]) <= 20


def test_false_alarms_are_searched_for_with_and_without_a_surrogate_and_in_the_processes_of_plugins(run: Path) -> None:
    rows = {r["detector"]: r for r in read_table(run, "leaderboard.csv")}
    found = {name: float(row["false_alarm_at_quarter_eps"]) for name, row in rows.items()}
    assert found["none"] == 0.0
    # One score in three forms: none hides that small changes are flagged.
    assert found["energy"] > 0.1
    assert min(found["blind"], found["useless-surrogate"]) > found["energy"] / 2
    curves: dict[str, list[dict[str, str]]] = {}
    for row in read_table(run, "rejection_curve.csv"):
        curves.setdefault(row["detector"], []).append(row)
    assert curves.keys() == rows.keys()
    for name, curve in curves.items():
        shares = [float(row["share"]) for row in curve]
        assert shares[0] == pytest.approx(float(rows[name]["robust_accuracy_at_fpr_5"]), abs=1e-5)
        assert shares == sorted(shares, reverse=True)
        assert all(float(row["low"]) <= share <= float(row["high"]) for row, share in zip(curve, shares, strict=True))


def test_one_image_is_looked_for_that_passes_all_detectors_those_of_plugins_too(run: Path) -> None:
    (row,) = read_table(run, "past_all.csv")
    assert (row["measure"], row["detectors"], row["reason"]) == ("passes-all", "4", "")
    # What gets past all of them gets past the one that hardly anything gets past.
    assert float(row["share"]) <= 0.5 and 0 < int(row["n"]) <= 40
