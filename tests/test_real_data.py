"""The spine on real data: CIFAR-10 with the published ResNet-20, a few images, through the real command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from aftershock.harness.cli.scaffold import new_package

WEIGHTS = "weights/cifar10-resnet20-12fca82f.th"

# A user's own file: the architecture comes from the library here, but the harness only sees a function.
FACTORY = """
from aftershock.harness.models.architectures import resnet20

def mine():
    return resnet20((3, 32, 32), 10)
"""

SUITE = """
name = "real"

[data]
name = "cifar10"
fit = 64
calibrate = 200
evaluate = 64

[threat]
norm = "linf"
eps = "8/255"

[[models]]
name = "resnet20"
weights = "{weights}"
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]

[[models]]
label = "user-side"
factory = "mine.py:mine"
weights = "{weights}"
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]

[[perturbations]]
name = "pgd"
eps = "8/255"
steps = 5

[[detectors]]
name = "bitvector"
method = "hamming"

[[detectors]]
name = "msp"
"""


@pytest.mark.realdata
def test_cifar10_resnet20_by_name_and_by_a_users_factory(real_data: Path, tmp_path: Path) -> None:
    if not (real_data / WEIGHTS).is_file() or not (real_data / "cifar-10-batches-py").is_dir():
        pytest.skip(f"needs CIFAR-10 and {WEIGHTS} under AFTERSHOCK_DATA")
    (tmp_path / "mine.py").write_text(FACTORY)
    (tmp_path / "real.toml").write_text(SUITE.format(weights=WEIGHTS))
    done = subprocess.run(
        [sys.executable, "-m", "aftershock.harness.cli.main", "run", "real.toml", "--out", "run"],
        cwd=tmp_path, env={**os.environ, "AFTERSHOCK_CACHE": str(tmp_path / "cache")}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    models = json.loads((tmp_path / "run" / "run.json").read_text())["models"]
    # 9,173 of 10,000; one image more or less is rounding of another processor.
    assert [m["clean_accuracy"] for m in models] == pytest.approx([0.9173, 0.9173], abs=2e-4)
    attacked = pd.read_csv(tmp_path / "run" / "tables" / "perturbations.csv")
    assert (attacked["success_rate"] > 0.9).all()
    assert (attacked["max_linf"] <= 8 / 255 + 1e-6).all()
    scores = pd.read_csv(tmp_path / "run" / "tables" / "scores.csv.gz")
    ours, theirs = (
        scores[scores["model"] == m].drop(columns="model").reset_index(drop=True) for m in ("resnet20", "user-side")
    )
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-5)


@pytest.mark.realdata
def test_the_plan_of_the_afternoon_is_what_its_page_says(real_data: Path, tmp_path: Path) -> None:
    page = Path(__file__).parents[1] / "docs" / "afternoon.md"
    if not page.is_file() or not (real_data / WEIGHTS).is_file() or not (real_data / "cifar-10-batches-py").is_dir():
        pytest.skip(f"needs the pages, and CIFAR-10 and {WEIGHTS} under AFTERSHOCK_DATA")
    text = page.read_text(encoding="utf-8")
    (suite,) = (
        found for found in re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) if "[data]" in found
    )
    package, _ = new_package("detector", "my-detector", tmp_path / "my-detector")
    (tmp_path / "afternoon.toml").write_text(suite, encoding="utf-8")
    # An empty cache, so that the times are the typical ones; nothing is computed.
    done = subprocess.run(
        [sys.executable, "-m", "aftershock", "plan", "afternoon.toml", "--json", "--cache", "cache", "--device", "cpu",
         "--workers", "1", "--plugin", str(package / "my_detector.py")],
        cwd=tmp_path, env={**os.environ, "AFTERSHOCK_DATA": str(real_data)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    said = re.search(r"(\d+) cells, by typical costs about\s(\d+) minutes .*?, (\d+) MiB", text, re.DOTALL)
    assert said is not None
    cells, minutes, disk = (int(number) for number in said.groups())
    assert len(found["cells"]) == cells
    assert 60 * minutes == pytest.approx(found["seconds"], rel=0.2) and 30 <= minutes <= 60
    assert disk * 2**20 == pytest.approx(found["disk"], rel=0.1)
