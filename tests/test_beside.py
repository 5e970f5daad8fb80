"""A plain install lives beside current JupyterLab, MLflow, datasets and timm; run by ``tox -e beside``."""

from __future__ import annotations

import importlib.util
import json
from importlib.metadata import version
from pathlib import Path

import pytest
from support.commands import Forks

BESIDE = ("jupyterlab", "mlflow", "datasets", "timm")
ABSENT = [name for name in BESIDE if importlib.util.find_spec(name) is None]
if ABSENT or importlib.util.find_spec("torchattacks") is not None:
    pytest.skip(
        f"needs {', '.join(BESIDE)} and an environment without torchattacks: tox -e beside", allow_module_level=True
    )


def test_each_of_them_is_current_and_so_is_requests() -> None:
    least = {"jupyterlab": (4,), "mlflow": (3,), "datasets": (4,), "timm": (1,), "requests": (2, 32)}
    found = {name: tuple(int(part) for part in version(name).split(".")[:2]) for name in least}
    assert {name: at >= least[name] for name, at in found.items()} == dict.fromkeys(least, True), found


@pytest.mark.slow
def test_quick_runs_without_what_the_extra_would_give(tmp_path: Path, forks: Forks) -> None:
    for command in (["validate", "quick", "--no-models"], ["run", "quick", "--device", "cpu", "--out", "run"]):
        done = forks(*command, cwd=tmp_path, AFTERSHOCK_CACHE=str(tmp_path / "cache"))
        text = " ".join(done.output.split())
        assert done.status == 0, text
        assert text.count("cw is left out: CW needs the package torchattacks, which is not installed") == 1
    facts = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert facts["failures"] == [] and facts["versions"]["torchattacks"] == "absent"


SUITE = """
name = "of-timm"
seeds = [0]
[data]
name = "digits"
fit = 120
calibrate = 200
evaluate = 60
[threat]
norm = "linf"
eps = 0.3
[[models]]
factory = "network.py:make"
label = "resnet"
[[perturbations]]
name = "fgsm"
eps = 0.3
[[detectors]]
name = "msp"
"""
NETWORK = """
import timm

def make():
    return timm.create_model("resnet10t", in_chans=1, num_classes=10).eval()
"""


def test_a_network_of_timm_is_a_model(tmp_path: Path, forks: Forks) -> None:
    (tmp_path / "suite.toml").write_text(SUITE, encoding="utf-8")
    (tmp_path / "network.py").write_text(NETWORK, encoding="utf-8")
    done = forks("validate", "suite.toml", cwd=tmp_path)
    assert done.status == 0, done.output
    assert "is valid" in done.output
