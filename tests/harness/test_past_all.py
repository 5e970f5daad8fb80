"""One image past all detectors: what is planned, and what the table says of what was found."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from aftershock.harness.core.registry import DATASETS
from aftershock.harness.evaluation.finished import Finished
from aftershock.harness.evaluation.past_all import past_all_rows
from aftershock.harness.plan import Plan, make_plan
from aftershock.harness.plan.cells import PastAllJob
from aftershock.harness.suite.resolve import load_suite
from support.suites import Tiny

COMBINATION = {"name": "combination", "of": ["msp", "energy"], "method": "max"}


def plan(folder: Path, tiny: Tiny, *detectors: dict[str, Any], **attack: Any) -> Plan:
    entry = {"name": "adaptive", "eps": 0.3, "images": 30, **attack}
    path = tiny(folder / "suite.toml", [{"name": "fgsm", "eps": 0.3}, entry], detectors)
    return make_plan(load_suite(path), DATASETS.get("digits")(None).load(), "data", "cpu", {"mlp": None})


def job_of(made: Plan) -> PastAllJob | None:
    key = made.models[0].past_all
    return cast(PastAllJob, made.cells[key].job) if key else None


def test_detectors_that_combine_others_judge_and_are_not_passed(tmp_path: Path, tiny: Tiny) -> None:
    made = plan(tmp_path, tiny, {"name": "msp"}, COMBINATION, {"name": "energy"})
    job = job_of(made)
    assert job is not None
    assert [one.target.part.label for one in job.opponents] == ["msp", "energy"]
    assert [one.part.label for one in job.judges] == ["combination"]
    assert job.stop == 30
    # Everything that is read is waited for.
    read = [*(one.keys() for one in job.opponents), *(one.keys() for one in job.judges)]
    assert {key for keys in read for key in keys} <= set(made.cells[made.models[0].past_all].inputs)


def test_there_is_no_search_past_one_detector_or_beside_another_attack(tmp_path: Path, tiny: Tiny) -> None:
    two = {"name": "msp"}, {"name": "energy"}
    assert job_of(plan(tmp_path, tiny, two[0])) is None
    assert job_of(plan(tmp_path, tiny, two[0], COMBINATION)) is None
    assert job_of(plan(tmp_path, tiny, *two, eps=0.1)) is None
    assert job_of(plan(tmp_path, tiny, *two, name="adaptive-pgd")) is None


@pytest.mark.parametrize("found", [True, False])
def test_the_table_counts_what_passes_all_and_what_a_combination_says_of_it(
    tmp_path: Path, tiny: Tiny, found: bool
) -> None:
    made = plan(tmp_path, tiny, {"name": "msp"}, COMBINATION, {"name": "energy"})
    fooled = torch.tensor([True, True, True, True, False])
    stored = {
        "success": fooled,
        "passed": torch.tensor([[True, True, True, False, True], [True, True, True, True, True]]) & found,
        "judged": torch.tensor([[True, False, False, False, False]]),
    }
    run = cast(
        Finished, SimpleNamespace(plan=made, reason=lambda key: "", store=SimpleNamespace(load=lambda key: stored))
    )
    passes, flagged = past_all_rows(run, made.models[0])
    assert (passes["measure"], passes["detectors"], passes["n"]) == ("passes-all", 2, 5)
    assert passes["share"] == (0.6 if found else 0.0) and passes["low"] <= passes["share"] <= passes["high"]
    assert (flagged["measure"], flagged["detector"], flagged["n"]) == ("flagged", "combination", 3 if found else 0)
    if found:
        assert flagged["share"] == pytest.approx(2 / 3)


def test_a_search_that_failed_is_a_reason(tmp_path: Path, tiny: Tiny) -> None:
    made = plan(tmp_path, tiny, {"name": "msp"}, {"name": "energy"})
    run = cast(Finished, SimpleNamespace(plan=made, reason=lambda key: "it failed"))
    (row,) = past_all_rows(run, made.models[0])
    assert row["share"] is None and row["reason"] == "it failed"
