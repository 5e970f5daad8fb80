"""What detectors cost, from a run's ``run.json``, which may come from a stranger."""

from pathlib import Path
from typing import Any

from aftershock.reports.read.run_directory import Run
from aftershock.reports.site.costs import cost_tables


def run(facts: dict[str, Any], name: str = "a") -> Run:
    return Run(Path(name), facts)


def row(detector: str, seed: int = 0, **more: object) -> dict[str, object]:
    return {"dataset": "digits", "model": "cnn", "seed": seed, "detector": detector, **more}


def texts(table: Any) -> list[list[str]]:
    return [[cell.text for cell in cells] for _, cells in table.rows]


def test_seeds_are_averaged_and_numbers_are_short() -> None:
    facts = {"costs": [
        row("knn", 0, fit_seconds=1.0, fit_peak_mib=1500.0, state_mib=0.01234, score_ms_per_image=0.5),
        row("knn", 1, fit_seconds=2.0, fit_peak_mib=1500.4, state_mib=0.01234, score_ms_per_image=None),
    ]}  # fmt: skip
    ((title, table),) = cost_tables([run({"name": "mine", **facts})], "digits", "cnn")
    assert title == "mine"
    assert texts(table) == [["knn", "1.5", "1\u202f500", "0.0123", "0.5"]]


def test_what_is_missing_is_a_dash_with_a_reason() -> None:
    ((_, table),) = cost_tables([run({"costs": [row("msp", fit_peak_mib=None)]})], "digits", "cnn")
    assert texts(table) == [["msp", "–", "–", "–", "–"]]
    assert all(cell.title for _, cells in table.rows for cell in cells[1:])


def test_a_strangers_facts_break_nothing() -> None:
    assert cost_tables([run({}), run({"costs": 3}), run({"costs": [None, 7, "x"]})], "digits", "cnn") == []
    hostile: dict[str, Any] = {"costs": [row("<b>", fit_seconds="1e9", state_mib=float("nan"), seed=[1])]}  # type: ignore[arg-type]
    ((_, table),) = cost_tables([run(hostile)], "digits", "cnn")
    assert texts(table) == [["<b>", "–", "–", "–", "–"]]


def test_runs_are_not_averaged_with_each_other() -> None:
    runs = [run({"name": "mine", "costs": [row("knn", fit_seconds=s)]}) for s in (1.0, 99.0)]
    found = cost_tables(runs, "digits", "cnn")
    assert [title for title, _ in found] == ["mine (1)", "mine (2)"]
    assert [texts(table)[0][1] for _, table in found] == ["1", "99"]
