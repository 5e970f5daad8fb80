"""The Python examples of the pages run, parts among them keep their contract, and commands print what pages show."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import aftershock
import pytest
import torch
from aftershock import check_part
from aftershock.harness.core.registry import REGISTRIES, PartKind

DOCS = Path(__file__).parents[1] / "docs"
if not DOCS.is_dir():
    pytest.skip("the pages are in the repository, not in the source distribution", allow_module_level=True)
EXAMPLES = DOCS / "examples"


@pytest.fixture(autouse=True)
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Examples run in a folder of their own; what they register is unknown before, and again afterwards."""
    kept = [(registry, dict(registry._entries)) for registry in REGISTRIES.values()]
    for registry, entries in kept:
        for name, entry in entries.items():
            if entry.origin.package in ("session", "file"):
                del registry._entries[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AFTERSHOCK_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(EXAMPLES)
    yield
    for registry, entries in kept:
        registry._entries.clear()
        registry._entries.update(entries)
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


def executed(name: str) -> dict[str, Any]:
    """What an example defines."""
    space: dict[str, Any] = {"__name__": name}
    exec(compile((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"), name, "exec", dont_inherit=True), space)
    return space


@pytest.mark.parametrize(
    ("example", "kind", "name", "only"),
    [
        ("quiet_units", "detector", "quiet-units", ("info", "fits", "scores", "batches", "surrogate")),
        ("quiet", "detector", "quiet", ("info", "fits", "scores", "batches")),
        ("towards_grey", "perturbation", "towards-grey", None),
        ("salt", "perturbation", "salt", None),
        ("two_layers", "model", "two-layers", None),
        ("silence", "analysis", "silence", None),
    ],
)
def test_parts_keep_the_contract(example: str, kind: PartKind, name: str, only: Sequence[str] | None) -> None:
    executed(example)
    findings = check_part(kind, name, only=only)
    assert not [str(f) for f in findings if f.status == "failed"]
    assert "passed" in {f.status for f in findings}


def test_the_data_set_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    monkeypatch.setenv("AFTERSHOCK_DATA", str(tmp_path))
    random = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 30)):
        images = random.integers(0, 256, (count, 3, 6, 6), dtype=np.uint8)
        np.savez(tmp_path / f"{part}.npz", images=images, labels=np.arange(count) % 2)
    executed("two_files")
    for grey in (False, True):
        failed = [str(f) for f in check_part("dataset", "two-files", {"grey": grey}) if f.status == "failed"]
        assert not failed


def test_arrays_are_evaluated() -> None:
    run = executed("arrays")["run"]
    board = run.leaderboard.set_index("detector")
    assert set(board.index) == {"none", "energy", "mahalanobis"} and not run.failed
    assert set(run.perturbations["perturbation"]) == {"pgd", "darker"}


def test_a_notebook_runs_a_suite_with_its_own_detector(capsys: pytest.CaptureFixture[str]) -> None:
    run = executed("notebook")["run"]
    assert list(run.leaderboard["detector"]) == ["none", "energy", "quiet-units"] and not run.failed
    # Nothing is printed but rules that are broken.
    assert not re.search(r"\bfailed\b", capsys.readouterr().out)


SUITE = """
name = "my-suite"
[data]
name = "digits"
fit = 200
calibrate = 200
evaluate = 40
[threat]
norm = "linf"
eps = 0.2
[[models]]
name = "cnn"
epochs = 1
[[perturbations]]
name = "fgsm"
eps = 0.2
[[detectors]]
name = "latent"
latent = 3
"""


def test_a_suite_runs_and_its_latent_space_is_shown(tmp_path: Path, forks: Callable[..., Any]) -> None:
    (tmp_path / "my-suite.toml").write_text(SUITE, encoding="utf-8")
    assert "latent" in set(executed("run_suite")["run"].leaderboard["detector"])
    export = ("guard", "export", "runs/my-suite", "--detector", "latent", "--out", "latent.safetensors")
    assert forks(*export, cwd=tmp_path).status == 0
    found = executed("positions")
    assert found["points"].shape == (len(found["classes"]), 3)
    assert found["guard"].positions(found["images"]).shape == (8, 3)


def test_a_guard_raises_the_alarm(tmp_path: Path, quick_run: Path, forks: Callable[..., Any]) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quick").symlink_to(quick_run)
    (line,) = (line for line in page("guard.md").splitlines() if line.startswith("aftershock guard export runs/quick"))
    done = forks(*line.split()[1:], cwd=tmp_path)
    assert done.status == 0 and done.output.strip() in page("guard.md")
    found = executed("live")
    guard, images = found["guard"], found["images"]
    assert not found["alarm"].any() and guard(1 - images).alarm.all()
    # What it refuses, in the words of the page.
    other = aftershock.load_model(quick_run, "cnn")
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    for refused in (lambda: guard(2 * images), lambda: aftershock.Guard.load("mahalanobis.safetensors", other)):
        with pytest.raises(aftershock.UsageError) as caught:
            refused()
        assert f"UsageError: {caught.value}" in " ".join(page("guard.md").split())


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("transcripts", DOCS / "tools" / "transcripts.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="the record is of a machine without a GPU")
def test_commands_print_what_the_pages_show(tool: ModuleType, tmp_path: Path, forks: Callable[..., Any]) -> None:
    made = tool.transcripts(
        lambda arguments, cwd: forks(*arguments, cwd=cwd, COLUMNS=tool.WIDTH, AFTERSHOCK_CACHE=os.devnull).output,
        tmp_path,
    )
    recorded = {path.stem: path.read_text(encoding="utf-8") for path in tool.FIGURES.glob("*.txt")}
    assert made.keys() == recorded.keys()
    # Figures differ from machine to machine.
    figures = {name: re.sub(r"\d+\.\d+", "#", text) for name, text in made.items()}
    expected = {name: re.sub(r"\d+\.\d+", "#", text) for name, text in recorded.items()}
    assert figures == expected, "run: python docs/tools/transcripts.py, then docs/tools/tables.py"


def test_every_command_of_the_page_of_answers_works(
    tmp_path: Path, quick_run: Path, forks: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    for name in ("quick", "other"):
        (tmp_path / "runs" / name).symlink_to(quick_run)
    lines = [line for text in re.findall(r"^```sh\n(.*?)^```", page("answers.md"), re.DOTALL | re.MULTILINE)
             for line in text.splitlines()]  # fmt: skip
    assert len(lines) >= 14 and {line.split()[1] for line in lines} == {"show", "compare", "export"}
    for line in lines:
        said = forks(*shlex.split(line)[1:], cwd=tmp_path)
        assert said.status == 0, f"{line}\n{said.output}"
    found = executed("answers")
    assert len(found["found"]) == 16 and found["curve"].auroc > 0.5
    assert "madry2018" in capsys.readouterr().out
