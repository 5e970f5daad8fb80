"""The order in which cells are computed: any order in which inputs come first, each cell once, groups together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from aftershock.harness.core.cell_names import CellName
from aftershock.harness.plan.cells import Cell
from aftershock.harness.run.schedule import Schedule
from hypothesis import given, settings
from hypothesis import strategies as st


def cell(key: str, inputs: tuple[str, ...] = (), group: str = "", images: int = 1) -> Cell:
    job: Any = None
    return Cell(key, CellName("data", "model", 0, "trace", key), job, inputs, group or key, images)


def cells(*made: Cell) -> dict[str, Cell]:
    return {one.key: one for one in made}


def seconds(one: Cell) -> float:
    return float(one.images)


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Cell]:
    """Plans in which inputs come first; cells of one group have the same inputs, as traces of the same images do."""
    groups = draw(st.lists(st.integers(1, 3), min_size=1, max_size=12))
    made: list[Cell] = []
    for number, size in enumerate(groups):
        known = [one.key for one in made]
        inputs = tuple(draw(st.lists(st.sampled_from(known), max_size=4, unique=True))) if known else ()
        images = draw(st.integers(1, 9))
        made += [cell(f"{number}.{i}", (*inputs, "stored"), f"group {number}", images) for i in range(size)]
    return cells(*made)


@settings(deadline=None)  # a busy machine is no fault
@given(plans(), st.integers(1, 4), st.randoms(use_true_random=False))
def test_each_cell_comes_once_with_its_group_and_after_its_inputs(
    plan: Mapping[str, Cell], workers: int, random: Any
) -> None:
    schedule = Schedule(plan, seconds, workers)
    running: list[list[Cell]] = []
    settled: set[str] = set()
    given_out: list[str] = []
    while schedule or running:
        while schedule and len(running) < workers:
            taken = schedule.next()
            assert {one.group for one in taken} == {taken[0].group}
            assert [one.key for one in taken] == [k for k, c in plan.items() if c.group == taken[0].group]
            for one in taken:
                assert {i for i in one.inputs if i in plan} <= settled
            given_out += [one.key for one in taken]
            running.append(taken)
        for one in running.pop(random.randrange(len(running))):
            settled.add(one.key)
            schedule.settle(one.key)
    assert sorted(given_out) == sorted(plan)


def test_one_worker_keeps_to_the_plan() -> None:
    plan = cells(cell("a"), cell("short"), cell("long", images=99), cell("z", ("a",)))
    schedule = Schedule(plan, seconds, 1)
    assert [schedule.next()[0].key for _ in range(3)] == ["a", "short", "long"]


def test_several_workers_begin_with_what_the_longest_chain_waits_for() -> None:
    plan = cells(
        cell("short"), cell("longish", images=5), cell("first", images=1), cell("second", ("first",), images=2),
        cell("last", ("second",), images=7),
    )  # fmt: skip
    schedule = Schedule(plan, seconds, 2)
    assert [schedule.next()[0].key for _ in range(3)] == ["first", "longish", "short"]
    schedule.settle("first")
    assert schedule.next()[0].key == "second"


def test_what_a_shard_owns_comes_first() -> None:
    plan = cells(*(cell(key) for key in "abcd"))
    schedule = Schedule(plan, seconds, 2, first=lambda group: group in "bd")
    assert [schedule.next()[0].key for _ in range(4)] == ["b", "d", "a", "c"]


def test_a_group_that_grows_while_it_is_computed_comes_again() -> None:
    plan = cells(cell("model"), cell("plain", group="pass"), cell("codes", ("model",), group="pass"))
    schedule = Schedule(plan, seconds, 1)
    assert [one.key for one in schedule.next()] == ["model"]
    assert [one.key for one in schedule.next()] == ["plain"]
    assert not schedule
    with pytest.raises(IndexError):
        schedule.next()
    schedule.settle("model")
    assert [one.key for one in schedule.next()] == ["codes"]
