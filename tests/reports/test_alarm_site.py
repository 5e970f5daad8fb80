"""False alarms under attack, and one image past all detectors, on the page."""

from __future__ import annotations

from aftershock.reports.read.run_directory import Row
from aftershock.reports.site.alarms import alarm_table
from aftershock.reports.site.past_all import past_all_sentences


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


def test_a_file_decides_no_columns() -> None:
    rows = curve("msp", {0.0: 0.5, 0.125: 0.25, 0.3: 0.2, -1.0: 0.1, 1e300: 0.0})
    assert [column.note for column in alarm_table(rows, board("msp")).columns] == ["", "within ε/4", "0", "ε/8"]


def past(measure: str, detector: str, share: float | None, n: float | None, reason: str = "") -> Row:
    ends = (None, None) if share is None else (share / 2, 1.0)
    numbers = {"detectors": 7.0, "share": share, "low": ends[0], "high": ends[1], "n": n}
    return Row({"measure": measure, "detector": detector, "reason": reason}, numbers)


def test_one_image_past_all_is_said_in_words() -> None:
    rows = [
        past("passes-all", "", 0.4, 30.0),
        past("passes-all", "", 0.6, 32.0),
        past("flagged", "combined", 0.25, 16.0),
    ]
    board = [Row({"detector": "combined"}, {"adaptive_undetected_at_fpr_5": 0.9})]
    first, second = (text.replace("\u202f", " ") for text in past_all_sentences(rows, board))
    assert first == "One image past all 7 detectors: 50.0 % of 31 images [25.0 %, 100.0 %]."
    assert (
        second.startswith("combined, which combines others, flags 25.0 % of these")
        and "90.0 % of images get past it" in second
    )
    (missing,) = past_all_sentences([past("passes-all", "", None, None, "it failed")], [])
    assert missing == "One image past all 7 detectors: not known (it failed)."
    assert past_all_sentences([], []) == []
