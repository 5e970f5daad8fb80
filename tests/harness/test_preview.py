"""What a run is said to take before it runs, and what it then does."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from aftershock import run
from aftershock.harness.cli.main import app
from aftershock.harness.core.errors import UsageError
from aftershock.harness.run.events import Event
from aftershock.harness.run.preview import preview
from support.suites import Tiny
from typer.testing import CliRunner

ATTACKS = [{"name": "fgsm", "eps": 0.3}, {"name": "gaussian", "std": 0.1}]
DETECTORS = [{"name": "msp"}, {"name": "mahalanobis"}]


def test_a_plan_names_the_cells_that_the_run_computes(tmp_path: Path, tiny: Tiny) -> None:
    tiny(tmp_path / "a.toml", ATTACKS, DETECTORS)
    out, cache = tmp_path / "run", tmp_path / "cache"
    before = preview(tmp_path / "a.toml", out, cache=cache)
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache" / "cells").exists()
    assert {cell.state for cell in before.cells} == {"to compute"}
    assert {cell.basis for cell in before.cells} == {"typical"}
    assert 0 < before.low <= before.seconds <= before.high and before.memory > 0 and before.disk > 0

    events: list[Event] = []
    made = run(tmp_path / "a.toml", out, cache=cache, on_progress=events.append)
    assert not made.failed
    assert {cell.name for cell in before.cells} == {str(e.cell.name) for e in events if e.kind == "done"}

    after = preview(tmp_path / "a.toml", out, cache=cache)
    assert {cell.state for cell in after.cells} == {"in the run"}
    assert after.seconds < before.seconds
    command = ["plan", str(tmp_path / "a.toml"), "--out", str(out), "--cache", str(cache)]
    shown = CliRunner().invoke(app, command).stdout
    assert ": 0 to compute" in shown and "passes" not in shown
    # Another run takes over what the cache has, and knows how long the rest took here.
    again = preview(tmp_path / "a.toml", tmp_path / "other", cache=cache, limit=None)
    assert {"in the cache"} <= {cell.state for cell in again.cells} <= {"in the cache", "to compute"}
    (tmp_path / "new").mkdir()
    (tmp_path / "cache" / "rates.json").rename(tmp_path / "new" / "rates.json")
    known = preview(tmp_path / "a.toml", tmp_path / "other", cache=tmp_path / "new")
    assert {cell.basis for cell in known.cells} == {"measured"}
    with (tmp_path / "run" / "tables" / "timings.csv").open(newline="", encoding="utf-8") as stream:
        spent = sum(float(row["seconds"]) for row in csv.DictReader(stream))
    assert sum(cell.seconds for cell in known.cells) == pytest.approx(spent, rel=0.01)


def test_a_plan_knows_which_cells_only_means_and_whose_they_are(tmp_path: Path, tiny: Tiny) -> None:
    tiny(tmp_path / "a.toml", ATTACKS, DETECTORS)
    whole = preview(tmp_path / "a.toml", tmp_path / "run", cache=tmp_path / "cache")
    part = preview(tmp_path / "a.toml", tmp_path / "run", cache=tmp_path / "cache", only="/score/msp")
    assert 0 < len(part.cells) < len(whole.cells)
    assert {cell.detector for cell in part.cells} == {"", "msp"}
    assert {cell.name for cell in part.cells} <= {cell.name for cell in whole.cells}
    with pytest.raises(UsageError, match="matches no cell"):
        preview(tmp_path / "a.toml", tmp_path / "run", cache=tmp_path / "cache", only="nothing")
    fewer = preview(tmp_path / "a.toml", tmp_path / "run", cache=tmp_path / "cache", limit=20)
    assert set(fewer.images.values()) == {20}
    assert sum(cell.passes for cell in fewer.cells) < sum(cell.passes for cell in whole.cells)


def test_two_workers_take_less_time_and_more_memory(tmp_path: Path, tiny: Tiny) -> None:
    tiny(tmp_path / "a.toml", ATTACKS, DETECTORS)
    one, two = (
        preview(tmp_path / "a.toml", tmp_path / "run", cache=tmp_path / "cache", workers=workers) for workers in (1, 2)
    )
    assert two.seconds < one.seconds and two.memory > one.memory


def test_the_command_shows_a_plan_as_text_and_as_data(tmp_path: Path, tiny: Tiny) -> None:
    tiny(tmp_path / "a.toml", ATTACKS, DETECTORS)
    command = ["plan", str(tmp_path / "a.toml"), "--out", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    shown, data = CliRunner().invoke(app, command), CliRunner().invoke(app, [*command, "--json"])
    assert (shown.exit_code, data.exit_code) == (0, 0)
    value = json.loads(data.stdout)
    kinds = {cell["kind"] for cell in value["cells"]}
    lines = shown.stdout.splitlines()
    assert kinds <= {line.split()[0] for line in lines if line}
    assert any(line.startswith(f"Cells:  {len(value['cells'])}: ") for line in lines)
    assert value["cells"][0]["name"] in {cell["name"] for cell in value["cells"]}
