"""The plugin kit through the command line: a package that works at once, and detectors that do not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.commands import Forks, Result, quiet_environment
from support.suites import Tiny
from support.tables import read_table

SUITE = """
name = "with-kit"
seeds = [0]
[data]
name = "my-own-dataset"
train = 300
fit = 120
calibrate = 200
evaluate = 60
[threat]
norm = "linf"
eps = 0.3
[[models]]
name = "my-own-model"
weights = "no-such-weights"
train_if_missing = true
epochs = 3
[[perturbations]]
name = "my-own-perturbation"
eps = 0.3
[[detectors]]
name = "my-own-detector"
layers = "last:1"
[[analyses]]
name = "my-own-analysis"
"""
BAD = """
import time
import torch
from aftershock import Detector, DetectorInfo, Need, register_detector as register


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


# What the packages hold, and where `aftershock list` has it.
PACKAGES = {
    "detector": "detectors",
    "perturbation": "perturbations",
    "analysis": "analyses",
    "model": "models",
    "dataset": "datasets",
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """A folder with what `aftershock new` wrote for each kind, and `target` with that installed."""
    folder = tmp_path_factory.mktemp("kit")
    for kind in PACKAGES:
        done = forks("new", kind, f"my-own-{kind}", cwd=folder)
        checked = "my-own-detector" if kind == "detector" else f"{kind} my-own-{kind}"
        assert done.status == 0 and f"aftershock check {checked}" in done.output
        shutil.copytree(folder / f"my-own-{kind}", folder / "sources" / kind)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--target", str(folder / "target")]
    subprocess.run([*command, *map(str, (folder / "sources").iterdir())], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def with_package(package: Path, forks: Forks) -> Callable[..., Result]:
    """Runs a command where what `aftershock new` wrote is installed."""
    path = package / "installed.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(package / 'target')!r})\n")
    paths = os.pathsep.join([str(package / "target"), os.environ.get("PYTHONPATH", "")])
    return partial(forks, cwd=package, before=path, PYTHONPATH=paths, AFTERSHOCK_CACHE=str(package / "cache"))


def test_new_packages_are_listed_with_their_origin(with_package: Callable[..., Result]) -> None:
    for kind, kinds in PACKAGES.items():
        done = with_package("list", kinds, "--json")
        assert done.status == 0, done.output
        (found,) = [item for item in json.loads(done.output) if item["name"] == f"my-own-{kind}"]
        assert found["origin"] == f"my-own-{kind} 0.1.0" and found["available"] and found["summary"]


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_new_package_asks_only_for_what_can_be_installed(package: Path, kind: str) -> None:
    about = tomllib.loads((package / f"my-own-{kind}" / "pyproject.toml").read_text(encoding="utf-8"))
    assert about["project"]["dependencies"] == ["torch"]
    assert about["project"]["entry-points"].keys() == {f"aftershock.{PACKAGES[kind]}"}


def test_new_packages_keep_the_contract_and_their_own_tests_pass(package: Path) -> None:
    # Recommendations that are not followed are warnings.
    folders = [f"my-own-{kind}" for kind in PACKAGES]
    strict = "error::aftershock.harness.conformance.ConformanceWarning"
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", strict, *folders],
        capture_output=True, text=True, cwd=package, timeout=300,
        env=quiet_environment(PYTHONPATH=os.pathsep.join([str(package / "target"), os.environ.get("PYTHONPATH", "")])),
    )  # fmt: skip
    assert tested.returncode == 0 and "passed" in tested.stdout, tested.stdout + tested.stderr


def test_check_takes_a_kind_and_a_name(with_package: Callable[..., Result]) -> None:
    done = with_package("check", "model", "my-own-model", "--json")
    assert done.status == 0, done.output
    assert {f["status"] for f in json.loads(done.output)} <= {"passed", "skipped"}


def test_a_suite_can_name_new_parts_of_every_kind(package: Path, with_package: Callable[..., Result]) -> None:
    (package / "suite.toml").write_text(SUITE)
    done = with_package("run", "suite.toml", "--out", "run")
    assert done.status == 0, done.output
    rows = {r["detector"]: r for r in read_table(package / "run", "leaderboard.csv")}
    row = rows["my-own-detector"]
    assert (row["dataset"], row["model"]) == ("my-own-dataset", "my-own-model")
    assert float(row["worst_auroc"] or 0.5) > 0.3
    (attack,) = read_table(package / "run", "perturbations.csv")
    assert attack["library"] == "my-own-perturbation" and float(attack["success_rate"]) > 0
    assert list((package / "run" / "analyses").iterdir())


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
    forks: Forks, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    done = forks("new", "detector", *arguments, cwd=tmp_path)
    assert done.status == 2
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(done.output)
    assert [p.name for p in tmp_path.rglob("*")] in (["full", "thesis.tex"], ["thesis.tex", "full"])


def test_check_names_what_is_broken_and_how_to_mend_it(forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    done = forks("check", "reversed", "--plugin", "bad.py", cwd=tmp_path)
    assert done.status == 1
    assert "it scores clean images higher" in done.output and "Reverse the sign" in done.output
    assert "lacks paper and summary" in done.output
    sound = forks("check", "sound", "--plugin", "bad.py", "--param", "temperature=2", cwd=tmp_path)
    assert sound.status == 0 and "rules that apply are kept" in sound.output, sound.output
    wrong = forks("check", "sound", "--plugin", "bad.py", "--param", "colour=red", cwd=tmp_path)
    assert wrong.status == 2 and "no parameter 'colour'" in wrong.output
    unclear = forks("check", "sound", "--plugin", "bad.py", "--param", "temperature", cwd=tmp_path)
    assert unclear.status == 2 and "write NAME=VALUE" in unclear.output
    unknown = forks("check", "soud", "--plugin", "bad.py", cwd=tmp_path)
    assert unknown.status == 2 and "did you mean 'sound'" in unknown.output


def test_in_a_run_each_broken_detector_is_a_row_with_its_reason_and_the_rest_goes_on(
    forks: Forks, tiny: Tiny, tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    names = ("far-away", "nan", "lists", "raises", "slow", "sound")
    suite = tiny(tmp_path / "s.toml", [{"name": "fgsm", "eps": 0.3}], [{"name": n} for n in names], plugins=["bad.py"])
    suite.write_text(suite.read_text() + "\n[limits]\nscore_seconds = 0.01\n")
    done = forks("run", "s.toml", "--out", "run", cwd=tmp_path, AFTERSHOCK_CACHE=str(tmp_path / "cache"))
    assert done.status == 1
    rows = {r["detector"]: r for r in read_table(tmp_path / "run", "leaderboard.csv")}
    reasons = {
        "far-away": "meta", "nan": "not finite", "lists": "list", "raises": "no such luck",
        "slow": "raise score_seconds = 0.01 under [limits]",
    }  # fmt: skip
    for name, reason in reasons.items():
        assert rows[name]["rank"] == "" and reason in rows[name]["flags"], rows[name]
    assert rows["sound"]["rank"] == "1" or rows["none"]["rank"] == "1"
    assert rows["sound"]["robust_accuracy_at_fpr_5"]


def test_needs_that_are_none_are_said_before_any_work(forks: Forks, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        BAD + '\n\n@register("words")\nclass Words(Base):\n    info = DetectorInfo(title="x", needs=("bits",))\n\n'
        "    def score(self, traces):\n        return traces.logits.amax(1)\n"
    )
    suite = tiny(tmp_path / "s.toml", [{"name": "fgsm", "eps": 0.3}], [{"name": "words"}], plugins=["bad.py"])
    done = forks("validate", str(suite), cwd=tmp_path)
    assert done.status == 2 and "needs holds 'bits': write Need" in done.output


NETWORK = """
from torch import nn

def make(classes: int = 2):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))

def fixed():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8), nn.ReLU(), nn.Linear(8, 2))

def grey():
    return nn.Sequential(nn.Flatten(), nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
"""


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A model file, and a folder of a few images beside it."""
    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 12)):
        for name in ("cat", "dog"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 255, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / part / name / f"{index}.png")
    (tmp_path / "net.py").write_text(NETWORK)
    return tmp_path


@pytest.mark.parametrize(("function", "size"), [("make", 20), ("fixed", 32)])
def test_a_new_suite_for_a_model_and_images_is_valid(forks: Forks, photographs: Path, function: str, size: int) -> None:
    done = forks("new", "suite", "mine", "--model", f"net.py:{function}", "--images", "images", cwd=photographs)
    assert done.status == 0 and "aftershock run mine.toml" in done.output, done.output
    suite = tomllib.loads((photographs / "mine.toml").read_text(encoding="utf-8"))
    assert suite["data"] == {
        "name": "image-folder", "path": "images", "size": size, "fit": 16, "calibrate": 12, "evaluate": 12,
    }  # fmt: skip
    assert suite["models"] == [{"factory": f"net.py:{function}", "label": function}]
    again = forks("new", "suite", "mine", "--model", f"net.py:{function}", "--images", "images", cwd=photographs)
    assert again.status == 2 and "mine.toml exists" in again.output
    valid = forks("validate", "mine.toml", cwd=photographs)
    assert valid.status == 0 and "mine is valid" in valid.output, valid.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine"], "needs --model"),
        (["mine", "--model", "net.py:mak", "--images", "images"], "did you mean 'make'"),
        (["mine", "--model", "net.py", "--images", "images"], "must look like FILE.py:FUNCTION"),
        (["mine", "--model", "net.py:make", "--images", "photos"], "There is no photos"),
        (["mine", "--model", "net.py:make", "--images", "images/train"], "needs train/<class>/<image>"),
        (["mine", "--model", "net.py:grey", "--images", "images"], "cannot take images of 3 x 20 x 20"),
        (["../mine", "--model", "net.py:make", "--images", "images"], "cannot be a suite's name"),
    ],
)
def test_a_suite_that_cannot_be_written_is_one_sentence(
    forks: Forks, photographs: Path, arguments: list[str], message: str
) -> None:
    done = forks("new", "suite", *arguments, cwd=photographs)
    assert done.status == 2 and message in done.output, done.output
    assert not list(photographs.rglob("*.toml"))


def test_a_kind_that_does_not_exist_is_one_sentence(forks: Forks, tmp_path: Path) -> None:
    done = forks("check", "colour", "red", cwd=tmp_path)
    assert done.status == 2 and "the kinds are detector, perturbation, analysis, model, dataset" in done.output


WRONG = """
from aftershock import Detector, DetectorInfo, register_detector


class Base(Detector):
    info = DetectorInfo(title="one of many", needs=())

    def fit(self, clean, perturbed=None):
        return self

    def score(self, traces):
        return -traces.logits.amax(1)


@register_detector("whole-numbers")
class WholeNumbers(Base):
    def score(self, traces):
        return (-10 * traces.logits.amax(1)).long()


@register_detector("truths")
class Truths(Base):
    def score(self, traces):
        return traces.logits.amax(1) < 3


@register_detector("raises")
class Raises(Base):
    def fit(self, clean, perturbed=None):
        return undefined
"""


def test_check_and_run_agree_about_scores_and_remedies_fit_the_fault(forks: Forks, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    found = {}
    for name in ("whole-numbers", "truths", "raises"):
        done = forks("check", name, "--plugin", "wrong.py", "--json", cwd=tmp_path)
        found[name] = {f["name"]: f for f in json.loads(done.output)}
    assert found["whole-numbers"]["scores"]["status"] == "passed"
    truths, raises = found["truths"]["scores"], found["raises"]["fits"]
    assert truths["status"] == "failed" and "real number" in truths["fix"]
    assert "NameError" in raises["detail"] and "return self" not in raises["fix"] and "--debug" in raises["fix"]
    names = ("whole-numbers", "truths")
    suite = tiny(
        tmp_path / "s.toml", [{"name": "fgsm", "eps": 0.3}], [{"name": n} for n in names], plugins=["wrong.py"]
    )
    forks("run", str(suite), "--out", "run", cwd=tmp_path, AFTERSHOCK_CACHE=str(tmp_path / "cache"))
    rows = {r["detector"]: r for r in read_table(tmp_path / "run", "leaderboard.csv")}
    assert rows["whole-numbers"]["robust_accuracy_at_fpr_5"] and not rows["truths"]["robust_accuracy_at_fpr_5"]
    traceback = forks("--debug", "check", "raises", "--plugin", "wrong.py", cwd=tmp_path)
    assert traceback.status != 0 and "Traceback" in traceback.output and "wrong.py" in traceback.output
