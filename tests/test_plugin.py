"""Plugins as people have them: a package that pip installs, found by its entry points, and one that is broken."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.registry import REGISTRIES
from aftershock.harness.core.seeds import Draws
from aftershock.harness.tracing.traces import LiveTrace, Need, TapInfo, Traces
from support.tables import read_csv

SOURCE = Path(__file__).parent / "plugin_example"
SUITE = """
name = "with-plugin"
seeds = [0]

[data]
name = "digits"
fit = 120
calibrate = 200
evaluate = 60

[threat]
norm = "linf"
eps = 0.2

[[models]]
name = "mlp"
epochs = 3

[[perturbations]]
name = "fgsm"
eps = 0.2

[[perturbations]]
name = "salt-and-pepper"
share = "1/20"

[[detectors]]
name = "activation-norm"
layers = "last:1"
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example as pip installs it, built from a copy: building leaves files beside the sources."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(
        SOURCE, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    )
    target = folder / "target"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """An installed distribution with three entry points, whose module cannot be imported."""
    target = tmp_path / "broken"
    about = target / "aftershock_broken-2.0.dist-info"
    about.mkdir(parents=True)
    (target / "aftershock_broken.py").write_text("import a_library_that_is_not_there\n")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: aftershock-broken\nVersion: 2.0\n")
    (about / "entry_points.txt").write_text(
        "[aftershock.detectors]\nlost = aftershock_broken:Lost\nlost-too = aftershock_broken:LostToo\n"
        "[aftershock.perturbations]\nlost = aftershock_broken:Noise\n"
    )
    return target


def aftershock(arguments: Sequence[str], folders: Sequence[Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command line in a process that also sees what is installed in ``folders``."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AFTERSHOCK_")}
    paths = [*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "AFTERSHOCK_CACHE": str(cwd / "cache")}
    command = [sys.executable, "-m", "aftershock.harness.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300)


@pytest.mark.parametrize(("kind", "name"), [("detectors", "activation-norm"), ("perturbations", "salt-and-pepper")])
def test_an_installed_plugin_is_listed_with_its_origin(installed: Path, tmp_path: Path, kind: str, name: str) -> None:
    done = aftershock(["list", kind, "--json"], [installed], tmp_path)
    assert done.returncode == 0, done.stderr
    (found,) = [item for item in json.loads(done.stdout) if item["name"] == name]
    assert found["origin"] == "aftershock-example 0.1.0"
    assert found["available"] and not found["reason"]
    assert found["summary"]
    assert not done.stderr
    assert name not in REGISTRIES[kind].builtins


def test_a_suite_that_names_an_installed_plugin_runs_to_the_end(installed: Path, broken: Path, tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text(SUITE)
    done = aftershock(["run", "suite.toml", "--out", "out"], [installed, broken], tmp_path)
    assert done.returncode == 0, done.stderr
    tables = tmp_path / "out" / "tables"
    board = {row["detector"]: row for row in read_csv(tables / "leaderboard.csv")}
    assert set(board) == {"none", "activation-norm"}
    assert board["activation-norm"]["surrogate"] == "exact"
    assert 0 <= float(board["activation-norm"]["robust_accuracy_at_fpr_5"]) <= 1
    assert "activation-norm" in done.stdout

    noise = next(row for row in read_csv(tables / "perturbations.csv") if row["perturbation"] == "salt-and-pepper")
    assert (noise["kind"], noise["library"]) == ("noise", "aftershock-example")
    # 64 pixels, of which a twentieth is drawn; pixels that are black already do not change.
    assert 0 < float(noise["mean_l0"]) < 2 * 64 / 20
    assert {row["detector"] for row in read_csv(tables / "metrics.csv")} >= {"activation-norm"}

    again = aftershock(["run", "suite.toml", "--out", "out"], [installed, broken], tmp_path)
    assert again.returncode == 0 and "Nothing was missing." in again.stdout


def test_a_broken_plugin_is_one_warning_and_the_rest_goes_on(installed: Path, broken: Path, tmp_path: Path) -> None:
    done = aftershock(["list", "detectors", "--json"], [broken, installed], tmp_path)
    assert done.returncode == 0, done.stderr
    names = {item["name"] for item in json.loads(done.stdout)}
    assert {"activation-norm", "bitvector", "msp"} <= names
    assert not {"lost", "lost-too"} & names
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("Warning: ")
    for part in ("aftershock-broken 2.0", "a_library_that_is_not_there", "detectors"):
        assert part in warning


def test_naming_a_part_of_a_broken_plugin_says_why_it_is_missing(broken: Path, tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text(SUITE.replace("activation-norm", "lost").replace("salt-and-pepper", "uniform"))
    done = aftershock(["validate", "suite.toml"], [broken], tmp_path)
    assert done.returncode == 2
    assert "a_library_that_is_not_there" in done.stderr
    assert "'lost'" in done.stderr and "aftershock-broken 2.0" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def example(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(installed))
    yield importlib.import_module("aftershock_example")
    sys.modules.pop("aftershock_example", None)


def traces_of(values: dict[str, torch.Tensor], needs: tuple[Need, ...]) -> Traces:
    taps = tuple(TapInfo(name, "relu", tuple(v.shape[1:])) for name, v in values.items())
    pooled = {name: v.flatten(2).mean(2) for name, v in values.items()}
    return Traces(torch.zeros(len(next(iter(values.values()))), 3), taps, {"pooled:mean": pooled}, needs)


def test_the_examples_detector_is_the_distance_to_the_clean_mean(example: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> dict[str, torch.Tensor]:
        return {
            "a": torch.rand(n, 5, 3, 3, generator=generator),
            "b": 100 * torch.rand(n, 7, 2, 2, generator=generator),
        }

    detector = example.ActivationNorm()
    clean, other = draw(600), draw(9)
    detector.fit(traces_of(clean, detector.needs))

    expected = np.zeros(9)
    for tap in ("a", "b"):
        train = clean[tap].double().numpy().mean((2, 3))
        test = other[tap].double().numpy().mean((2, 3))
        mean = train.mean(0)
        distance = np.linalg.norm(test - mean, axis=1)
        expected += distance / np.linalg.norm(train - mean, axis=1).mean() / 2
    # Stored traces are float32: their pooling rounds at about 1e-7 of the activations.
    np.testing.assert_allclose(detector.score(traces_of(other, detector.needs)).numpy(), expected, rtol=1e-5)

    same = example.ActivationNorm()
    same.load_state(detector.state())
    parts = [same.score(part) for part in traces_of(other, detector.needs).batches(4)]
    whole = detector.score(traces_of(other, detector.needs))
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=0)

    live = LiveTrace(
        torch.zeros(9, 1, 2, 2), torch.zeros(9, 3), traces_of(other, ()).taps, other, other, detector.needs
    )
    torch.testing.assert_close(detector.surrogate(live), whole, rtol=1e-6, atol=0)


def test_the_examples_detector_refuses_to_score_unfitted(example: ModuleType) -> None:
    with pytest.raises(UsageError, match="not fitted"):
        example.ActivationNorm().score(traces_of({"a": torch.zeros(2, 1, 1, 1)}, (Need("pooled"),)))


def test_the_examples_noise_turns_whole_pixels_black_or_white(example: ModuleType) -> None:
    images = torch.full((4, 3, 50, 50), 0.5)
    changed = example.SaltAndPepper(0.2).perturb(None, images, torch.zeros(4), Draws(1, range(4)))
    pixels = changed.transpose(0, 1).flatten(1)
    assert bool((pixels == pixels[0]).all())
    counts = {value: int((pixels[0] == value).sum()) for value in (0.0, 0.5, 1.0)}
    assert sum(counts.values()) == 10_000
    # Binomial with p = 0.1: five standard deviations are 150 of 10,000.
    assert abs(counts[0.0] - 1000) < 150 and abs(counts[1.0] - 1000) < 150
    with pytest.raises(UsageError, match="share"):
        example.SaltAndPepper(0)
