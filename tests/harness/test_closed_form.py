"""A control that should stand: a linear model with a linear detector, whose robust accuracy is arithmetic.

Sixteen pixels, two classes. The model reads fourteen of them, of which a small budget is enough to move it; the other
two, which it does not read, tell the classes apart as well. The detector flags images in which the fourteen say more
than the two. Against most images of the common class this cannot be got round within the budget, and which images
these are is known one by one (:func:`support.linear_truth.most_gain`). The whole command must find exactly these.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from support.commands import CacheVariable, Forks
from support.linear_truth import most_gain
from support.suites import table
from support.tables import read_table

NETWORK = """
import torch
from torch import nn

READ = torch.tensor([1.0, -1, 1, -1, -1, 0, 0, 1, 1, -1, 1, -1, -1, 1, -1, 1])


def make():
    # Pixels are not negative, so that the activation leaves them alone and the detector sees them.
    network = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(16, 2))
    network[2].weight.data = torch.stack([-READ, READ]) / 2
    network[2].bias.data = torch.zeros(2)
    return network
"""
DETECTING = """
import torch
from aftershock import Detector, DetectorInfo, Need, register_detector

WEIGHT = torch.tensor([1.0, -1, 1, -1, -1, 1.05, -1.05, 1, 1, -1, 1, -1, -1, 1, -1, 1], dtype=torch.float64)


@register_detector("disagreement")
class Disagreement(Detector):
    info = DetectorInfo(title="Disagreement of two linear scores", needs=(Need("full"),), surrogate="exact")

    def fit(self, clean, perturbed=None):
        return self

    def score(self, traces):
        return traces.full(traces.tap_names()[0]).double() @ WEIGHT

    def surrogate(self, live):
        pixels = live.full(live.tap_names()[0]).double()
        return pixels @ WEIGHT.to(pixels.device)
"""
MODEL = np.array([1.0, -1, 1, -1, -1, 0, 0, 1, 1, -1, 1, -1, -1, 1, -1, 1])
OTHER = np.eye(16)[5] - np.eye(16)[6]
DETECTOR = MODEL + 1.05 * OTHER
EVALUATE = 150

Norm = Literal["linf", "l2"]


def images(count: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Three images of class 0 to one of class 1, far enough from black and white that no attack meets them."""
    draw = np.random.default_rng(seed)
    labels = (np.arange(count) % 4 == 0).astype(np.int64)
    side = np.where(labels == 0, -1.0, 1.0)[:, None]
    pixels = 0.5 + side * (0.03 * MODEL - 0.2 * OTHER)
    pixels += draw.uniform(-1, 1, pixels.shape) * np.where(OTHER, 0.1, 0.05)
    return np.rint(255 * pixels).astype(np.uint8).reshape(-1, 4, 4), labels


def write_suite(folder: Path, norm: Norm, eps: float) -> None:
    """Write a suite with the detector and the least attack of a ranked row."""
    (train, of_train), (test, of_test) = images(200, 1), images(600, 2)
    np.savez(folder / "data.npz", x_train=train, y_train=of_train, x_test=test, y_test=of_test)
    (folder / "network.py").write_text(NETWORK, encoding="utf-8")
    (folder / "detecting.py").write_text(DETECTING, encoding="utf-8")
    adaptive = {"name": "adaptive", "eps": eps, "norm": norm, "steps": 50, "queries": 100, "restarts": 2}
    parts = [
        table("", {"name": "linear", "seeds": [0], "plugins": ["detecting.py"]}),
        table("[data]", {"name": "npz", "path": "data.npz", "fit": 40, "calibrate": 200, "evaluate": EVALUATE}),
        table("[threat]", {"norm": norm, "eps": eps}),
        table("[[models]]", {"label": "linear", "factory": "network.py:make", "normalise": False}),
        table("[[perturbations]]", {"name": "pgd", "eps": eps, "norm": norm, "steps": 10}),
        table("[[perturbations]]", {**adaptive, "images": EVALUATE}),
        table("[[detectors]]", {"name": "disagreement"}),
    ]
    (folder / "suite.toml").write_text("\n".join(parts), encoding="utf-8")


def slack(x: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], threshold: float, eps: float, norm: Norm) -> Any:
    """By how much the best attack gets beyond the boundary, (n,), as a share of what the budget can do."""
    side, reach = np.where(labels == 0, 1.0, -1.0), eps * np.linalg.norm(MODEL, 1 if norm == "linf" else 2)
    leads, room = -side * (x @ MODEL), threshold - x @ DETECTOR
    gains = [most_gain(s * MODEL, DETECTOR, c, eps, norm) for s, c in zip(side, room, strict=True)]
    assert (leads > 0).all()
    return (np.array(gains) - leads) / reach


@pytest.mark.skipif(
    not os.environ.get("AFTERSHOCK_HOSTILE"), reason="set AFTERSHOCK_HOSTILE to run the closed-form control (a minute)"
)
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.04), ("l2", 0.15)])
def test_a_board_has_the_robust_accuracy_that_arithmetic_gives(
    tmp_path: Path, forks: Forks, norm: Norm, eps: float
) -> None:
    write_suite(tmp_path, norm, eps)
    cache: CacheVariable = {"AFTERSHOCK_CACHE": str(tmp_path / "cache")}
    done = forks("run", "suite.toml", "--out", "run", "--data", ".", cwd=tmp_path, **cache)
    assert done.status == 0, done.output
    board = {row["detector"]: row for row in read_table(tmp_path / "run", "leaderboard.csv")}
    scores = [r for r in read_table(tmp_path / "run", "scores.csv.gz") if r["detector"] == "disagreement"]

    test, labels = images(600, 2)
    pixels = test.reshape(len(test), -1) / 255
    calibrate = [int(r["index"]) for r in scores if r["set"] == "calibrate"]
    threshold = np.sort(pixels[calibrate] @ DETECTOR)[-int(0.05 * (len(calibrate) + 1))]
    rows = [int(r["index"]) for r in scores if r["set"] == "clean"]
    assert (len(calibrate), len(rows), board["disagreement"]["n_images"]) == (200, EVALUATE, str(EVALUATE))
    passing = pixels[rows] @ DETECTOR <= threshold
    room = slack(pixels[rows], labels[rows], threshold, eps, norm)

    lost = {
        int(r["index"])
        for r in scores
        if r["set"] in ("perturbed", "rounded-8-bit", "rounded-levels") and r["success"] == "1"
        if float(r["score"]) <= threshold + 1e-9
    }
    stands = np.array([row not in lost for row in rows])
    # No attack beats the truth, and this one is within a fiftieth of what the budget can do.
    assert stands[room < -1e-4].all()
    assert not stands[(room > 0.02) & passing].any()
    robust = float(board["disagreement"]["robust_accuracy_at_fpr_5"])
    assert robust == pytest.approx((stands & passing).mean(), abs=1e-5)
    truth, unsure = ((room < 0) & passing).mean(), (np.abs(room) < 0.02).mean()
    assert truth - 1e-5 <= robust <= truth + unsure + 1e-5 and unsure < 0.15

    # Without a detector an image stands whose lead no change within the budget makes up for.
    reach = eps * np.linalg.norm(MODEL, 1 if norm == "linf" else 2)
    alone, at_most = ((np.abs(pixels[rows] @ MODEL) > share * reach).mean() for share in (1 + 1e-4, 0.97))
    assert alone - 1e-5 <= float(board["none"]["robust_accuracy_at_fpr_5"]) <= at_most + 1e-5
    assert truth > alone + 0.25
    ranked = {name: (row["rank"], row["not_ranked_reason"]) for name, row in board.items()}
    assert ranked["disagreement"] == ("1", "") and int(ranked["none"][0]) > 1, ranked
