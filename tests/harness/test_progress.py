"""What a person is told while cells are computed, and how long the rest is said to take."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from aftershock import run
from aftershock.harness.cli.console import Console, Countdown
from aftershock.harness.core.cell_names import CellName
from aftershock.harness.plan.cells import Cell
from aftershock.harness.run.events import Event
from aftershock.harness.run.rates import Rates
from aftershock.harness.run.time_left import TimeLeft
from support.suites import Tiny


def cell(key: str, kind: str, images: int) -> Cell:
    return Cell(key, CellName("digits", "cnn", 0, kind, "x", key), None, (), key, images)  # type: ignore[arg-type]


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def as_many_seconds_as_images(one: Cell) -> float:
    return float(one.images)


def test_a_long_cell_that_tells_its_share_is_no_longer_guessed() -> None:
    clock = Clock()
    time = TimeLeft(as_many_seconds_as_images, clock)
    long, other = cell("a", "analysis", 100), cell("b", "score", 50)
    for one in (long, other):
        time.expect(one)
    assert time.seconds() == pytest.approx(150)
    time.begin(long)
    clock.now = 30.0
    assert time.seconds() == pytest.approx(120)
    time.share(long, 0.5)
    # Half took 30 s, so 30 s remain.
    assert time.seconds() == pytest.approx(80)
    time.share(long, 0.0)  # nothing done yet says nothing
    assert time.seconds() == pytest.approx(80)
    time.settle(long)
    assert time.seconds() == pytest.approx(50)
    time.settle(other)
    assert time.seconds() == 0


def test_a_cell_that_is_being_computed_is_not_shared_among_workers() -> None:
    clock = Clock()
    time = TimeLeft(as_many_seconds_as_images, clock)
    long, short = cell("a", "perturb", 100), cell("b", "score", 20)
    for one in (long, short):
        time.expect(one)
    assert time.seconds(2) == pytest.approx(60)
    time.begin(long)
    assert time.seconds(2) == pytest.approx(100)
    clock.now = 100.0
    # It takes longer than expected, and is not said to be done.
    assert time.seconds(2) >= 10


@pytest.mark.parametrize("factor", [0.2, 1.0, 5.0])
def test_estimates_follow_a_machine_of_another_speed(factor: float) -> None:
    clock = Clock()
    time = TimeLeft(as_many_seconds_as_images, clock)
    planned = [cell(str(number), ("score", "fit", "perturb")[number % 3], 1 + number % 5) for number in range(60)]
    for one in planned:
        time.expect(one)
    for one in planned[:30]:
        time.begin(one)
        clock.now += factor * one.images
        time.settle(one, factor * one.images)
    rest = factor * sum(one.images for one in planned[30:])
    assert 0.6 < time.seconds() / rest < 1.6
    assert time.spent() == pytest.approx(factor * sum(one.images for one in planned[:30]))


def test_one_dear_cell_does_not_make_all_others_dear() -> None:
    clock = Clock()
    time = TimeLeft(as_many_seconds_as_images, clock)
    planned = [cell(str(number), "perturb", 10) for number in range(10)]
    for number, one in enumerate(planned):
        time.expect(Cell(one.key, CellName("digits", "cnn", 0, "perturb", f"attack-{number}"), None, (), one.key, 10))  # type: ignore[arg-type]
    dear = Cell("0", CellName("digits", "cnn", 0, "perturb", "attack-0"), None, (), "0", 10)  # type: ignore[arg-type]
    time.begin(dear)
    clock.now = 200.0
    time.settle(dear, 200.0)
    assert time.seconds() < 2.5 * 90


def test_a_countdown_passes_between_events_and_takes_estimates_over_gradually() -> None:
    clock = Clock()
    left = Countdown(clock)
    assert left.text() == ""
    left.tell(600.0)
    assert left.text() == "about 10 min left"
    clock.now = 300.0
    assert left.text() == "about 5 min left"
    left.tell(300.0)
    clock.now = 300.5
    left.tell(30.0)
    # A sudden change is not told at once.
    assert left.text() == "about 4 min left"
    for second in range(301, 330):
        clock.now = float(second)
        left.tell(330.0 - second)
    assert left.text() in ("", "about 1 s left")


def test_what_cells_took_is_remembered_by_content_and_kind(tmp_path: Path) -> None:
    rates = Rates()
    rates.add("like", "score", 10, 5.0, 1.0)
    rates.write(tmp_path)
    read = Rates.read(tmp_path)
    assert (read.measured("like"), read.factor("score")) == (0.5, 5.0)
    assert (read.measured("other"), read.factor("fit")) == (None, None)
    later = read.faded()
    later.add("like", "score", 10, 20.0, 1.0)
    assert later.measured("like") == pytest.approx(1.5)
    for damaged in ("", "{", "[]", '{"schema": 1}', '{"schema": 1, "likes": {"a": [0, 1], "b": "x"}, "kinds": 3}'):
        (tmp_path / "rates.json").write_text(damaged, encoding="utf-8")
        assert Rates.read(tmp_path).measured("like") is None


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
    assert events[-1].over == pytest.approx(1.0) and events[0].over < 0.1
    assert (tmp_path / "cache" / "rates.json").is_file()


def test_a_log_has_each_reason_once_and_each_sentence_in_one_line() -> None:
    log = io.StringIO()
    reason = "RuntimeError: " + "a long reason " * 20
    with Console(log) as console:
        for number in range(6):
            console.on_progress(Event("failed", cell(str(number), "score", 1), number, 6, 0.0, reason))
        console.on_progress(Event("failed", cell("7", "score", 1), 6, 7, 0.0, "another"))
    assert len(log.getvalue().splitlines()) == 2
