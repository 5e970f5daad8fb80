"""The site from fabricated run directories: what it shows, escapes and refuses, and how it behaves in a browser."""

from __future__ import annotations

import csv
import errno
import hashlib
import html
import json
import math
import os
import random
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aftershock.harness.cli.board import piped_board, terminal_board
from aftershock.harness.core.errors import AftershockError, UsageError
from aftershock.harness.core.formats import RUN_SCHEMA
from aftershock.harness.evaluation.csv_files import write_csv
from aftershock.harness.evaluation.leaderboard import place
from aftershock.harness.evaluation.results import Cell
from aftershock.harness.evaluation.verdict import Standing, sentence, verdict
from aftershock.reports.published import published
from aftershock.reports.site.build import build_site
from aftershock.reports.site.flags import FLAGS, flags
from aftershock.reports.site.joined_ranks import NO_SCORES
from aftershock.reports.site.leaderboard import BOARD
from aftershock.reports.templates.rendering import json_block
from aftershock.reports.threats import budget
from support.browser import Visit
from support.columns import COLUMNS
from support.reports import DETECTORS, DIGEST, NOT_RANKED, TAPS, Tables, fabricate
from support.sites import assert_whole, models_of, pages_of
from support.tables import read_table

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROPAGATION = ",".join(COLUMNS["propagation"])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return fabricate().write(tmp_path / "run")


@pytest.fixture
def page(run: Path, tmp_path: Path) -> str:
    return build_site([run], tmp_path / "site").read_text("utf-8")


def tables_of(page: str, css_class: str) -> list[list[list[str]]]:
    """The body rows of every table of a class, as texts."""
    found = []
    for table in re.findall(rf'<table class="{css_class}">(.*?)</table>', page, re.S):
        rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table.split("</thead>")[1], re.S)
        cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S) for row in rows]
        found.append([[html.unescape(re.sub(r"<[^>]+>", " ", c)).strip() for c in row] for row in cells])
    return found


def curves_of(site: Path) -> list[dict[str, object]]:
    """The curves on the pages of all models."""
    made: list[dict[str, object]] = []
    for page in models_of(site):
        block = re.search(r'<script type="application/json" id="curve-data">(.*?)</script>', page, re.S)
        assert block
        made += json.loads(block[1])
    return made


@pytest.fixture
def site(page: str, tmp_path: Path) -> Path:
    """The site whose front page is ``page``."""
    return tmp_path / "site"


def test_every_link_leads_into_the_site_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    assert_whole(site)
    assert "plotly" not in (site / "index.html").read_text("utf-8")
    style = (site / "assets/style.css").read_text("utf-8")
    assert "url(" not in style and "@import" not in style


def test_labels_that_are_no_file_names_get_pages_of_their_own(tmp_path: Path) -> None:
    made = fabricate(["cnn"], [0])
    labels = {"latent": "index", "codeshift": "Index", "mahalanobis": "..", "energy": "../../../up", "msp": "a/b",
              "kde": "A B", "fgsm": "INDEX", "pgd": "....", "cw": "con", "deepfool": "x" * 300}  # fmt: skip
    for rows in made.rows.values():
        for row in rows:
            for column in ("detector", "perturbation", "worst_perturbation"):
                if column in row:
                    row[column] = labels.get(str(row[column]), row[column])
            row["model"] = "../index"
    site = build_site([made.write(tmp_path / "run")], tmp_path / "out/site").parent
    assert_whole(site)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["site"]
    names = [p.name.casefold() for p in (site / "detectors").iterdir()]
    assert len(names) == len(set(names)) == 8  # seven detectors and their list
    titles = [re.search(r"<h1>(.*?)</h1>", p.read_text("utf-8")) for p in (site / "detectors").iterdir()]
    shown = {html.unescape(title[1]) for title in titles if title}
    assert {"index", "Index", "..", "../../../up", "a/b", "A B", "Detectors"} <= shown


def test_the_first_view_of_200_rows_is_light(tmp_path: Path) -> None:
    made = fabricate(["cnn"], [0])
    first = {**first_row(made, "latent"), "flags": "control-flagged; benign-flagged"}
    made.rows["leaderboard"] = [{**first, "detector": f"d{i}", "rank": 1 + i} for i in range(420)]
    site = build_site([made.write(tmp_path / "run")], tmp_path / "site").parent
    page = (site / "index.html").read_text("utf-8")
    assert len(board_of(page)) == 200
    loaded = [site / name for name in re.findall(r'(?:src|href)="(assets/[^"]+)"', page)]
    assert len(page) + sum(file.stat().st_size for file in loaded) < 2_000_000
    later = json.loads((site / "data/board.js").read_text("ascii").removeprefix("window.laterRows=").rstrip(";\n"))
    assert len(later["digits-cnn"]) == 220
    assert_whole(site)


def board_of(page: str) -> list[list[str]]:
    """The texts of the first leaderboard."""
    return boards_of(page)[0]


def boards_of(page: str) -> list[list[list[str]]]:
    """The texts of every leaderboard."""
    section = page[page.index('<section id="leaderboard">') : page.index('<section id="about">')]
    return tables_of(section, "sortable")


def classes_of(page: str) -> dict[str, str]:
    """The class of every row of the leaderboards, by detector."""
    rows = re.findall(
        r'<tr(?: class="([^"]*)")?>\s*<td class="number rank".*?class="value">(?:<a[^>]*>)?([^<]*)</span>', page, re.S
    )
    return {detector: css for css, detector in rows}


def test_the_leaderboard_is_ordered_by_rank_and_none_has_its_place_in_it(page: str) -> None:
    boards = boards_of(page)
    assert len(boards) == 2
    for board in boards:
        assert {len(row) for row in board} == {len(BOARD) - 1} == {13}
        names = [row[1].split()[0] for row in board]
        # kde, which is not ranked, has a higher number than the rows above it.
        assert names == ["latent", "codeshift", "mahalanobis", "bits-on-pgd", "energy", "msp", "none", "kde"]
        assert [row[0] for row in board] == ["1", "2", "3", "4", "5", "6", "7", "–"]
    assert "44.7\u202f%" in boards[0][0][2]
    assert page.count('<tr class="ablation">') == 2
    assert page.count('<tr class="unranked">') == 2
    assert page.count("<tbody>") == page.count("<table")
    assert f'title="not ranked: {NOT_RANKED}"' in page


def first_row(made: Tables, detector: str) -> dict[str, object]:
    return next(r for r in made.rows["leaderboard"] if r["detector"] == detector)


def page_of(made: Tables, path: Path) -> str:
    return build_site([made.write(path / "run")], path / "site").read_text("utf-8")


def finding(page: str) -> str:
    """What the page says first of the first model, without tags."""
    found = re.search(r'<p class="finding">(.*?)</p>', page, re.S)
    assert found
    return html.unescape(re.sub(r"<[^>]+>", "", found[1]))


def standings(made: Tables) -> list[Standing]:
    """The rows of the first leaderboard as the verdict reads them."""
    return [
        Standing(
            str(r["detector"]), float(str(r["rank"])) if r.get("rank") else None, str(r.get("not_ranked_reason") or "")
        )
        for r in made.rows["leaderboard"]
    ]


def test_the_summary_names_a_winner_with_its_numbers(tmp_path: Path) -> None:
    made = fabricate(["cnn"], [0])
    found = verdict(standings(made))
    assert (found.kind, found.best) == ("winner", ("latent",))
    text = finding(page_of(made, tmp_path))
    assert sentence(found) in text
    for number in ("44.7\u202f%", "of 200 images, for this seed", "28.7\u202f%", "92.1\u202f%"):
        assert number in text
    assert "at most" not in text


def test_the_summary_names_all_that_share_the_first_rank(tmp_path: Path) -> None:
    made = fabricate(["cnn"])
    for detector in ("latent", "codeshift", "mahalanobis"):
        first_row(made, detector)["rank"] = 1
    found = verdict(standings(made))
    assert (found.kind, len(found.best)) == ("shared", 3)
    text = finding(page_of(made, tmp_path))
    assert sentence(found) in text
    assert "The highest number is that of latent: robust accuracy 44.7\u202f% " in text
    assert "over 2 seeds" in text


def test_no_detector_is_called_the_best_where_none_helps(tmp_path: Path) -> None:
    made = fabricate(["cnn"], [0])
    board = made.rows["leaderboard"]
    for number, row in enumerate(board):
        row.update(robust_accuracy_at_fpr_5=0.0, robust_accuracy_low=0.0, robust_accuracy_high=0.036, rank=1)
        row.update(not_ranked_reason="", mean_auroc_unseen="" if row["detector"] == "none" else 0.5 + number / 100)
    found = verdict(standings(made))
    assert (found.kind, found.ranked) == ("no-better", len(DETECTORS))
    page = page_of(made, tmp_path)
    leader = max((r for r in board if r["detector"] != "none"), key=lambda r: float(str(r["mean_auroc_unseen"])))
    text = finding(page)
    assert sentence(found) in text
    assert f"{leader['detector']} detects most: mean AUROC\xa0{leader['mean_auroc_unseen']:.2f}" in text
    # Rows of one rank and number stand in the order of their names, and none among them.
    names = [row[1].split()[0] for row in board_of(page)]
    assert names == sorted([*DETECTORS, "none"])


def test_the_summary_without_a_rank_says_why(tmp_path: Path) -> None:
    made = fabricate(["cnn"], [0])
    for row in made.rows["leaderboard"]:
        row.update(rank="", not_ranked_reason="below-floor")
    page = page_of(made, tmp_path)
    found = verdict(standings(made))
    assert found.kind == "unranked"
    assert finding(page).endswith(sentence(found))
    assert [row[0] for row in board_of(page)] == ["–"] * 8
    assert page.count('title="not ranked: below-floor"') == 8
    assert set(classes_of(page).values()) == {"unranked", "ablation"}


def test_without_a_rank_of_none_no_winner_is_named(tmp_path: Path) -> None:
    made = fabricate(["cnn"], [0])
    first_row(made, "none").update(rank="", not_ranked_reason="no-attack")
    page = page_of(made, tmp_path)
    assert verdict(standings(made)).kind == "no-better"
    assert "no-attack" in finding(page)
    assert [row[1].split()[0] for row in board_of(page)][-2:] == ["kde", "none"]


def test_numbers_that_can_only_be_too_high_are_marked(page: str, tmp_path: Path) -> None:
    tables = [row[2].split() for board in boards_of(page) for row in board]
    assert not any("most" in cell for cell in tables)
    made = fabricate(["cnn"], [0])
    for detector in ("latent", "kde"):
        first_row(made, detector)["robust_accuracy_is_upper_bound"] = 1
    first_row(made, "msp")["robust_accuracy_is_upper_bound"] = 0
    page = page_of(made, tmp_path / "marked")
    marked = {row[1].split()[0]: " ".join(row[2].split()) for row in board_of(page) if "at most" in row[2]}
    assert marked == {"latent": "at most 44.7 %", "kde": "at most 40.1 %"}
    assert "robust accuracy at most 44.7\u202f%" in finding(page).lower()


def test_a_row_without_an_adaptive_attack_says_so(tmp_path: Path) -> None:
    made = fabricate(["cnn"], [0])
    for row in made.rows["leaderboard"]:
        row.update(rank="", not_ranked_reason="no-adaptive-attack", adaptive_undetected_at_fpr_5="")
        row.update(flags="no-adaptive-attack", robust_accuracy_is_upper_bound=1)
    page = page_of(made, tmp_path)
    badge = f'<a class="badge" href="reading.html#flag-no-adaptive-attack" title="{FLAGS["no-adaptive-attack"][1]}"'
    assert page.count(badge) == 8
    # The flag stands beside the number that it doubts.
    assert all(
        "at most" in row[2] and row[3].split("  ")[0] == "–" and "no adaptive" in row[3] for row in board_of(page)
    )


def test_rows_stand_in_one_order_in_the_table_on_the_console_and_on_the_page(tmp_path: Path) -> None:
    """Planted: ties, rows without a rank, rows without a number, and none in their midst."""
    made = fabricate(["cnn"], [0])
    template: dict[str, Any] = first_row(made, "latent")
    planted: list[tuple[str, float | None, float | None]] = [
        ("zebra", 1, 0.5), ("b-tied", 2, 0.4), ("a-tied", 2, 0.4), ("none", 2, 0.4), ("nearly", 2, 0.4000000001),
        ("last-ranked", 5, 0.1), ("high-unranked", None, 0.9), ("d-unranked", None, 0.2), ("c-unranked", None, 0.2),
        ("y-empty", None, None), ("x-empty", None, None),
    ]  # fmt: skip
    expected = ["zebra", "a-tied", "b-tied", "nearly", "none", "last-ranked", "high-unranked", "c-unranked",
                "d-unranked", "x-empty", "y-empty"]  # fmt: skip
    rows: list[dict[str, Cell]] = [
        {**dict.fromkeys(COLUMNS["leaderboard"]), **{k: v for k, v in template.items() if v != ""}, "detector": d,
         "rank": rank, "robust_accuracy_at_fpr_5": robust, "flags": "", "worst_perturbation": "",
         "not_ranked_reason": "" if rank else "below-floor"}
        for d, rank, robust in planted
    ]  # fmt: skip
    random.Random(3).shuffle(rows)
    ordered = sorted(rows, key=place)
    assert [row["detector"] for row in ordered] == expected
    for lines in (piped_board(ordered), [line.text for line in terminal_board(ordered, 80)][1:]):
        assert [line.split()[1] for line in lines[1 : 1 + len(expected)]] == expected
    assert [row[1] for row in published(ordered).rows] == expected
    # On the page, whatever the order in the file.
    for name, written in (("sorted", ordered), ("shuffled", rows)):
        run = made.write(tmp_path / name)
        write_csv(run / "tables/leaderboard.csv", COLUMNS["leaderboard"], written)
        page = build_site([run], tmp_path / f"site of {name}").read_text("utf-8")
        assert [row[1].split()[0] for row in board_of(page)] == expected
    with (tmp_path / "sorted/tables/leaderboard.csv").open(encoding="utf-8") as stream:
        assert [row["detector"] for row in csv.DictReader(stream)] == expected


def test_matrices_show_the_mean_over_seeds_and_the_reason_where_there_is_no_number(run: Path, site: Path) -> None:
    heat = [table for page in models_of(site) for table in tables_of(page, "heat")]
    assert len(heat) == 8  # four measures for each of two models
    latent = next(row for row in heat[0] if row[0] == "latent")
    wanted = {"detector": "latent", "model": "cnn", "negatives": "clean"}.items()
    own = [r for r in read_table(run, "metrics.csv") if wanted <= r.items()]
    pgd = [float(r["auroc"]) for r in own if r["perturbation"] == "pgd"]
    assert len(pgd) == 2
    assert latent[3].split()[0] == f"{sum(pgd) / 2:.2f}"
    assert "fooling images, 30 are needed" in latent[1]
    bits = next(row for row in heat[0] if row[0] == "bits-on-pgd")
    assert bits[3].startswith("seen") and bits[2].startswith("family seen") and not bits[4].startswith("seen")


def test_curves_are_the_mean_over_seeds_in_order_of_depth(run: Path, site: Path) -> None:
    curves = curves_of(site)
    assert [c["title"] for c in curves] == ["digits / cnn", "digits / mlp"]
    cnn = curves[0]
    assert cnn["taps"] == TAPS["cnn"]
    assert [m[0] for m in cnn["metrics"]] == ["relative_l2", "bit_flip_rate", "cka"]  # type: ignore[attr-defined]
    wanted = {"metric": "relative_l2", "model": "cnn", "perturbation": "pgd", "population": "success"}
    wanted |= {"tap": "head.relu:2"}
    own = [float(r["q95"]) for r in read_table(run, "propagation.csv") if wanted.items() <= r.items()]
    populations = [p[0] for p in cnn["populations"]]  # type: ignore[attr-defined]
    key = [0, populations.index("success"), cnn["perturbations"].index("pgd")]  # type: ignore[attr-defined]
    series = next(s for s in cnn["series"] if s[:3] == key)  # type: ignore[attr-defined]
    assert len(own) == 2
    assert series[5][-1] == pytest.approx(sum(own) / 2, rel=1e-4)
    cka = next(s for s in cnn["series"] if s[0] == 2)  # type: ignore[attr-defined]
    assert set(cka[4]) == {None}


def test_a_failed_detector_is_named_with_its_reason(page: str, site: Path) -> None:
    assert "Incomplete" in page
    runs = (site / "runs.html").read_text("utf-8")
    notes = re.findall(r'<p class="note"><b>autoencoder</b> has no row(.*?)</p>', page)
    assert notes == [".", ": failed: The loss became NaN after 3 epochs."]  # it failed with mlp only
    assert "<code>digits/mlp/1/fit/autoencoder</code></td>" in runs
    assert "1 skipped cell" in runs and '<a href="runs.html#failures">1 failed</a>' in page
    assert "aftershock run quick" in runs and DIGEST in runs and DIGEST in page


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "=cmd|' /C calc'!A0",
    "%{y}<b>x</b>",
    "__proto__",
]


def hostile(tmp_path: Path) -> Path:
    """A run whose every name is an attack, formula-guarded as the tables' writer does it."""
    made = fabricate(["cnn"], [0])
    swap = dict(zip(["pgd", "latent", "codeshift", "fgsm", "cw"], HOSTILE, strict=True))
    for rows in made.rows.values():
        for row in rows:
            for column in ("perturbation", "detector", "worst_perturbation", "flags", "reason"):
                name = swap.get(str(row.get(column)), row.get(column))
                row[column] = f"'{name}" if str(name).startswith(("=", "+", "-", "@")) else name
                if name is None:
                    del row[column]
            row["model"], row["dataset"] = HOSTILE[0], HOSTILE[1]
    for row in made.rows["propagation"]:
        row["tap"] = HOSTILE[1] + str(row["tap"])
        row["metric"] = HOSTILE[0] if row["metric"] == "cka" else row["metric"]
    facts = made.facts
    facts["name"] = HOSTILE[0]
    facts["failures"] = [{"cell": HOSTILE[0], "reason": HOSTILE[1]}, "no object", None]
    facts["warnings"] = [HOSTILE[1], {"not": "text"}]
    facts["versions"] = {HOSTILE[0]: HOSTILE[1]}
    facts["hardware"] = {HOSTILE[1]: HOSTILE[0], "cpu": ["a list"]}
    facts["status"] = HOSTILE[1]
    return made.write(tmp_path / "hostile")


def test_hostile_names_appear_only_escaped(tmp_path: Path) -> None:
    site = build_site([hostile(tmp_path)], tmp_path / "site").parent
    assert_whole(site)
    for path, page in pages_of(site).items():
        assert "<script>alert" not in page and "<img" not in page and "<b>x" not in page, path
        scripts = re.findall(r"<script[^>]*>", page)
        assert all(re.fullmatch(r'<script( type="application/json" id="[a-z-]+"| src="(\.\./)?assets/[a-z.-]+")>', s)
                   for s in scripts), path  # fmt: skip
        assert html.escape(HOSTILE[0]) in page, path
    page = (site / "index.html").read_text("utf-8")
    assert board_of(page)[1][1] == HOSTILE[2]  # the formula guard's apostrophe is gone
    (curves,) = curves_of(site)
    assert curves["perturbations"][2] == HOSTILE[0]  # type: ignore[index]
    assert "aftershock run &#39;&lt;script&gt;alert(1)&lt;/script&gt;&#39;" in (site / "runs.html").read_text("utf-8")
    for file in (site / "data").rglob("*.csv"):
        with file.open(encoding="utf-8", newline="") as stream:
            assert not any(cell.startswith(("=", "+", "@")) for row in csv.reader(stream) for cell in row), file


def test_a_json_block_can_neither_end_nor_open_a_tag() -> None:
    data = {"a": "</script><!--\u2028&", "b": [1.5, None]}
    text = str(json_block(data))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == data
    with pytest.raises(ValueError):
        json_block([math.nan])


def test_runs_of_one_protocol_share_a_leaderboard_without_ranks_where_they_have_no_scores(tmp_path: Path) -> None:
    first, second = fabricate(["cnn"], name="first"), fabricate(["cnn"], name="second")
    for table in ("leaderboard", "metrics"):
        second.rows[table] = [r for r in second.rows[table] if r["detector"] in ("latent", "none", "msp")]
    for row in second.rows["leaderboard"] + second.rows["metrics"]:
        if row["detector"] == "latent":
            row["detector"] = "newcomer"
    for row in second.rows["leaderboard"]:
        if row["detector"] == "newcomer":
            row.update(rank=1, robust_accuracy_at_fpr_5=0.425)
        if row["detector"] == "msp":
            row.update(rank=2, robust_accuracy_at_fpr_5=0.333)
    paths = [first.write(tmp_path / "a"), second.write(tmp_path / "b")]
    page = build_site(paths, tmp_path / "site").read_text("utf-8")
    (board,) = boards_of(page)
    # The ranks of either run are about its own rows alone: tests/reports/test_joined_ranks.py has runs with scores.
    assert [row[0] for row in board] == ["–"] * 10
    assert [row[1].split("  ")[0] for row in board] == ["latent", "codeshift", "newcomer", "mahalanobis", "kde",
        "bits-on-pgd", "energy", "msp", "msp (second, 20 Nov 2026 09:44)", "none"]  # fmt: skip
    assert "joined from 2 runs" in page and "cannot be compared" not in page
    assert page.count(f'title="not ranked: {NO_SCORES}"') == 9
    assert page.count(f'title="not ranked: {NOT_RANKED}"') == 1
    assert NO_SCORES in finding(page)


def test_runs_of_different_protocols_stand_apart(tmp_path: Path) -> None:
    other = fabricate(["cnn"], name="other")
    other.facts["protocol_digest"] = "0" * 64
    for row in other.rows["leaderboard"]:
        row["protocol_digest"] = "0" * 64
    paths = [fabricate(["cnn"]).write(tmp_path / "a"), other.write(tmp_path / "b")]
    page = build_site(paths, tmp_path / "site").read_text("utf-8")
    boards = boards_of(page)
    assert len(boards) == 2
    assert [row[0] for row in boards[0]] == [row[0] for row in boards[1]] == ["1", "2", "3", "4", "5", "6", "7", "–"]
    assert "cannot be compared" in page
    when = "20 Nov 2026 09:44"
    assert [c["title"] for c in curves_of(tmp_path / "site")] == [
        f"digits / cnn (quick, {when}, 5f0c2d9e)", f"digits / cnn (other, {when}, 00000000)"]  # fmt: skip


def test_a_run_with_empty_tables_and_one_with_none(tmp_path: Path) -> None:
    empty = Tables().write(tmp_path / "empty")
    page = build_site([empty], tmp_path / "one").read_text("utf-8")
    assert "nothing to rank yet" in page
    assert not any("plotly" in text for text in pages_of(tmp_path / "one").values())
    assert not list((tmp_path / "one").rglob("*plotly*"))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/run.json").write_text("{}")
    page = build_site([tmp_path / "bare"], tmp_path / "two").read_text("utf-8")
    assert "<h1>bare</h1>" in page
    assert "tables/leaderboard.csv" in (tmp_path / "two/runs.html").read_text("utf-8")


def test_metrics_without_a_row_and_a_detector_without_numbers(tmp_path: Path) -> None:
    made = fabricate(["cnn"], [0])
    made.rows["metrics"] = []
    for row in made.rows["leaderboard"]:
        if row["detector"] == "msp":
            for column in list(row):
                if "accuracy" in column or "auroc" in column or column == "rank":
                    row[column] = ""
            row["not_ranked_reason"] = "pgd is not scored: scores are not finite"
    made.facts["failures"] = [{"cell": "digits/cnn/0/score/msp/pgd", "model": "cnn", "kind": "score", "part": "msp",
                               "reason": "scores are not finite"}]  # fmt: skip
    page = build_site([made.write(tmp_path / "run")], tmp_path / "site").read_text("utf-8")
    board = board_of(page)
    assert board[7][1] == "msp" and board[7][2] == "–"
    assert 'title="not ranked: pgd is not scored: scores are not finite"' in page
    assert 'title="failed: scores are not finite"' in page
    assert "No detector has been measured" in models_of(tmp_path / "site")[0]


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("run.json", b"{", "run.json is not valid JSON"),
        ("run.json", b"[" * 100_000, "run.json is not valid JSON"),
        ("run.json", b"[]", "run.json holds no JSON object"),
        ("run.json", b"\xff\xfe", "run.json is not valid JSON"),
        ("tables/metrics.csv", b"a,b\n1,2\n", "metrics.csv has no column dataset"),
        ("tables/metrics.csv", b"", "metrics.csv is not a table"),
        ("tables/perturbations.csv", b"\xff\xfe\x00", "perturbations.csv is not a table"),
        ("tables/propagation.csv", (PROPAGATION + "\n" + "x," * 40 + "\n").encode(),
         "propagation.csv is not"),
        ("tables/propagation.csv", (PROPAGATION + "\nd,m,0,p,success,deep,t,x,1,1,1,1,1\n").encode(),
         "propagation.csv has 'deep' in column depth, row 2"),
    ],
)  # fmt: skip
def test_malformed_files_are_one_sentence_that_names_them(
    run: Path, tmp_path: Path, file: str, content: bytes, says: str
) -> None:
    (run / file).write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(says)) as caught:
        build_site([run], tmp_path / "site")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "site").exists()


def test_links_out_of_the_run_directory_are_refused(run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.csv"
    shutil.move(run / "tables/metrics.csv", outside)
    (run / "tables/metrics.csv").symlink_to(outside)
    with pytest.raises(UsageError, match="leads out of its"):
        build_site([run], tmp_path / "site")
    (run / "tables/metrics.csv").unlink()
    (run / "tables/metrics.csv").symlink_to(run / "tables/metrics.csv")
    with pytest.raises(UsageError, match="is not a regular file"):
        build_site([run], tmp_path / "site")


def test_pipes_and_oversized_files_are_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "run.json").unlink()
    os.mkfifo(run / "run.json")
    with pytest.raises(UsageError, match="not a regular file"):
        build_site([run], tmp_path / "site")
    (run / "run.json").unlink()
    monkeypatch.setattr("aftershock.reports.read.run_directory.TABLE_LIMIT", 100)
    with pytest.raises(UsageError, match="is larger than"):
        build_site([run], tmp_path / "site")


def test_the_report_is_not_written_through_a_link(run: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (run / "site").symlink_to(elsewhere)
    with pytest.raises(UsageError, match="is a link"):
        build_site([run], run / "site")
    (run / "site").unlink()
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (run / "site").mkdir()
    (run / "site/index.html").symlink_to(precious)
    build_site([run], run / "site")
    assert precious.read_text() == "kept"
    assert not (run / "site/index.html").is_symlink()


@pytest.mark.parametrize(
    "name", ["index.html", "plotly-cartesian.min.js", "style.css", "leaderboard.tex", "files.json"]
)
def test_a_full_disk_leaves_the_old_page_and_no_part(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    build_site([run], site)
    before = {p: p.read_bytes() for p in site.rglob("*") if p.is_file()}
    real = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name.startswith(name):
            real(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(AftershockError, match="No space left") as caught:
        build_site([run], site)
    assert not isinstance(caught.value, UsageError) and "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in site.rglob("*") if p.is_file()} == before


def test_a_table_that_is_not_the_one_of_its_run_is_refused(run: Path, tmp_path: Path) -> None:
    facts = json.loads((run / "run.json").read_text())
    names = ["tables/leaderboard.csv", "tables/metrics.csv"]
    facts["files"] = {n: hashlib.sha256((run / n).read_bytes()).hexdigest() for n in names}
    (run / "run.json").write_text(json.dumps(facts))
    build_site([run], tmp_path / "site")
    state, content = (run / names[0]).stat(), (run / names[0]).read_bytes()
    (run / names[0]).write_bytes(content.replace(b"0.6", b"0.9", 1))
    os.utime(run / names[0], ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(UsageError, match=r"leaderboard\.csv was changed or damaged"):
        build_site([run], tmp_path / "site")
    (run / names[0]).write_bytes(content)
    (run / names[1]).unlink()
    with pytest.raises(UsageError, match=r"metrics\.csv is missing"):
        build_site([run], tmp_path / "site")


def test_a_run_of_a_newer_version_says_who_wrote_it(run: Path, tmp_path: Path) -> None:
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "schema": 7, "versions": {"aftershock": "4.2"}}))
    words = rf"written by aftershock 4\.2, schema 7; this version reads up to {RUN_SCHEMA}"
    with pytest.raises(UsageError, match=words):
        build_site([run], tmp_path / "site")


def test_wrong_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one run"):
        build_site([], tmp_path / "site")
    with pytest.raises(UsageError, match="There is no run directory"):
        build_site([tmp_path / "nowhere"], tmp_path / "site")
    with pytest.raises(UsageError, match="it has neither"):
        build_site([tmp_path], tmp_path / "site")


def test_budgets_and_flags_are_read_as_people_write_them() -> None:
    assert budget("linf", "8/255") == "L∞ ≤ 8/255"
    assert budget("linf", repr(8 / 255)) == "L∞ ≤ 8/255"
    assert budget("linf", "0.125") == "L∞ ≤ 0.125"
    assert budget("linf", "0.2") == "L∞ ≤ 0.2"
    assert budget("l2", "") == "L2, minimised"
    assert budget("", "") == "–"
    assert [f.text for f in flags("over-budget; zero-gradient")] == ["over budget", "zero gradients"]
    assert [f.text for f in flags("stops at 62 %, at a large budget; randomised")] == [
        "stops at 62 %, at a large budget", "randomised"]  # fmt: skip
    assert flags("") == []
    known = flags("weaker-than-one-step:fgsm; below-100-at-largest-budget; adaptive-weaker-than:pgd[eps=0.1]")
    assert [f.full for f in known] == [
        "weaker than one step: fgsm", "below 100 % at the largest budget",
        "adaptive attack is weaker than: pgd[eps=0.1]"]  # fmt: skip
    assert len({f.help for f in known}) == 3 and all(f.help for f in known)


# In a browser


# The figure of curves is there.
DRAWN = "#curve-plot .scatterlayer .trace"
BOARD_READY = "#board-tools:visible"


def detectors(visit: Visit, board: int = 0) -> list[str]:
    """The detectors of a leaderboard, in the order that is seen."""
    table = visit.tab.locator("#leaderboard table").nth(board)
    return table.locator("tbody td.detector .value").all_inner_texts()


def test_in_a_browser_leaderboards_sort_together_and_their_ties_keep_the_order(
    browser: Browser, tmp_path: Path
) -> None:
    made = fabricate()
    for detector in ("codeshift", "mahalanobis"):
        first_row(made, detector)["rank"] = 1
    visit = Visit(browser, build_site([made.write(tmp_path / "run")], tmp_path / "site"), 1400, BOARD_READY)
    tab = visit.tab
    before = detectors(visit)
    heading = tab.locator("#leaderboard table").first.locator("th.worst_auroc")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    expected = ["latent", "mahalanobis", "codeshift", "kde", "bits-on-pgd", "energy", "msp", "none"]
    assert detectors(visit) == detectors(visit, 1) == expected
    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert detectors(visit)[:3] == ["msp", "energy", "bits-on-pgd"] and detectors(visit)[-1] == "none"
    rank = tab.locator("#leaderboard table").first.locator("th.rank")
    assert rank.get_attribute("aria-sort") is None
    rank.locator("button").click()
    assert detectors(visit) == before  # rows that share a rank in their old order; the row without a rank stays last
    assert visit.wrong == []
    assert visit.requests and visit.elsewhere == []


def test_in_a_browser_a_view_of_the_board_has_an_address(browser: Browser, run: Path, tmp_path: Path) -> None:
    index = build_site([run], tmp_path / "site")
    visit = Visit(browser, index, 1400, BOARD_READY)
    tab = visit.tab
    tab.get_by_role("button", name="digits / mlp").click()
    tab.locator("#board-search").fill("s")
    tab.locator("#board-rows").select_option("ranked")
    tab.locator(".columns-menu summary").click()
    tab.locator("#board-columns").get_by_label("Surrogate").uncheck()
    tab.locator("#board-columns input").first.press("Escape")
    tab.locator(".board:visible th.worst_auroc button").click()

    def state(visit: Visit) -> tuple[object, ...]:
        shown = visit.tab.locator(".board:visible")
        return (
            shown.count(), shown.locator("tbody td.detector .value").all_inner_texts(),
            shown.locator("th.surrogate").is_visible(), shown.locator("th.price").count(),
            shown.locator("th.worst_auroc").get_attribute("aria-sort"),
            visit.tab.locator("#board-search").input_value(), visit.tab.locator("#board-count").inner_text(),
        )  # fmt: skip

    first = state(visit)
    # kde has no rank, energy and none hold no s.
    assert first[:3] == (1, ["mahalanobis", "codeshift", "bits-on-pgd", "msp"], False)
    link = tab.locator("#board-link").get_attribute("href")
    assert link and tab.url.endswith(link)
    again = Visit(browser, index, 1400, BOARD_READY)
    again.tab.goto(index.as_uri() + link)
    again.tab.reload()
    again.tab.wait_for_selector(BOARD_READY)
    assert state(again) == first
    tab.locator("#board-reset").click()
    assert tab.locator(".board:visible").count() == 2 and tab.locator("th.surrogate:visible").count() == 2
    assert "16 rows" in tab.locator("#board-count").inner_text()
    # What an address says may be anything.
    again.tab.goto(index.as_uri() + "#board=<b>&sort=__proto__&hide=detector.x&rows=1&q=%3Cscript%3E&dir=%00")
    again.tab.reload()
    assert again.tab.locator(".board:visible").count() == 2 and detectors(again) == []
    assert visit.wrong == [] and again.wrong == []


def test_in_a_browser_later_rows_are_loaded_when_they_are_asked_for(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aftershock.reports.site.boards.ROWS", 10)
    made = fabricate()
    hostile = "<img src=x onerror=alert(1)>"
    for row in made.rows["leaderboard"]:
        if row["detector"] == "msp":
            row.update(detector=hostile, flags="<b>new</b>")
    index = build_site([made.write(tmp_path / "run")], tmp_path / "site")
    page = index.read_text("utf-8")
    assert [len(board) for board in boards_of(page)] == [5, 5]
    visit = Visit(browser, index, 1400, BOARD_READY)
    tab = visit.tab
    assert not any("data/board.js" in url for url in visit.requests)
    assert "10 of 16 rows" in tab.locator("#board-count").inner_text()
    tab.locator(".board .more").first.click()
    tab.wait_for_function("document.querySelectorAll('.board tbody')[0].rows.length == 8")
    assert detectors(visit)[5:] == [hostile, "none", "kde"]
    tab.locator("#board-search").fill("new")
    tab.wait_for_function("document.querySelectorAll('.board:not([hidden]) tbody tr').length == 2")
    assert detectors(visit) == detectors(visit, 1) == [hostile]
    assert tab.locator("img").count() == 0
    assert visit.wrong == [] and visit.elsewhere == []


def test_in_a_browser_files_of_a_leaderboard_are_downloaded(browser: Browser, run: Path, tmp_path: Path) -> None:
    index = build_site([run], tmp_path / "site")
    visit = Visit(browser, index, 1400, BOARD_READY)
    for kind, ending in (("CSV", "csv"), ("Markdown", "md"), ("LaTeX", "tex")):
        link = visit.tab.locator(".board").first.get_by_role("link", name=kind)
        path = link.get_attribute("href")
        assert path and path.startswith("data/") and path.endswith(f".{ending}")
        text = (index.parent / path).read_text("utf-8")
        places = [text.index(name) for name in ("codeshift", "mahalanobis", "energy", "kde")]
        assert places == sorted(places)
    with (index.parent / "data/digits-cnn/leaderboard.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["detector"] for row in rows] == detectors(visit)
    assert float(rows[0]["robust_accuracy_at_fpr_5"]) == 0.447


def test_in_a_browser_a_models_page_switches_its_measures_and_curves(
    browser: Browser, run: Path, tmp_path: Path
) -> None:
    site = build_site([run], tmp_path / "site").parent
    visit = Visit(browser, site / "models/digits-mlp.html", 1400, DRAWN)
    tab = visit.tab
    matrix = tab.locator(".switched").first
    matrix.get_by_role("button", name="TPR at FPR 5 %").click()
    assert matrix.locator(".matrix:visible").get_attribute("data-measure") == "tpr"
    drawn = tab.locator("#curve-plot .scatterlayer path.js-line")
    first = [path.get_attribute("d") for path in drawn.all()]
    tab.select_option("#curve-metric", label="ReLU bits flipped")
    assert tab.locator("#curve-plot").get_attribute("data-metric") == "bit_flip_rate"
    assert [path.get_attribute("d") for path in drawn.all()] != first
    assert "fc8.relu" in tab.locator("#curve-plot").inner_text()
    tab.get_by_role("button", name="Together").click()
    panels = tab.locator("#curve-plot .xaxislayer-above").count()
    tab.locator("#curve-chips").get_by_role("button", name="pgd").click()
    assert panels == 1 and "pgd" not in tab.locator("#curve-plot").inner_text()
    heading = tab.locator("#perturbations table").first.locator("th.success_rate button")
    heading.click()
    assert tab.locator("#perturbations table").first.locator("td.perturbation .value").first.inner_text() == "deepfool"
    assert visit.wrong == []
    assert visit.requests and visit.elsewhere == []


def test_in_a_browser_a_wide_page_shows_every_column_of_the_leaderboard(browser: Browser, tmp_path: Path) -> None:
    made = fabricate()
    for row in made.rows["leaderboard"]:
        row.update(
            price=1.28,
            robust_accuracy_is_upper_bound=1,
            worst_perturbation=f"adaptive@{row['detector']}",
            tpr_at_fpr_1=0.31,
        )
        row.update(flags="control-flagged; benign-flagged; below-floor; adaptive-weaker-than:pgd")
    visit = Visit(browser, build_site([made.write(tmp_path / "run")], tmp_path / "site"), 1400, BOARD_READY)
    boards = visit.tab.locator("#leaderboard .scroll")
    assert boards.count() == 2
    for board in boards.all():
        assert board.evaluate("box => box.scrollWidth - box.clientWidth") <= 0
    assert visit.wrong == []


def test_in_a_browser_narrow_pages_do_not_scroll_sideways_and_show_the_flags(
    browser: Browser, run: Path, tmp_path: Path
) -> None:
    site = build_site([run], tmp_path / "site").parent
    visit = Visit(browser, site / "index.html", 390, BOARD_READY)
    for path in ("models/digits-cnn.html", "detectors/latent.html", "detectors/index.html", "perturbations/pgd.html",
                 "reading.html", "runs.html", "index.html"):  # fmt: skip
        visit.tab.goto((site / path).as_uri())
        assert visit.tab.evaluate("document.documentElement.scrollWidth") <= 390, path
    badge = visit.tab.locator("tr.unranked .badge").first
    box = badge.bounding_box()
    assert box is not None and box["x"] + box["width"] <= 390
    assert visit.wrong == []


def test_in_a_browser_hostile_names_stay_names(browser: Browser, tmp_path: Path) -> None:
    site = build_site([hostile(tmp_path)], tmp_path / "site").parent
    visit = Visit(browser, site / "index.html", 1400, BOARD_READY)
    tab = visit.tab
    one_of_each = {path.partition("/")[0]: path for path in pages_of(site)}
    for path in one_of_each.values():
        tab.goto((site / path).as_uri())
        assert tab.locator("img").count() == 0, path
    (model,) = (path for path in pages_of(site) if path.startswith("models/") and "index" not in path)
    tab.goto((site / model).as_uri())
    tab.wait_for_selector(DRAWN)
    shown = str(tab.locator("#curve-plot").text_content())
    assert HOSTILE[0] in shown and HOSTILE[1] in shown and "<b>x</b>" in shown
    assert tab.locator("#curve-plot a").count() == 0
    assert tab.locator("#curve-metric option", has_text="<script>alert(1)</script>").count() == 1
    tab.mouse.move(*centre_of_first_marker(tab))
    tab.wait_for_selector("#curve-plot .hoverlayer text")
    assert visit.wrong == []


def centre_of_first_marker(tab: Page) -> tuple[float, float]:
    tab.locator("#curve-plot").scroll_into_view_if_needed()
    box = tab.locator("#curve-plot .points path").nth(2).bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
