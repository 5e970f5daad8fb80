"""False alarms under attack on the page."""

from __future__ import annotations

from aftershock.reports.read.run_directory import Row
from aftershock.reports.site.alarms import alarm_table


def curve(detector: str, shares: dict[float, float | None], seed: str = "0", reason: str = "") -> list[Row]:
    return [
        Row(
            {"detector": detector, "seed": seed, "reason": reason},
            {"alpha": alpha, "share": share, "low": None if share is None else 0.0, "high": 1.0, "n": 50.0},
        )
        for alpha, share in shares.items()
    ]


def board(*detectors: str, false_alarm: float | None = 0.25) -> list[Row]:
    return [Row({"detector": d}, {"false_alarm_at_quarter_eps": false_alarm}) for d in detectors]


def test_a_row_for_each_detector_with_the_mean_over_seeds() -> None:
    rows = (
        curve("msp", {0.0: 0.5, 0.125: 0.25}) + curve("msp", {0.0: 0.7, 0.125: 0.25}, "1") + curve("none", {0.0: 0.1})
    )
    table = alarm_table(rows, board("msp", "none"))
    assert [column.note for column in table.columns] == ["", "within ε/4", "0", "ε/8"]
    texts = [[cell.text.replace("\u202f", " ") for cell in cells] for _, cells in table.rows]
    assert texts == [["msp", "25.0 %", "60.0 %", "25.0 %"], ["none", "25.0 %", "10.0 %", "–"]]
    assert [kind for kind, _ in table.rows] == ["", "ablation"]


def test_what_is_missing_has_its_reason_and_without_a_search_there_is_no_table() -> None:
    rows = curve("msp", {0.0: None, 1.0: None}, reason="the search failed")
    ((_, cells),) = alarm_table(rows, board("msp", false_alarm=None)).rows
    assert [cell.text for cell in cells[1:]] == ["–"] * 3
    assert {cell.title for cell in cells[1:]} == {"the search failed"}
    assert alarm_table([], board("msp")).rows == []
