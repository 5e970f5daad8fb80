"""Tables and pages of a run that is going on say what is finished, and change nothing in the end."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aftershock
import pytest
from aftershock.harness.core.errors import AftershockError
from aftershock.harness.run import interim
from aftershock.harness.run.events import Event
from aftershock.harness.run.interim import Interim
from support.tables import whole_tables


def test_a_run_that_is_going_on_can_be_read(tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = tiny(tmp_path / "t.toml", perturbations=[{"name": "fgsm", "eps": 0.2}],
                 detectors=[{"name": "msp"}, {"name": "energy"}])  # fmt: skip
    seen: list[tuple[str, set[str], int]] = []

    def look(event: Event) -> None:
        facts = tmp_path / "run" / "run.json"
        if event.kind == "start" and facts.is_file():
            status = json.loads(facts.read_text(encoding="utf-8"))["status"]
            scores = aftershock.load(tmp_path / "run").scores
            seen.append((status, set(scores["detector"]), len(scores)))
            assert (tmp_path / "run" / "site" / "index.html").is_file()

    whole = aftershock.run(suite, out=tmp_path / "whole", cache=tmp_path / "c1")
    # Of some hundred cells, five times: a clock that goes by calls.
    monkeypatch.setattr(interim, "time", SimpleNamespace(monotonic=itertools.count(0, 150.0).__next__))
    monkeypatch.setattr(interim, "_SHARE", 1e9)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".secret").write_bytes((tmp_path / "whole" / ".secret").read_bytes())
    run = aftershock.run(suite, out=tmp_path / "run", cache=tmp_path / "c2", on_progress=look)
    assert {status for status, *_ in seen} == {"running"}
    # More and more is there: first one detector, then both.
    assert len({len(detectors) for _, detectors, _ in seen}) > 1
    lengths = [rows for *_, rows in seen]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["status"] == "done"
    assert whole_tables(run.folder) == whole_tables(whole.folder)
    # It was not taken for a finished run meanwhile.
    assert aftershock.run(suite, out=tmp_path / "run", cache=tmp_path / "c2").computed == 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [0.0]
    monkeypatch.setattr(interim, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


def test_it_takes_a_small_share_of_the_time(clock: Callable[[float], None]) -> None:
    made: list[object] = []

    def write(computed: object) -> None:
        made.append(computed)
        clock(30.0)

    due = Interim(write, lambda text: None)
    for _ in range(1000):
        clock(10.0)
        due(lambda: None)  # type: ignore[arg-type, return-value]
    # 10,000 seconds: every 1,500, since each takes 30, a fiftieth.
    assert 5 <= len(made) <= 8


def test_where_they_cannot_be_written_the_run_goes_on(clock: Callable[[float], None]) -> None:
    said: list[str] = []

    def write(computed: object) -> None:
        raise AftershockError("the disk is full")

    due = Interim(write, said.append)
    for _ in range(10):
        clock(1000.0)
        due(lambda: None)  # type: ignore[arg-type, return-value]
    assert said == ["Pages of what is finished so far cannot be made: the disk is full"]
