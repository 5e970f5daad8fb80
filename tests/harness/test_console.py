"""What the command line prints of a leaderboard, as text and as data, and what it asks of its rows."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
from aftershock.harness.cli.board import piped_board, terminal_board
from aftershock.harness.cli.gates import Gate, check_gates
from aftershock.harness.cli.main import app, main
from aftershock.harness.core.errors import UsageError
from aftershock.harness.evaluation.csv_files import COLUMNS, write_csv
from aftershock.reports.published import COLUMNS as PUBLISHED
from aftershock.reports.published import best_rows, doubts, letter, published
from aftershock.reports.text_tables import TextTable, latex, markdown, plain, width
from support.commands import Forks
from typer.testing import CliRunner

LONG = "a-detector-with-a-name-of-more-than-forty-letters"


def row(detector: str, rank: int | None = 1, robust: float | None = 0.5, **more: object) -> dict[str, object]:
    numbers = {"rank": rank, "robust_accuracy_at_fpr_5": robust, "robust_accuracy_low": 0.105,
               "robust_accuracy_high": 0.6, "worst_auroc": 0.515, "worst_perturbation": "cw", "n_images": 200,
               "mean_auroc_unseen": 0.7, "mean_auroc_seen": 0.9, "control_flagged_at_fpr_5": 0.051, "seeds": "0 1",
               "benign_flagged_at_fpr_5": 0.02, "adaptive_undetected_at_fpr_5": 0.4, "norm": "linf",
               "eps": 8 / 255, "flags": "", "not_ranked_reason": "" if rank else "below-floor"}  # fmt: skip
    given = {"dataset": "cifar10", "model": "resnet20", "detector": detector}
    return {**dict.fromkeys(COLUMNS["leaderboard"]), **numbers, **given, **more}


def board(count: int, **more: object) -> list[dict[str, object]]:
    return [*(row(f"detector-{i:02}", i + 1, 0.9 - i / 50, **more) for i in range(count)), row("none", count + 1, 0.0)]


def read_back(rows: list[dict[str, object]], path: Path) -> list[dict[str, str]]:
    write_csv(path, COLUMNS["leaderboard"], rows)
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("columns", [80, 100, 130, 200])
@pytest.mark.parametrize("priced", [False, True])
def test_a_row_is_a_line_that_fits_the_terminal(columns: int, priced: bool) -> None:
    price = {"price": 1.25, "price_low": 1.1, "price_high": 1.4} if priced else {}
    rows = board(30, flags="control-flagged; ties-at-threshold", **price)
    rows[3]["flags"] = "weaker-than-one-step:fgsm; benign-flagged"
    lines = [line.text for line in terminal_board(rows, columns)]
    assert max(map(width, lines)) <= columns
    shown = {line.split()[1]: line for line in lines[2:33]}
    assert list(shown) == [str(r["detector"]) for r in rows]
    head = lines[1]
    # The most important columns are there, whatever the width; the flags stand beside the number that they doubt.
    wanted = ["rank", "detector", "robust acc. %", "flags", *(["price"] if priced else []), "worst", "unseen"]
    places = [head.index(title) for title in wanted]
    assert places == sorted(places)
    assert ("benign %" in head) == (columns >= 100)
    assert not priced or "1.25" in shown["detector-00"]
    assert ("worst on" in head) == (columns >= 130)


def test_names_are_never_cut_or_folded() -> None:
    rows = [row(LONG), row("none", 2, 0.1)]
    lines = [line.text for line in terminal_board(rows, 40)]
    assert lines[2].split()[:5] == ["1", LONG, "50.0", "[10.5,", "60.0]"]
    assert lines[1].split() == ["rank", "detector", "robust", "acc.", "%"]


def test_each_model_has_its_table_under_what_it_is_about_and_its_verdict() -> None:
    rows = [row("best", 1), row("none", 2, 0.1), row("other", 1, model="vgg"), row("none", 1, 0.5, model="vgg")]
    lines = [line.text for line in terminal_board(rows, 100)]
    titles = [i for i, line in enumerate(lines) if line.startswith("cifar10 / ")]
    assert [lines[i] for i in titles] == [
        f"cifar10 / {model}, L∞ ≤ 8/255, 200 images, seeds 0, 1" for model in ("resnet20", "vgg")
    ]
    first, second = lines[titles[0] : titles[1]], lines[titles[1] :]
    assert "best is alone on the first rank." in " ".join(first)
    assert "significantly better than no detector" in " ".join(second)
    # A winner is set off; where no detector at all is as good, nothing is.
    bold = [line.text.split()[1] for line in terminal_board(rows, 100) if line.bold and line.text[:1] == " "]
    assert bold == ["best"]


def test_a_flag_of_all_rows_stands_once_and_others_by_letter() -> None:
    flags = "adaptive-incomplete; at the large budget: 3 of 48; below-floor"
    rows = [row("a", None, flags=flags), row("b", None, flags=f"{flags}; benign-flagged"), row("none", 1)]
    found = doubts(rows)
    assert found.common == ("adaptive-incomplete", "below-floor")
    assert found.marked == ("benign-flagged",)
    assert [found.marks(i) for i in range(3)] == ["", "a", ""]
    for lines in ([line.text for line in terminal_board(rows, 100)], piped_board(rows)):
        text = "\n".join(lines)
        assert text.count("adaptive-incomplete: ") == 1 and text.count("benign-flagged: ") == 1
    assert [letter(i) for i in (0, 25, 26, 27, 52)] == ["a", "z", "aa", "ab", "ba"]


def test_a_pipe_gets_plain_text_with_every_column() -> None:
    rows = [row("best", 1), row("none", 2, 0.1, model="vgg")]
    lines = piped_board(rows)
    assert lines[0].split()[:4] == ["rank", "model", "detector", "robust"]
    assert lines[0].split()[-4:] == ["control", "%", "benign", "%"]
    assert not set("".join(lines)) & set("│┃━─┏\x1b")
    assert lines[1].split()[:3] == ["1", "resnet20", "best"]


def test_an_empty_board_is_no_error() -> None:
    assert terminal_board([], 80) == []
    assert piped_board([])[0].split()[:2] == ["rank", "detector"]
    assert published([]).rows == ()


def test_published_rows_are_the_same_of_a_frame_and_of_a_file(tmp_path: Path) -> None:
    rows = [row("best", 1, robust_accuracy_is_upper_bound=1), row("none", 2, 0.1), row("empty", None, None)]
    read = read_back(rows, tmp_path / "leaderboard.csv")
    table = published(pd.read_csv(tmp_path / "leaderboard.csv"))
    assert table == published(read) == published(rows)
    assert table.caption == "cifar10 / resnet20, L∞ ≤ 8/255, 200 images, seeds 0, 1"
    assert table.rows[0][:3] == ("1", "best", "≤ 50.0 [10.5, 60.0]")
    assert table.best == best_rows(rows) == {0}
    assert any(note.startswith("≤: ") for note in table.notes)
    assert [column for column in table.columns if "Model" in column or "Data" in column] == []
    assert set(table.columns) <= {column.title for column in PUBLISHED.values()} | {"Notes"}


def test_a_board_of_an_older_run_lacks_columns_and_is_shown() -> None:
    later = ("not_ranked_reason", "robust_accuracy_is_upper_bound", "n_images", "series_digest", "price")
    rows = [{name: cell for name, cell in row(label).items() if name not in later} for label in ("a", "none")]
    assert [cells[1] for cells in published(rows).rows] == ["a", "none"]
    assert [line.text.split()[1] for line in terminal_board(rows, 80)[2:4]] == ["a", "none"]


HOSTILE = ("|a|", "a_b*c`d", "<script>", "[x](y)", "5% & $x^2 #~{}\\", "new\nline", "a--b", "\x1b[2J", "*", "[")


def test_nothing_in_a_cell_means_anything_to_markdown() -> None:
    table = TextTable(("name", "n"), tuple((text, "1") for text in HOSTILE), caption="a | b", notes=("<b>",))
    lines = markdown(table).splitlines()
    assert lines[0] == r"a \| b" and lines[-1] == r"\<b\>"
    assert lines[3] == "| --- | ---: |"
    for line in lines[4 : 4 + len(HOSTILE)]:
        assert len([c for i, c in enumerate(line) if c == "|" and line[i - 1] != "\\"]) == 3
        assert "\x1b" not in line and "<" not in line.replace(r"\<", "")


def test_nothing_in_a_cell_means_anything_to_latex() -> None:
    table = TextTable(("a_b", "n"), tuple((text, "≤ 1.5") for text in HOSTILE), frozenset({0}), caption="50 %")
    text = latex(table, label="tab:x}y")
    assert r"\caption{50 \%}" in text and r"\label{tab:xy}" in text
    assert r"\begin{tabular}{@{}lr@{}}" in text and text.count(r"\\") == 1 + len(HOSTILE)
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert r"\textbf{\textbar{}a\textbar{}} & \textbf{$\leq$ 1.5} \\" in body
    assert r"5\% \& \$x\textasciicircum{}2 \#\textasciitilde{}\{\}\textbackslash{}" in body
    assert "a-{}-b" in body and r"\_" in body
    # After the end of a row, a bracket would be read as a length, and a star as part of it.
    assert all(not line.startswith(("[", "*")) for line in body.splitlines())


def test_frames_are_written_with_missing_cells_as_dashes() -> None:
    frame = pd.DataFrame({"name": ["a", "b"], "value": [0.123456, None], "count": [1, 20]})
    assert markdown(frame).splitlines()[2:] == ["| a | 0.1235 | 1 |", "| b | – | 20 |"]
    assert plain(frame) == ["name   value  count", "a     0.1235      1", "b          –     20"]
    assert r"\begin{table}" not in latex(frame)
    with pytest.raises(ValueError, match="2 cells"):
        TextTable(("a",), (("b", "c"),))


@pytest.fixture(scope="module")
def finished(quick_run: Path) -> tuple[str, ...]:
    """The command that finds the shared run finished."""
    only = ("--only", "digits/cnn/0/[csf][hca]", "--device", "cpu", "--out", "run")
    return ("run", "quick.toml", *only)


def ask(forks: Forks, quick_run: Path, *arguments: str) -> Any:
    base = quick_run.parents[1]
    return forks(*arguments, cwd=quick_run.parent, AFTERSHOCK_CACHE=str(base / "quick-cache"), COLUMNS="100")


def test_a_finished_run_is_printed_as_data(finished: tuple[str, ...], quick_run: Path, forks: Forks) -> None:
    written = (quick_run / "tables" / "leaderboard.csv").read_text(encoding="utf-8")
    detectors = [r["detector"] for r in csv.DictReader(io.StringIO(written))]
    hows = ("csv", "json", "markdown", "latex")
    said = {how: ask(forks, quick_run, *finished, "-q", "--format", how) for how in hows}
    assert [done.status for done in said.values()] == [0] * 4
    assert said["csv"].output == written
    value = json.loads(said["json"].output)
    assert [r["detector"] for r in value["leaderboard"]] == detectors
    assert isinstance(value["leaderboard"][0]["robust_accuracy_at_fpr_5"], float) and value["verdicts"]
    assert value["computed"] == 0 and Path(value["report"]).is_file()
    shown = [line.split(" | ")[1].strip("*") for line in said["markdown"].output.splitlines() if line[:1] == "|"]
    assert shown[2:] == detectors
    assert r"\toprule" in said["latex"].output


def test_a_finished_run_says_what_it_is_about_and_what_to_do_next(
    finished: tuple[str, ...], quick_run: Path, forks: Forks
) -> None:
    done = ask(forks, quick_run, *finished)
    lines = done.output.splitlines()
    assert done.status == 0 and any(line.startswith(("Nothing was missing", "No cell was missing")) for line in lines)
    assert any(line.startswith("digits / cnn, L∞ ≤ 0.2, 50 images, seed 0: ") for line in lines)
    assert "Report: run/site/index.html" in lines and lines[-1].startswith("Next: ")
    quiet = ask(forks, quick_run, *finished, "--quiet").output.splitlines()
    assert not any(line.startswith(("Report:", "Next:", "Nothing", "No cell")) for line in quiet)


def test_a_gate_fails_the_rows_that_have_less(finished: tuple[str, ...], quick_run: Path, forks: Forks) -> None:
    with (quick_run / "tables" / "leaderboard.csv").open(newline="", encoding="utf-8") as stream:
        below = [r for r in csv.DictReader(stream) if r["detector"] != "none" and float(r["worst_auroc"]) < 0.99]
    junit = quick_run.parent / "report.xml"
    gates = ("--fail-under", "worst_auroc=0.99", "--fail-under", "mahalanobis:robust_accuracy=0", "--junit", str(junit))
    done = ask(forks, quick_run, *finished, "-q", *gates)
    problems = [line for line in done.output.splitlines() if line.startswith("--fail-under: ")]
    assert below and done.status == 1
    assert [line.split(" / ")[2].partition(":")[0] for line in problems] == [r["detector"] for r in below]
    root = ElementTree.parse(junit).getroot()
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("4", str(len(below)), "0")
    assert len(root.findall(".//failure")) == len(below)
    assert ask(forks, quick_run, *finished, "-q", "--fail-under", "robust_accuracy=0").status == 0


def test_a_row_without_the_number_fails_and_so_does_a_detector_that_is_not_there(tmp_path: Path) -> None:
    rows = read_back([row("a", None, None), row("none", 1, 0.0)], tmp_path / "leaderboard.csv")
    gates = [Gate.parse(text) for text in ("robust_accuracy=0", "b:price=1", "none:robust_accuracy=0")]
    found = check_gates(rows, gates)
    assert [bool(one.problem) for one in found] == [True, True, False]
    assert "below-floor" in found[0].problem and "'b'" in found[1].problem


@pytest.mark.parametrize("text", ["robust_accuracy", "robust_accuracy=", "=1", "robust_acuracy=1", "flags=1", "x=nan"])
def test_a_gate_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--fail-under"):
        Gate.parse(text)
    if text == "robust_acuracy=1":
        with pytest.raises(UsageError, match="did you mean 'robust_accuracy'"):
            Gate.parse(text)


@pytest.mark.parametrize("wrong", [["run", "quick", "--workers", "two"], ["plan", "quick", "--limit", "1.5"],
                                   ["list", "detektors"], ["run", "quick", "--junit", "x.xml"],
                                   ["run", "quick", "--fail-under", "nothing=1"]])  # fmt: skip
def test_a_mistake_is_one_sentence(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(wrong)
    said = capsys.readouterr()
    assert end.value.code == 2 and not said.out
    assert len(said.err.splitlines()) == 1 and any(word in said.err for word in wrong[1:])


@pytest.mark.parametrize("kind", ["detector", "perturbation", "model", "dataset", "analysis", "suite"])
def test_kinds_are_listed_in_the_singular_too(kind: str) -> None:
    plural = {"analysis": "analyses"}.get(kind, f"{kind}s")
    one, many = (CliRunner().invoke(app, ["list", given, "--json"]) for given in (kind, plural))
    assert one.exit_code == 0 and one.stdout == many.stdout


def test_help_cuts_no_sentence_and_no_command_means_help() -> None:
    help_text = CliRunner().invoke(app, ["--help"]).stdout
    assert "--install-completion" in help_text
    assert not [line for line in help_text.splitlines()[1:] if line.endswith("...")]
    for group in ([], ["cache"], ["guard"]):
        alone = CliRunner().invoke(app, group)
        assert alone.exit_code == 2 and "Commands:" in alone.output


def test_completion_knows_suites_and_kinds() -> None:
    for words, wanted in (("aftershock run qu", "quick"), ("aftershock list detec", "detector")):
        environment = {"_AFTERSHOCK_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "2"}
        found = CliRunner().invoke(app, [], prog_name="aftershock", env=environment)
        assert wanted in found.stdout.split()
