"""The plugin kit through the command line: a package that works at once, and detectors that do not."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

SUITE = """
name = "with-kit"
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
name = "mlp"
epochs = 3
[[perturbations]]
name = "fgsm"
eps = 0.3
[[detectors]]
name = "my-own-detector"
layers = "last:1"
"""
BAD = """
import time
import torch
from aftershock.detectors import Detector, DetectorInfo, Need, register


class Base(Detector):
    info = DetectorInfo(title="one of many", needs=())

    def fit(self, clean, perturbed=None):
        return self


@register("reversed")
class Reversed(Base):
    def score(self, traces):
        return traces.logits.double().logsumexp(1)


@register("sound")
class Sound(Base):
    info = DetectorInfo(title="energy", paper="none", summary="minus the log-sum-exp", needs=())

    def __init__(self, temperature: float = 1.0):
        self.temperature = temperature

    def score(self, traces):
        return -self.temperature * (traces.logits.double() / self.temperature).logsumexp(1)


@register("slow")
class Slow(Base):
    def score(self, traces):
        # CPU seconds count: on a busy machine, waiting is nobody's fault.
        end = time.process_time() + 0.05 * len(traces)
        while time.process_time() < end:
            pass
        return -traces.logits.double().logsumexp(1)


@register("far-away")
class FarAway(Base):
    def score(self, traces):
        return torch.empty(len(traces), device="meta")


@register("nan")
class Nan(Base):
    def score(self, traces):
        return torch.full((len(traces),), torch.nan)


@register("lists")
class Lists(Base):
    def score(self, traces):
        return [0.0] * len(traces)


@register("raises")
class Raises(Base):
    def fit(self, clean, perturbed=None):
        raise RuntimeError("no such luck")

    def score(self, traces):
        return traces.logits.amax(1)
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, shell: Callable) -> Path:
    """A folder with what `aftershock new` wrote, and `target` with that installed."""
    folder = tmp_path_factory.mktemp("kit")
    done = shell("new", "detector", "my-own-detector", cwd=folder)
    assert done.status == 0 and "aftershock check my-own-detector" in done.output
    source = shutil.copytree(folder / "my-own-detector", folder / "source")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--target", str(folder / "target"), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def with_package(package: Path, command: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(package / "target"), os.environ.get("PYTHONPATH", "")]),
        "AFTERSHOCK_CACHE": str(package / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "200",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, cwd=cwd, env=environment, timeout=300
    )


def test_the_new_package_is_listed_with_its_origin(package: Path) -> None:
    done = with_package(package, ["aftershock.harness.cli.main", "list", "detectors", "--json"], package)
    (found,) = [item for item in json.loads(done.stdout) if item["name"] == "my-own-detector"]
    assert found["origin"] == "my-own-detector 0.1.0" and found["available"] and found["surrogate"] == "exact"


def test_the_new_package_keeps_the_contract_and_its_own_test_passes(package: Path) -> None:
    done = with_package(package, ["aftershock.harness.cli.main", "check", "my-own-detector", "--json"], package)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {f["status"] for f in json.loads(done.stdout)} <= {"passed", "skipped"}
    tested = with_package(package, ["pytest", "-q", "-p", "no:cacheprovider", "my-own-detector"], package)
    assert tested.returncode == 0 and "passed" in tested.stdout, tested.stdout + tested.stderr


def test_a_suite_can_name_the_new_detector(package: Path) -> None:
    (package / "suite.toml").write_text(SUITE)
    done = with_package(package, ["aftershock.harness.cli.main", "run", "suite.toml", "--out", "run"], package)
    assert done.returncode == 0, done.stdout + done.stderr
    with (package / "run" / "tables" / "leaderboard.csv").open(newline="") as stream:
        rows = {r["detector"]: r for r in csv.DictReader(stream)}
    assert float(rows["my-own-detector"]["worst_auroc"] or 0.5) > 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["My Detector"], "cannot be a detector's name"),
        (["-x"], "No such option|cannot be"),
        (["class"], "cannot be the name of a package"),
        (["aftershock"], "cannot be the name of a package"),
        (["../up"], "cannot be a detector's name"),
        (["mahalanobis"], "There is a detector 'mahalanobis' already"),
        (["fresh", "--out", "full"], "exists and is not an empty folder"),
    ],
)
def test_names_and_places_that_cannot_be_are_one_sentence(
    forks: Callable, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    done = forks("new", "detector", *arguments, cwd=tmp_path)
    assert done.status == 2
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(done.output)
    assert [p.name for p in tmp_path.rglob("*")] in (["full", "thesis.tex"], ["thesis.tex", "full"])


def test_check_names_what_is_broken_and_how_to_mend_it(forks: Callable, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    done = forks("check", "reversed", "--plugin", "bad.py", cwd=tmp_path)
    assert done.status == 1
    assert "it scores clean images higher" in done.output and "Turn the sign" in done.output
    assert "says nothing about paper and summary" in done.output
    sound = forks("check", "sound", "--plugin", "bad.py", "--param", "temperature=2", cwd=tmp_path)
    assert sound.status == 0 and "rules that apply are kept" in sound.output, sound.output
    wrong = forks("check", "sound", "--plugin", "bad.py", "--param", "colour=red", cwd=tmp_path)
    assert wrong.status == 2 and "no parameter 'colour'" in wrong.output
    unclear = forks("check", "sound", "--plugin", "bad.py", "--param", "temperature", cwd=tmp_path)
    assert unclear.status == 2 and "write NAME=VALUE" in unclear.output
    unknown = forks("check", "soud", "--plugin", "bad.py", cwd=tmp_path)
    assert unknown.status == 2 and "did you mean 'sound'" in unknown.output


def test_in_a_run_each_broken_detector_is_a_row_with_its_reason_and_the_rest_goes_on(
    forks: Callable, tiny: Callable, tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    names = ("far-away", "nan", "lists", "raises", "slow", "sound")
    suite = tiny(tmp_path / "s.toml", [{"name": "fgsm", "eps": 0.3}], [{"name": n} for n in names], plugins=["bad.py"])
    suite.write_text(suite.read_text() + "\n[limits]\nscore_seconds = 0.01\n")
    done = forks("run", "s.toml", "--out", "run", cwd=tmp_path, AFTERSHOCK_CACHE=str(tmp_path / "cache"))
    assert done.status == 1
    with (tmp_path / "run" / "tables" / "leaderboard.csv").open(newline="") as stream:
        rows = {r["detector"]: r for r in csv.DictReader(stream)}
    reasons = {
        "far-away": "meta", "nan": "not finite", "lists": "list", "raises": "no such luck",
        "slow": "raise score_seconds = 0.01 under [limits]",
    }  # fmt: skip
    for name, reason in reasons.items():
        assert rows[name]["rank"] == "" and reason in rows[name]["flags"], rows[name]
    assert rows["sound"]["rank"] == "1" or rows["none"]["rank"] == "1"
    assert rows["sound"]["robust_accuracy_at_fpr_5"]


def test_needs_that_are_none_are_said_before_any_work(forks: Callable, tiny: Callable, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        BAD + '\n\n@register("words")\nclass Words(Base):\n    info = DetectorInfo(title="x", needs=("bits",))\n\n'
        "    def score(self, traces):\n        return traces.logits.amax(1)\n"
    )
    suite = tiny(tmp_path / "s.toml", [{"name": "fgsm", "eps": 0.3}], [{"name": "words"}], plugins=["bad.py"])
    done = forks("validate", str(suite), cwd=tmp_path)
    assert done.status == 2 and "needs holds 'bits': write Need" in done.output
