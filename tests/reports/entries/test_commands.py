"""``entry``, ``submit`` and ``verify`` as a person calls them, on a real run."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from aftershock.harness.cli.main import app
from aftershock.harness.core.files import is_file
from aftershock.reports.entries.from_run import threat_of
from aftershock.reports.entries.schema import Metrics, read_entry
from aftershock.reports.entries.verify import verify
from aftershock.reports.read.run_directory import Row, Run
from typer.testing import CliRunner


def call(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == status, (result.output, result.exception)
    return result.output


@pytest.fixture(scope="module")
def entries(quick_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("entries")
    call("entry", quick_run, "--by", "Jane Doe", "--out", folder)
    return folder


def board(run: Path) -> dict[str, dict[str, str]]:
    with (run / "tables" / "leaderboard.csv").open(newline="", encoding="utf-8") as file:
        return {row["detector"]: row for row in csv.DictReader(file)}


def test_every_row_of_a_run_becomes_an_entry_with_the_numbers_of_its_table(quick_run: Path, entries: Path) -> None:
    rows = board(quick_run)
    found = {e.detector: e for e in map(read_entry, entries.glob("*.json"))}
    assert found.keys() == rows.keys()
    assert len(rows) == 4
    for name, entry in found.items():
        stated = entry.metrics.model_dump()
        for column in Metrics.model_fields:
            cell = rows[name][column]
            assert (stated[column] is None) == (cell == ""), (name, column)
            if cell:
                assert stated[column] == pytest.approx(float(cell), rel=1e-5), (name, column)
        assert entry.claims.flags == rows[name]["flags"]
        assert entry.protocol.digest == rows[name]["protocol_digest"]
        assert entry.protocol.series == rows[name]["series_digest"]
    assert "agrees with its table" in call("verify", entries)


def test_what_does_not_agree_is_named_and_is_exit_status_1(entries: Path, tmp_path: Path) -> None:
    path = next(p for p in entries.glob("*.json") if "mahalanobis" in p.name)
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    assert "There is no table" in call("verify", tmp_path, status=1)
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    said = call("verify", tmp_path, status=1)
    assert "broken.json is not valid JSON" in said


def test_submitted_entries_lie_by_data_set_and_model(quick_run: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "board" / "entries"
    checkout.mkdir(parents=True)
    call("submit", quick_run, "--to", checkout, "--by", "Jane Doe", "--detector", "mahalanobis")
    found = sorted(checkout.rglob("*.json"))
    assert [p.parent for p in found] == [checkout / "digits" / "cnn"] * 2
    assert sorted(verify(p, checkout).entry.detector for p in found) == ["mahalanobis", "none"]
    # The same again changes nothing; it is another contributor's without the same name.
    call("submit", quick_run, "--to", checkout, "--by", "Jane Doe", "--detector", "mahalanobis")
    assert sorted(checkout.rglob("*.json")) == found


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["submit", "RUN", "--to", "gone", "--by", "me"], "There is no folder gone"),
        (["submit", "RUN", "--to", ".", "--by", " "], "--by NAME"),
        (["entry", "RUN", "--detector", "mahalanobs"], "has no detector 'mahalanobs'"),
        (["entry", "gone"], "gone"),
        (["verify", "gone"], "There is no gone"),
        (["verify", ".", "--rerun"], "--rerun and --suite"),
        (["verify", ".", "--by", "me"], "--by goes with --rerun"),
    ],
)
def test_a_mistake_is_one_sentence(
    quick_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [str(quick_run) if a == "RUN" else a for a in arguments])
    assert said in str(result.exception)


def test_a_run_that_was_changed_gives_no_entries(quick_run: Path, tmp_path: Path) -> None:
    import shutil

    changes = (("run.json", b'"quick"', b'"quack"'), ("tables/scores.csv.gz", b"", b"x"))
    for number, (name, old, new) in enumerate(changes):
        copy = tmp_path / str(number)
        shutil.copytree(quick_run, copy, ignore=shutil.ignore_patterns("artifacts", "cells", "site"))
        (copy / name).write_bytes((copy / name).read_bytes().replace(old, new, 1))
        result = CliRunner().invoke(app, ["entry", str(copy), "--out", str(tmp_path / "out")])
        assert "changed or damaged" in str(result.exception)
    assert not is_file(tmp_path / "out")


def test_the_protocol_of_a_run_is_published_in_full(quick_run: Path) -> None:
    facts: dict[str, Any] = json.loads((quick_run / "run.json").read_text(encoding="utf-8"))
    assert {p["digest"] for p in facts["protocols"].values()} == set(facts["protocol_digest"].split())
    assert str(quick_run) not in json.dumps(facts["protocols"])


def test_the_budget_of_an_entry_is_that_of_the_protocol_not_its_six_digits_in_a_table() -> None:
    content = {"threat": {"norm": "linf", "eps": 8 / 255}}
    run = Run(Path("run"), {"protocols": {"cnn": {"content": content}}})
    row = Row({"model": "cnn", "norm": "linf", "eps": "0.0313725"}, {})
    assert threat_of(run, row).eps == 8 / 255
    # What a run says of another budget is not taken for this one.
    assert threat_of(run, row.relabelled("eps", "0.03")).eps == 0.03
    assert threat_of(Run(Path("run")), row).eps == 0.0313725
