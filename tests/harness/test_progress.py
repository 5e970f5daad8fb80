"""What a person is told while cells are computed, and how long the rest is said to take."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from aftershock import run
from aftershock.harness.cli.console import Console
from aftershock.harness.core.cell_names import CellName
from aftershock.harness.plan.cells import Cell
from aftershock.harness.run.events import Event
from aftershock.harness.run.runner import TimeLeft
from support.suites import Tiny


def cell(key: str, kind: str, images: int) -> Cell:
    return Cell(key, CellName("digits", "cnn", 0, kind, "x", key), None, (), key, images)  # type: ignore[arg-type]


def test_a_long_cell_that_tells_its_share_is_no_longer_guessed() -> None:
    time = TimeLeft()
    long, other = cell("a", "analysis", 100), cell("b", "score", 50)
    for one in (long, other):
        time.expect(one)
    time.learn(cell("c", "score", 100), 2.0)
    guessed = time.seconds()
    time.share(long, 0.25, 30.0)
    # A quarter took 30 s, so 90 s remain; the other cell's images take 0.02 s each.
    assert time.seconds() == pytest.approx(90 + 1) != guessed
    time.share(long, 0.0, 40.0)  # nothing done yet says nothing
    assert time.seconds() == pytest.approx(91)
    time.settle(long)
    assert time.seconds() == pytest.approx(1)


def test_an_analysis_tells_its_progress(tmp_path: Path, tiny: Tiny) -> None:
    tiny(tmp_path / "a.toml", [{"name": "fgsm", "eps": 0.3}])
    with (tmp_path / "a.toml").open("a") as stream:
        stream.write('\n[[analyses]]\nname = "functional_codes"\nrows = 2\ncolumns = 2\nepochs = 2\npermutations = 2\n')
    events: list[Event] = []
    made = run(tmp_path / "a.toml", tmp_path / "run", cache=tmp_path / "cache", on_progress=events.append)
    assert not made.failed
    shares = [e.share for e in events if e.kind == "share"]
    assert len(shares) > 2 and shares == sorted(shares) and 0 < shares[0] < shares[-1] < 1
    assert all(e.cell.kind == "analysis" for e in events if e.kind == "share")
    assert events[-1].finished == events[-1].total and events[-1].seconds_left == pytest.approx(0, abs=1e-6)


def test_a_log_has_each_reason_once_and_each_sentence_in_one_line() -> None:
    log = io.StringIO()
    reason = "RuntimeError: " + "a long reason " * 20
    with Console(log) as console:
        for number in range(6):
            console.on_progress(Event("failed", cell(str(number), "score", 1), number, 6, 0.0, reason))
        console.on_progress(Event("failed", cell("7", "score", 1), 6, 7, 0.0, "another"))
    assert len(log.getvalue().splitlines()) == 2
