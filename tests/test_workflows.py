"""The workflows are YAML, run commands that exist, and pin what they use where distributions are made."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from aftershock.harness.cli import main as cli

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
if not WORKFLOWS:
    pytest.skip("the workflows are in the repository, not in the source distribution", allow_module_level=True)


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return found


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in jobs(path).values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_jobs_with_steps(path: Path) -> None:
    assert all(job["timeout-minutes"] and job["runs-on"] for job in jobs(path).values())
    assert all(("uses" in step) != ("run" in step) for step in steps(path))
    whole = yaml.safe_load(path.read_text(encoding="utf-8"))
    # YAML 1.1 reads the key `on` as true.
    assert whole["permissions"] == {"contents": "read"} and whole[True]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_environments_of_tox_exist(path: Path) -> None:
    tox = (ROOT / "tox.ini").read_text(encoding="utf-8")
    defined = {*re.findall(r"^\[testenv:(\S+)\]", tox, re.MULTILINE), "tests"}
    for job in jobs(path).values():
        assert {*job.get("strategy", {}).get("matrix", {}).get("env", ())} <= defined


PACKAGE = ROOT / ".github" / "workflows" / "package.yml"


def test_the_package_workflow_pins_every_action_by_its_commit() -> None:
    used = re.findall(r"uses: (\S+)(.*)", PACKAGE.read_text(encoding="utf-8"))
    assert used
    for action, comment in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action


def test_the_commands_of_the_package_workflow_exist() -> None:
    words = [shlex.split(step["run"]) for step in steps(PACKAGE) if "run" in step]
    ours = [line[1:] for line in words if line[0].endswith("/aftershock")]
    assert [line[0] for line in ours] == ["--version", "list", "validate", "run", "show", "report"]
    for line in ours[1:]:
        command: Any = typer.main.get_command(cli.app)
        # Raises for an unknown option or a wrong value.
        command.commands[line[0]].make_context(line[0], line[1:])


def test_the_package_is_tried_on_every_python_that_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tried = jobs(PACKAGE)["install"]["strategy"]["matrix"]["python"]
    assert f">={tried[0]}" == project["requires-python"]
    assert tried == ["3.11", "3.12", "3.13", "3.14"]
    built = next(s for s in jobs(PACKAGE)["build"]["steps"] if "setup-python" in s.get("uses", ""))
    assert built["with"]["python-version"] == tried[0]
