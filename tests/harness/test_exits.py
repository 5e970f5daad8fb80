"""Exit status 0 only if a run was made: what ends the program while a suite is checked is one sentence and status 2.

More ways, and others than exits, are in ``tests/hostile``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.commands import Forks, Result
from support.suites import Tiny

PARTS = """
import sys
from aftershock.attacks.base.perturbation import Perturbation, PerturbationInfo
from aftershock.attacks import register as perturbation
from aftershock.detectors import Detector, DetectorInfo, register
from aftershock.harness.core.registry import DATASETS


class Base(Detector):
    info = DetectorInfo(title="x", needs=())

    def fit(self, clean, perturbed=None):
        return self

    def score(self, traces):
        return traces.logits.amax(1)


@register("constructor")
class Constructor(Base):
    def __init__(self):
        sys.exit(0)


@register("needs")
class Needs(Base):
    @property
    def needs(self):
        raise KeyboardInterrupt


@register("second-time")
class SecondTime(Base):
    made = 0

    def __init__(self):
        SecondTime.made += 1
        if SecondTime.made > 1:
            sys.exit(0)


@perturbation("stops")
class Stops(Perturbation):
    info = PerturbationInfo(title="stops", kind="noise", family="stops", gradients=False)

    def __init__(self, eps=None):
        raise GeneratorExit("no more")

    def perturb(self, model, images, labels, draws):
        return images


@DATASETS.register("no-data")
def no_data(root):
    from aftershock.harness.data.types import DataSource

    def load():
        sys.exit(0)

    return DataSource("no-data", (), load, {})


def no_network(classes):
    sys.exit(0)
"""
FGSM = {"name": "fgsm", "eps": 0.3}
Entries = Sequence[Mapping[str, Any]]


@pytest.fixture
def command(tmp_path: Path, tiny: Tiny, forks: Forks) -> Callable[..., Result]:
    (tmp_path / "parts.py").write_text(PARTS)

    def run(
        what: str, attacks: Entries = (FGSM,), detectors: Entries = ({"name": "msp"},),
        plugins: Sequence[str] = ("parts.py",), **more: Any,
    ) -> Result:  # fmt: skip
        suite = tiny(tmp_path / "s.toml", attacks, detectors, plugins=list(plugins), **more)
        arguments = ("--out", "run") if what == "run" else ()
        return forks(what, suite.name, *arguments, cwd=tmp_path, AFTERSHOCK_CACHE=str(tmp_path / "cache"))

    return run


@pytest.mark.parametrize(
    ("what", "part", "reason"),
    [
        ("validate", "constructor", "sys.exit(0)"), ("run", "needs", "KeyboardInterrupt"),
        ("validate", "stops", "GeneratorExit"),
    ],
)  # fmt: skip
def test_a_part_that_ends_the_program_when_it_is_made(
    command: Callable[..., Result], what: str, part: str, reason: str
) -> None:
    entry = {"name": part}
    done = command(what, (FGSM, entry)) if part == "stops" else command(what, detectors=(entry,))
    assert done.status == 2 and reason in done.output and f"'{part}'" in done.output
    assert "s.toml:" in done.output and "Traceback" not in done.output


def test_a_file_that_ends_the_program_when_it_is_imported(command: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text("raise KeyboardInterrupt\n")
    done = command("run", plugins=["ends.py"])
    assert done.status == 2 and "ends.py could not be loaded" in done.output and "Traceback" not in done.output


def test_what_ends_the_program_while_the_run_is_planned(command: Callable[..., Result]) -> None:
    for done in (command("run", data={"name": "no-data"}), command("run", detectors=({"name": "second-time"},))):
        assert done.status == 2 and "sys.exit(0)" in done.output and "Traceback" not in done.output


def test_a_factory_that_ends_the_program_costs_its_models_cells(forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text(PARTS)
    suite = "name = 'tiny'\n[data]\nname = 'digits'\nfit = 20\ncalibrate = 20\nevaluate = 20\n"
    suite += "[threat]\nnorm = 'linf'\neps = 0.3\n[[models]]\nfactory = 'parts.py:no_network'\n"
    suite += "[[perturbations]]\nname = 'gaussian'\nstd = 0.5\n[[detectors]]\nname = 'msp'\n"
    (tmp_path / "own.toml").write_text(suite)
    done = forks("run", "own.toml", "--out", "run", cwd=tmp_path, AFTERSHOCK_CACHE=str(tmp_path / "cache"))
    assert done.status == 1 and "sys.exit(0)" in done.output and (tmp_path / "run" / "run.json").is_file()


def test_budgets_are_numbers_whatever_a_constructor_says(command: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "budgets.py").write_text(
        "from aftershock.attacks import Perturbation, PerturbationInfo, register\n\n\n"
        "class Base(Perturbation):\n"
        "    info = PerturbationInfo(title='x', kind='attack', family='x', norm='linf', gradients=False)\n\n"
        "    def __init__(self, eps):\n        self.eps = eps\n\n"
        "    def perturb(self, model, images, labels, draws):\n        return (images + self.eps).clamp(0, 1)\n\n\n"
        "@register('converted')\nclass Converted(Base):\n    pass\n\n\n"
        "@register('wordy')\nclass Wordy(Base):\n    def __init__(self, eps):\n        self.eps = f'{eps}'\n\n\n"
        "@register('no-norm')\nclass NoNorm(Base):\n    norm = 'max'\n"
    )
    for name, told in (("wordy", "eps = '0.03"), ("no-norm", "norm = 'max'")):
        done = command("validate", ({"name": name, "eps": "8/255"},), plugins=["budgets.py"])
        assert done.status == 2 and told in done.output
    for eps in ("8/255", ["8/255", 0.1]):
        done = command("validate", ({"name": "converted", "eps": eps},), plugins=["budgets.py"])
        assert done.status == 0, done.output
