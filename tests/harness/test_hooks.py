"""Hooks of installed distributions are told what happens in a run, and can neither change nor hold it up."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aftershock
import pytest
from aftershock.harness.run.hooks import installed_hooks, telling

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "json_lines.py"

OTHERS = """
import os, sys, time
from aftershock import Hook

class Raises(Hook):
    def cell_finished(self, facts):
        raise RuntimeError("no disk")

class Hangs(Hook):
    def run_started(self, facts):
        time.sleep(600)

class Ends(Hook):
    def __init__(self):
        os._exit(7)

class Chatty(Hook):
    def run_started(self, facts):
        print("x" * 10_000_000)
        sys.stderr.write("y" * 10_000_000)
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs a distribution with hooks: name to ``module:class``."""

    def install(**hooks: str) -> None:
        site = tmp_path / "site"
        about = site / "hooks_example-1.0.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: hooks-example\nVersion: 1.0\n")
        lines = "\n".join(f"{name} = {target}" for name, target in hooks.items())
        (about / "entry_points.txt").write_text(f"[aftershock.hooks]\n{lines}\n")
        shutil.copy(EXAMPLE, site / "json_lines.py")
        (site / "others.py").write_text(OTHERS)
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")
        monkeypatch.setenv("RUN_LOG", str(tmp_path / "log.jsonl"))

    return install


def told(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_example_logs_a_run_from_start_to_end(tmp_path: Path, tiny: Any, installed: Callable[..., None]) -> None:
    installed(log="json_lines:JsonLines")
    suite = tiny(tmp_path / "t.toml", perturbations=[{"name": "fgsm", "eps": 0.2}], detectors=[{"name": "msp"}])
    run = aftershock.run(suite, out=tmp_path / "run", cache=tmp_path / "cache")
    lines = told(tmp_path)
    assert [line["what"] for line in lines] == ["started", "row", "row", "finished"]
    assert lines[0]["seeds"] == [0] and Path(lines[0]["folder"]) == run.folder
    assert {line["detector"] for line in lines if line["what"] == "row"} == {"msp", "none"}
    assert lines[-1]["status"] == "done" and lines[-1]["computed"] == run.computed
    # Nothing is told of a run in which nothing was missing: nothing happened.
    aftershock.run(suite, out=tmp_path / "run", cache=tmp_path / "cache")
    assert told(tmp_path) == lines


def test_a_hook_that_raises_ends_hangs_or_writes_without_end_is_left_out_by_name(
    tmp_path: Path, installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(raises="others:Raises", hangs="others:Hangs", ends="others:Ends", chatty="others:Chatty",
              missing="others:Missing", log="json_lines:JsonLines")  # fmt: skip
    monkeypatch.setattr(telling, "_PATIENCE", 8.0)
    said: list[str] = []
    start = time.monotonic()
    with installed_hooks(said.append) as hooks:
        assert hooks
        hooks.tell("run_started", {"suite": "a"})
        for number in range(1000):
            hooks.tell("cell_finished", {"cell": str(number), "status": "failed"})
        hooks.tell("run_finished", {"when": object()})
        # Telling never waits.
        assert time.monotonic() - start < 5
    by_name = {text.split("'")[1]: text for text in said}
    assert by_name.keys() == {"raises", "hangs", "ends", "missing"}
    assert "no disk" in by_name["raises"]
    assert "did not end within" in by_name["hangs"]
    assert "status 7" in by_name["ends"]
    # The one that works was told everything.
    assert [line["what"] for line in told(tmp_path)] == ["started", *["failed"] * 1000, "finished"]


def test_a_hook_that_falls_far_behind_is_left_out(
    tmp_path: Path, installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(hangs="others:Hangs")
    monkeypatch.setattr(telling, "_BEHIND", 50)
    monkeypatch.setattr(telling, "_PATIENCE", 0.2)
    said: list[str] = []
    with installed_hooks(said.append) as hooks:
        for number in range(100_000):
            hooks.tell("run_started", {"number": number, "filler": "x" * 1000})
    assert said == ["The hook 'hangs' is left out: it is 50 events behind."]


def test_two_distributions_may_use_one_name(
    tmp_path: Path, installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(log="json_lines:JsonLines")
    twin = tmp_path / "site" / "other_example-1.0.dist-info"
    twin.mkdir()
    (twin / "METADATA").write_text("Metadata-Version: 2.1\nName: other-example\nVersion: 1.0\n")
    (twin / "entry_points.txt").write_text("[aftershock.hooks]\nlog = twin:Twin\n")
    (tmp_path / "site" / "twin.py").write_text(
        "from json_lines import JsonLines\n\n\nclass Twin(JsonLines):\n    pass\n"
    )
    said: list[str] = []
    with installed_hooks(said.append) as hooks:
        hooks.tell("run_started", {"suite": "a"})
    assert said == []
    assert [line["what"] for line in told(tmp_path)] == ["started", "started"]


def test_without_hooks_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "entry_points", lambda group: ())
    with installed_hooks(lambda text: pytest.fail(text)) as hooks:
        assert not hooks
        hooks.tell("run_started", {"anything": object()})
