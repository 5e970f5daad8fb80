"""Tables as files and on the console."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from aftershock.harness.cli.board import terminal_board
from aftershock.harness.cli.results import show_run
from aftershock.harness.evaluation.csv_files import COLUMNS, write_csv, write_csv_gz
from aftershock.harness.evaluation.verdict import Verdict, sentence, verdicts
from support.columns import COLUMNS as PUBLISHED

NAMES = ("name", "value")


def _text(path: Path) -> str:
    return path.read_bytes().decode()


def test_the_seven_tables_have_the_published_columns() -> None:
    assert COLUMNS == PUBLISHED
    assert all(len(set(columns)) == len(columns) for columns in COLUMNS.values())


def test_cells(tmp_path: Path) -> None:
    cells = [
        None,
        float("nan"),
        1 / 3,
        8 / 255,
        np.float32(0.1),
        -0.0,
        1e-9,
        12345678.0,
        7,
        np.int64(-7),
        True,
        np.False_,
        1.0,
    ]
    write_csv(tmp_path / "t.csv", ("v", "w"), [(c, 0) for c in cells])
    written = [line.split(",")[0] for line in _text(tmp_path / "t.csv").splitlines()[1:]]
    assert written == ["", "", "0.333333", "0.0313725", "0.1", "0", "1e-09", "1.23457e+07", "7", "-7", "1", "0", "1"]


@pytest.mark.parametrize("text", ["=1+1", "+x", "-x", "@cmd", "\tx", "\rx"])
def test_formulas_are_defused(tmp_path: Path, text: str) -> None:
    write_csv(tmp_path / "t.csv", NAMES, [(text, -1.5)])
    with (tmp_path / "t.csv").open(newline="") as stream:
        assert list(csv.reader(stream))[1] == [f"'{text}".replace("\r", "\n"), "-1.5"]


def test_text_survives(tmp_path: Path) -> None:
    texts = ["a,b", 'say "x"', "two\nlines", "[red]", "ε ≤ 8/255", "a-b", "'quoted'", ""]
    write_csv(tmp_path / "t.csv", NAMES, [{"value": 1, "name": t} for t in texts])
    frame = pd.read_csv(tmp_path / "t.csv", keep_default_na=False)
    assert list(frame["name"]) == texts


def test_a_carriage_return_ends_no_row(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", NAMES, [("50 %\r100 %", 1), ("a\r\nb", 2)])
    with (tmp_path / "t.csv").open(newline="") as stream:
        assert list(csv.reader(stream))[1:] == [["50 %\n100 %", "1"], ["a\nb", "2"]]


def test_rows_that_do_not_fit_leave_the_old_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_csv(path, NAMES, [("a", 1)])
    before = path.read_bytes()
    for bad in ({"name": "a"}, {"name": "a", "value": 1, "more": 2}, ("a",), ("a", [1])):
        with pytest.raises(ValueError, match=r"row|cell"):
            write_csv(path, NAMES, [("b", 2), bad])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_an_interrupted_table_leaves_the_old_one(tmp_path: Path) -> None:
    def rows() -> Iterator[tuple[str, int]]:
        yield "a", 1
        raise KeyboardInterrupt

    write_csv_gz(tmp_path / "t.csv.gz", NAMES, [("old", 0)])
    with pytest.raises(KeyboardInterrupt):
        write_csv_gz(tmp_path / "t.csv.gz", NAMES, rows())
    assert "old" in gzip.decompress((tmp_path / "t.csv.gz").read_bytes()).decode()
    assert len(list(tmp_path.iterdir())) == 1


def test_compressed_bytes_depend_on_the_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).normal(700, 60, 3000).astype(np.float32)
    rows = [(f"r{i}", float(s)) for i, s in enumerate(scores)]
    write_csv_gz(tmp_path / "a.csv.gz", NAMES, rows)
    monkeypatch.setattr("time.time", lambda: 1e9)
    write_csv_gz(tmp_path / "b.csv.gz", NAMES, iter(rows))
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()
    read = pd.read_csv(tmp_path / "a.csv.gz")["value"].to_numpy().astype(np.float32)
    assert np.array_equal(read, scores)


def test_rows_stream(tmp_path: Path) -> None:
    """Rows are written as they come: the file beside the target grows while they are drawn."""
    sizes: list[int] = []

    def rows() -> Iterator[tuple[str, int]]:
        draws = np.random.default_rng(0)
        for i in range(30000):
            if i == 29999:
                sizes.extend(p.stat().st_size for p in tmp_path.iterdir())
            yield draws.bytes(8).hex(), i

    write_csv_gz(tmp_path / "t.csv.gz", NAMES, rows())
    assert len(sizes) == 1
    assert sizes[0] > 0.8 * (tmp_path / "t.csv.gz").stat().st_size


def _row(**more: object) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(COLUMNS["leaderboard"])
    return {
        **row,
        "dataset": "digits",
        "model": "cnn",
        "detector": "bits",
        "flags": "",
        "worst_perturbation": "",
        **more,
    }


def _shown(rows: list[dict[str, object]]) -> str:
    return "\n".join(line.text for line in terminal_board(rows, 220))


def test_console_table() -> None:
    text = _shown(
        [
            _row(
                rank=1,
                robust_accuracy_at_fpr_5=0.61234,
                robust_accuracy_low=0.58,
                robust_accuracy_high=0.64,
                worst_auroc=0.5151,
                worst_perturbation="cw",
                mean_auroc_seen=0.99,
                control_flagged_at_fpr_5=0.5,
            ),
            _row(detector="none", rank=np.nan, robust_accuracy_at_fpr_5="0.5", flags=np.nan),
        ]
    )
    first, second = (next(line for line in text.splitlines() if name in line) for name in ("bits", "none"))
    assert first.split() == ["1", "bits", "61.2", "[58.0,", "64.0]", "0.515", "cw", "0.990", "50.0"]
    assert second.split() == ["–", "none", "50.0", "–", "–", "–", "–"]
    assert "nan" not in text


def test_names_are_not_markup_and_control_no_terminal() -> None:
    text = _shown([_row(detector="pgd[eps=8/255]", model="[red]m[/red]\\", flags="a\x1b[2Jb\nc [/x]", worst_auroc=0.5)])
    assert "pgd[eps=8/255]" in text
    assert "[red]m[/red]\\" in text
    assert "\x1b" not in text
    assert "b c [/x]" in text


def _planted(detector: str, rank: int | None, robust: float | None, **more: object) -> dict[str, object]:
    why = "" if rank else "below-floor"
    return _row(detector=detector, rank=rank, robust_accuracy_at_fpr_5=robust, not_ranked_reason=why, **more)


def test_an_upper_bound_is_marked_in_the_table_and_on_the_console(tmp_path: Path) -> None:
    rows = [
        _planted("sure", 1, 0.6, robust_accuracy_is_upper_bound=0),
        _planted("bound", 2, 0.5, robust_accuracy_is_upper_bound=1),
        _planted("unknown", 2, 0.4),
        _planted("empty", None, None),
    ]
    write_csv(tmp_path / "leaderboard.csv", COLUMNS["leaderboard"], rows)
    with (tmp_path / "leaderboard.csv").open(newline="") as stream:
        read: list[dict[str, object]] = [dict(row) for row in csv.DictReader(stream)]
    assert [row["robust_accuracy_is_upper_bound"] for row in read] == ["0", "1", "", ""]
    for shown in (_shown(rows), _shown(read)):
        marked = [line.split() for line in shown.splitlines() if "≤" in line]
        assert marked[0] == ["2", "bound", "≤", "50.0"]
        # What the sign means stands below.
        assert [line[0] for line in marked[1:]] == ["≤"]


def test_a_sentence_for_each_table_stands_below_it() -> None:
    rows = [
        _planted("first", 1, 0.9), _planted("none", 2, 0.1),
        {**_planted("second", 1, 0.5), "model": "mlp"}, {**_planted("none", 1, 0.4), "model": "mlp"},
        {**_planted("third", None, 0.5), "model": "vgg"}, {**_planted("none", 1, 0.4), "model": "vgg", "rank": np.nan},
    ]  # fmt: skip
    cnn, mlp, vgg = verdicts(rows)
    assert cnn == "digits / cnn: " + sentence(Verdict("winner", ("first",), 1))
    assert mlp == "digits / mlp: " + sentence(Verdict("no-better", ("second",), 1))
    assert vgg == "digits / vgg: " + sentence(Verdict("unranked", reason="below-floor"))
    # As read back from a file.
    assert verdicts([{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]) == [cnn, mlp, vgg]
    assert verdicts([]) == []


def test_the_end_of_a_run_shows_the_table_in_its_order_and_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tables").mkdir()
    planted = [
        _planted("b[red]", 1, 0.6, robust_accuracy_is_upper_bound=1), _planted("a", 2, 0.6), _planted("none", 2, 0.6),
        _planted("unranked", None, 0.9), _planted("empty", None, None),
    ]  # fmt: skip
    write_csv(tmp_path / "tables" / "leaderboard.csv", COLUMNS["leaderboard"], planted)
    run: Any = SimpleNamespace(folder=tmp_path, failed={}, skipped={}, computed=1, report=tmp_path / "site")
    show_run(run, "table", quiet=False)
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines()[1:6]]
    assert [row[:2] for row in rows] == [
        ["1", "b[red]"], ["2", "a"], ["2", "none"], ["–", "unranked"], ["–", "empty"],
    ]  # fmt: skip
    assert rows[0][2:4] == ["≤", "60.0"]
    assert "digits / cnn: " + sentence(Verdict("winner", ("b[red]",), 2)) in shown
