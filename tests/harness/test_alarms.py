"""False alarms under attack: the column of the leaderboard, and the stratified rejection curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aftershock.harness.core.registry import DATASETS
from aftershock.harness.evaluation.alarms import Alarms
from aftershock.harness.evaluation.leaderboard import Protocol, leaderboard_rows
from aftershock.harness.evaluation.rejection_curve import SHARES, rejection_rows
from aftershock.harness.evaluation.results import DetectorResult, PerturbationResult, SeedResult, Sources, Threat
from aftershock.harness.plan import Plan, make_plan
from aftershock.harness.suite.resolve import load_suite
from support.suites import Tiny

EPS, IMAGES, WRONG = 0.1, 60, 6
THREAT = Threat("linf", EPS)
RIGHT = np.arange(IMAGES) >= WRONG
Row = dict[str, Any]


def sources() -> Sources:
    label, calibrate = np.zeros(IMAGES, np.int64), np.zeros(200, np.int64)
    prediction = np.where(RIGHT, 0, 1)
    return Sources("digits", "cnn", 0, np.arange(200), calibrate, calibrate, np.arange(IMAGES), label, prediction)


def attack(sizes: float | np.ndarray = EPS) -> PerturbationResult:
    """Fools the model with all images."""
    index = np.flatnonzero(RIGHT)
    norm = np.broadcast_to(np.asarray(sizes, dtype=float), index.shape)
    return PerturbationResult(
        "pgd", "attack", "pgd", "aftershock", "linf", EPS, index=index, prediction=np.ones(len(index), np.int64),
        success=np.ones(len(index), np.bool_), norms={"linf": norm},
    )  # fmt: skip


def detector(
    label: str, radius: float | np.ndarray, caught: int, clean_flagged: int = 0, **more: Any
) -> DetectorResult:
    """Flags the first images that are right clean, the last so many attacked ones, and changes of a radius."""
    rows = np.flatnonzero(RIGHT)
    clean = np.zeros(IMAGES)
    clean[rows[:clean_flagged]] = 9.0
    perturbed = np.where(np.arange(len(rows)) >= len(rows) - caught, 9.0, 0.0)
    looked = rows[clean_flagged:]
    found = np.broadcast_to(np.asarray(radius, dtype=float), looked.shape)
    alarms = more.pop("alarms", Alarms(looked, found))
    return DetectorResult(
        label, calibrate=np.linspace(0, 1, 200), clean=clean, perturbed={"pgd": perturbed}, alarms=alarms, **more
    )  # fmt: skip


def board(*detectors: DetectorResult, sizes: float = EPS) -> tuple[dict[str, Row], dict[str, list[Row]]]:
    """The leaderboard and the curve, by detector."""
    result = SeedResult(sources(), [attack(sizes)], detectors)
    rows = leaderboard_rows([result], THREAT, Protocol("digest"), alarms=IMAGES)
    curves: dict[str, list[Row]] = {}
    for row in rejection_rows(result, THREAT, IMAGES):
        curves.setdefault(str(row["detector"]), []).append(row)
    return {str(row["detector"]): row for row in rows}, curves


def shares(rows: list[Row]) -> list[float]:
    assert [row["alpha"] for row in rows] == list(SHARES)
    return [row["share"] for row in rows]


def test_the_column_is_the_share_within_a_quarter_of_the_budget() -> None:
    radius = np.where(np.arange(54) < 27, 0.24 * EPS, 0.26 * EPS)
    rows, _ = board(detector("half", radius, 54), detector("silent", np.inf, 0), detector("few", 0.0, 54, 30))
    assert rows["half"]["false_alarm_at_quarter_eps"] == pytest.approx(0.5)
    assert rows["silent"]["false_alarm_at_quarter_eps"] == rows["none"]["false_alarm_at_quarter_eps"] == 0.0
    # Fewer than 30 images were looked at.
    assert rows["few"]["false_alarm_at_quarter_eps"] is None


def test_a_detector_that_flags_everything_near_the_boundary_pays() -> None:
    rows, curves = board(detector("near", 0.3 * EPS, 54), detector("far", np.inf, 54))
    assert rows["near"]["robust_accuracy_at_fpr_5"] == rows["far"]["robust_accuracy_at_fpr_5"] == 0.9
    assert shares(curves["near"]) == [0.9, 0.9, 0.9, 0.0, 0.0]
    # What fools the model and is flagged is a rejection, too: of images that the model alone does not stand.
    assert shares(curves["far"]) == [0.9, 0.9, 0.9, 0.9, 0.0]


@pytest.mark.parametrize(("caught", "clean_flagged"), [(54, 0), (20, 0), (30, 12), (0, 0)])
def test_the_curve_begins_at_robust_accuracy_and_falls(caught: int, clean_flagged: int) -> None:
    radius = np.random.default_rng(0).uniform(0, 1.5 * EPS, 54 - clean_flagged)
    rows, curves = board(detector("d", radius, caught, clean_flagged), sizes=2 * EPS)
    found = shares(curves["d"])
    assert found[0] == rows["d"]["robust_accuracy_at_fpr_5"]
    assert found == sorted(found, reverse=True)
    assert shares(curves["none"]) == [rows["none"]["robust_accuracy_at_fpr_5"]] * len(SHARES)


def test_a_flagged_success_counts_by_its_measured_size() -> None:
    _, curves = board(detector("d", np.inf, 54), sizes=0.4 * EPS)
    assert shares(curves["d"]) == [0.9, 0.9, 0.9, 0.0, 0.0]


def test_an_image_at_the_threshold_is_not_rejected_unchanged() -> None:
    _, curves = board(detector("d", 1e-9, 54))
    assert shares(curves["d"]) == [0.9, 0.0, 0.0, 0.0, 0.0]


def test_without_a_search_there_is_a_reason_and_no_number() -> None:
    rows, curves = board(detector("d", 0.0, 54, alarms=Alarms(reason="the search failed")), detector("e", np.inf, 54))
    assert rows["d"]["false_alarm_at_quarter_eps"] is None and rows["e"]["false_alarm_at_quarter_eps"] == 0.0
    assert {(row["share"], row["n"], row["reason"]) for row in curves["d"]} == {(None, None, "the search failed")}
    assert shares(curves["e"])[0] == 0.9


def test_no_row_depends_on_its_neighbours() -> None:
    one, two = detector("one", 0.2 * EPS, 40, 3), detector("two", 0.6 * EPS, 54)
    (rows, curves), (alone, curves_alone) = board(one, two), board(one)
    column = "false_alarm_at_quarter_eps"
    assert rows["one"][column] == alone["one"][column] and curves["one"] == curves_alone["one"]


def plan(folder: Path, tiny: Tiny, *detectors: str, **attack: Any) -> Plan:
    entry = {"name": "adaptive", "eps": 0.3, "images": 40, **attack}
    path = tiny(folder / "suite.toml", [{"name": "fgsm", "eps": 0.3}, entry], [{"name": d} for d in detectors])
    return make_plan(load_suite(path), DATASETS.get("digits")(None).load(), "data", "cpu", {"mlp": None})


def test_each_detector_has_a_search_of_its_own(tmp_path: Path, tiny: Tiny) -> None:
    both, one = plan(tmp_path, tiny, "msp", "energy"), plan(tmp_path, tiny, "msp")
    assert both.models[0].alarms.keys() == {"msp", "energy"}
    assert both.models[0].alarms["msp"] == one.models[0].alarms["msp"]
    assert both.alarms == 40


def test_the_search_belongs_to_the_worst_case_at_the_threats_budget(tmp_path: Path, tiny: Tiny) -> None:
    assert plan(tmp_path, tiny, "msp", eps=[0.1, 0.3]).models[0].alarms.keys() == {"msp"}
    for other in (plan(tmp_path, tiny, "msp", eps=0.1), plan(tmp_path, tiny, "msp", name="adaptive-pgd")):
        assert (other.alarms, other.models[0].alarms) == (0, {})
