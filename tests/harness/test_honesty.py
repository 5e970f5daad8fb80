"""What a run may not claim: a survived attack that never ran, images that a file lacks, another model's results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.commands import CacheVariable, Forks
from support.suites import Tiny
from support.tables import read_table

PARTS = """
from aftershock.attacks import Perturbation, PerturbationInfo, register
from torch import nn


@register("falls-over")
class FallsOver(Perturbation):
    info = PerturbationInfo(title="falls over", kind="attack", family="x")

    def perturb(self, model, images, labels, draws):
        raise RuntimeError("no")


@register("knows-the-detector")
class Knows(Perturbation):
    info = PerturbationInfo(title="knows", kind="adaptive", family="x")

    def perturb(self, model, images, labels, draws):
        return images


def broken():
    class Broken(nn.Module):
        def forward(self, x):
            return nn.functional.relu(x).flatten(1)[:, :7]

    return Broken()
"""

FGSM = {"name": "fgsm", "eps": 0.3}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honesty")
    (folder / "parts.py").write_text(PARTS)
    return folder


@pytest.fixture(scope="module")
def cache(place: Path) -> CacheVariable:
    return {"AFTERSHOCK_CACHE": str(place / "cache")}


def test_an_attack_that_fell_over_is_not_survived(place: Path, forks: Forks, tiny: Tiny, cache: CacheVariable) -> None:
    tiny(place / "f.toml", [FGSM, {"name": "falls-over"}], [{"name": "msp"}], plugins=["parts.py"])
    assert forks("run", "f.toml", "--out", "fallen", cwd=place, **cache).status == 1
    board = read_table(place / "fallen", "leaderboard.csv")
    assert {r["detector"] for r in board} == {"msp", "none"}
    assert all(r["robust_accuracy_at_fpr_5"] == "" and "falls-over is missing" in r["flags"] for r in board)
    fgsm = [
        r
        for r in read_table(place / "fallen", "metrics.csv")
        if r["perturbation"] == "fgsm" and r["outcome"] == "success"
    ]
    assert any(r["auroc"] for r in fgsm)


def test_the_same_model_under_another_label_and_cap_shares_a_cache(
    place: Path, forks: Forks, tiny: Tiny, cache: CacheVariable
) -> None:
    hamming = {"name": "bitvector", "method": "hamming", "layers": "all"}
    boards = []
    models: list[dict[str, Any]] = [{"label": "a"}, {"label": "b"}, {"label": "c", "bits_per_tap": 8}]
    for number, model in enumerate(models):
        tiny(place / f"l{number}.toml", [FGSM], [hamming, {"name": "msp"}][: number + 1], model=model)
        done = forks("run", f"l{number}.toml", "--out", f"label{number}", cwd=place, **cache)
        assert done.status == 0, done.output
        found = read_table(place / f"label{number}", "metrics.csv")
        boards.append({r["detector"]: r for r in found if r["outcome"] == "success"})
    same, capped = boards[1]["bitvector"], boards[2]["bitvector"]
    assert boards[0]["bitvector"]["auroc"] == same["auroc"] != capped["auroc"]
    digests = [read_table(place / f"label{n}", "leaderboard.csv")[0]["protocol_digest"] for n in range(3)]
    assert digests[0] == digests[1] == digests[2]


def test_images_that_a_file_lacks_do_not_count_as_attacked(
    place: Path, forks: Forks, tiny: Tiny, cache: CacheVariable
) -> None:
    tiny(place / "first.toml", [FGSM], [{"name": "msp"}])
    assert forks("run", "first.toml", "--out", "first", cwd=place, **cache).status == 0
    attacked = [int(r["index"]) for r in read_table(place / "first", "scores.csv.gz") if r["set"] == "perturbed"]
    kept = np.array(attacked[:7])
    np.savez(place / "part.npz", x_adv=np.ones((7, 1, 8, 8), np.float32), index=kept)
    tiny(place / "file.toml", [{"name": "file", "path": "part.npz"}], [{"name": "msp"}])
    done = forks("run", "file.toml", "--out", "file", cwd=place, **cache)
    assert done.status == 0, done.output
    (row,) = read_table(place / "file", "perturbations.csv")
    assert row["n"] == "7"
    assert all(
        f"attacked 7 of {len(attacked)} images" in r["flags"] for r in read_table(place / "file", "leaderboard.csv")
    )


def test_an_adaptive_plugin_is_made_against_every_detector(
    place: Path, forks: Forks, tiny: Tiny, cache: CacheVariable
) -> None:
    detectors = [{"name": "msp"}, {"name": "energy"}]
    tiny(place / "k.toml", [FGSM, {"name": "knows-the-detector"}], detectors, plugins=["parts.py"])
    done = forks("run", "k.toml", "--out", "adaptive", cwd=place, **cache)
    assert done.status == 0, done.output
    made = [row["perturbation"] for row in read_table(place / "adaptive", "perturbations.csv")]
    assert made == ["fgsm", "knows-the-detector@msp", "knows-the-detector@energy"]
    # It changes nothing, so the attack that knows no detector is the better one.
    for row in read_table(place / "adaptive", "leaderboard.csv"):
        assert ("adaptive-weaker-than:fgsm" in row["flags"]) == (row["detector"] != "none")


def test_a_model_that_fails_has_rows_with_the_reason(
    place: Path, forks: Forks, tiny: Tiny, cache: CacheVariable
) -> None:
    suite = tiny(place / "m.toml", [FGSM], [{"name": "msp"}])
    suite.write_text(suite.read_text() + '\n[[models]]\nlabel = "broken"\nfactory = "parts.py:broken"\n')
    assert forks("run", "m.toml", "--out", "models", cwd=place, **cache).status == 1
    rows = {(r["model"], r["detector"]): r for r in read_table(place / "models", "leaderboard.csv")}
    assert rows["mlp", "msp"]["robust_accuracy_at_fpr_5"] != ""
    assert "(n, 10) logits" in rows["broken", "msp"]["flags"]
    assert (place / "models" / "site" / "index.html").is_file()
