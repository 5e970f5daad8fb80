"""Ranks of rows from several runs: run directories whose truth is planted, and files that no run writes."""

from __future__ import annotations

import csv
import gzip
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aftershock.harness.core.errors import UsageError
from aftershock.harness.evaluation.csv_files import COLUMNS
from aftershock.harness.evaluation.leaderboard import Protocol
from aftershock.harness.evaluation.tables import (
    leaderboard_rows,
)
from aftershock.reports.read import scores as published
from aftershock.reports.read.run_directory import Row, read_run
from aftershock.reports.read.scores import OTHER_ACCURACY, sample_of
from aftershock.reports.site.build import build_site
from aftershock.reports.site.joined_ranks import NO_SCORES, OTHER_IMAGES, common_ranks
from support.planted_runs import EPS, EVALUATE, RANKED, THREAT, Planted, World, write_run
from support.tables import read_csv


def joined(*paths: Path) -> dict[str, Row]:
    """The rows of several runs whose labels differ, ranked together, by label; ``none`` is the first run's."""
    rows: dict[str, Row] = {}
    origins: dict[str, tuple[Path, str]] = {}
    perturbations: list[Row] = []
    for run in map(read_run, paths):
        perturbations += run.rows("perturbations")
        for row in run.rows("leaderboard"):
            rows.setdefault(row.text("detector"), row)
            origins.setdefault(row.text("detector"), (run.path, row.text("detector")))
    return {row.text("detector"): row for row in common_ranks(list(rows.values()), origins, perturbations)}


def ranks_of(rows: Mapping[str, Row]) -> dict[str, float | None]:
    return {d: row.number("rank") for d, row in rows.items()}


def reason(row: Row) -> str:
    return row.text("not_ranked_reason")


THREE = World(detectors={
    "strong": Planted(0.1), "weak": Planted(0.7), "same": Planted(0.7, same_as="weak"),
    "middle": Planted(0.35, rounded=0.1, beyond=0.2),
})  # fmt: skip


def test_a_better_detector_of_one_run_is_ranked_above_those_of_another(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", THREE.results("weak", "same"))
    b = write_run(tmp_path / "b", THREE.results("strong"))
    found = joined(a, b)
    assert ranks_of(found) == {"strong": 1, "weak": 2, "same": 2, "none": 4}
    assert [reason(row) for row in found.values()] == [""] * 4
    # Each was first in its own run.
    assert read_run(b).rows("leaderboard")[0].number("rank") == 1
    assert read_run(a).rows("leaderboard")[0].number("rank") == 1


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_rows_of_one_run_get_the_ranks_of_the_ranking_itself(tmp_path: Path, seeds: Sequence[int]) -> None:
    world = replace(THREE, seeds=seeds)
    results = world.results(*world.detectors)
    run = write_run(tmp_path / "run", results)
    expected = {str(r["detector"]): r for r in leaderboard_rows(results, THREAT, Protocol("d"), ranked=RANKED)}
    assert len({r["rank"] for r in expected.values()} - {None}) > 2
    assert ranks_of(joined(run)) == {d: r["rank"] for d, r in expected.items()}
    # Two runs with half of the detectors each say the same.
    halves = [write_run(tmp_path / name, world.results(*labels))
              for name, labels in (("a", ("strong", "same")), ("b", ("middle", "weak")))]  # fmt: skip
    assert ranks_of(joined(*halves)) == {d: r["rank"] for d, r in expected.items()}
    scores = published.read_scores(run, "linf")
    assert scores is not None
    kinds = {p.text("perturbation"): p.text("kind") for p in read_run(run).rows("perturbations")}
    for row in read_run(run).rows("leaderboard"):
        sample = sample_of(scores, row.text("detector"), kinds, "linf", float(row.text("eps")), RANKED)
        assert sample is not None
        assert sample.robust.shape == (len(seeds), RANKED)
        assert float(sample.robust.mean()) == pytest.approx(row.number("robust_accuracy_at_fpr_5"), abs=1e-6)


def robust(world: World, d: str, tmp_path: Path) -> float:
    """A detector's robust accuracy from published scores; checked against that of its table."""
    run = write_run(tmp_path / f"run of {d}", world.results(*world.detectors))
    row = next(r for r in read_run(run).rows("leaderboard") if r.text("detector") == d)
    scores = published.read_scores(run, "linf")
    assert scores is not None
    kinds = {p.text("perturbation"): p.text("kind") for p in read_run(run).rows("perturbations")}
    sample = sample_of(scores, d, kinds, "linf", EPS, RANKED)
    assert sample is not None
    share = float(sample.robust.mean())
    assert share == pytest.approx(row.number("robust_accuracy_at_fpr_5"), abs=1e-6)
    return share


def test_rounded_images_count_and_images_beyond_the_threat_do_not(tmp_path: Path) -> None:
    outcome = THREE._outcome(0, "middle")[:RANKED]
    right = THREE.results("middle")[0].sources.evaluate_correct[:RANKED]
    assert {"rounded", "beyond", "passes", "flagged"} == set(outcome)
    expected = np.mean(right & ~np.isin(outcome, ("passes", "rounded")))
    assert robust(THREE, "middle", tmp_path) == pytest.approx(expected)


def test_images_after_those_that_the_ranking_is_about_do_not_count(tmp_path: Path) -> None:
    world = World(detectors={"early": Planted(0.0, ranked_only=True)})
    right = world.results("early")[0].sources.evaluate_correct
    assert robust(world, "early", tmp_path) == pytest.approx(right[:RANKED].mean())
    assert robust(World(detectors={"late": Planted(0.0)}), "late", tmp_path) == pytest.approx(right[:RANKED].mean())


def test_an_attack_that_knows_another_detector_does_not_count(tmp_path: Path) -> None:
    world = World(detectors={"b": Planted(0.2), "ab": Planted(0.9)})
    right = world.results("b")[0].sources.evaluate_correct[:RANKED]
    expected = np.mean(right & (world._outcome(0, "b")[:RANKED] == "flagged"))
    # adaptive@ab, which ends like adaptive@b but for the separator, passes b on every image.
    assert robust(world, "b", tmp_path) == pytest.approx(expected)


def test_none_is_as_safe_as_the_attacks_leave_it(tmp_path: Path) -> None:
    world = World(fooled=0.6, detectors={"strong": Planted(0.05)})
    fooled = world.draw(0, "pgd", EVALUATE)[:RANKED] < 0.6
    right = world.results("strong")[0].sources.evaluate_correct[:RANKED]
    assert robust(world, "none", tmp_path) == pytest.approx(np.mean(right & ~fooled))


def test_none_is_fooled_by_an_attack_that_its_first_detector_did_not_score(tmp_path: Path) -> None:
    results = THREE.results("weak", "strong")
    first, second = results[0].detectors
    left = {label: of for label, of in first.perturbed.items() if label != "pgd"}
    results = [replace(results[0], detectors=[replace(first, perturbed=left), second])]
    run = write_run(tmp_path / "run", results)
    found = joined(run)
    assert ranks_of(found) == {"strong": 1, "none": 2, "weak": None}
    assert "pgd is not scored" in reason(found["weak"])


def test_rows_without_a_rank_in_their_run_get_none_and_keep_their_reason(tmp_path: Path) -> None:
    world = World(detectors={"strong": Planted(0.1), "blind": Planted(0.0, flags=("score-depends-on-batch",))})
    a = write_run(tmp_path / "a", world.results("strong"))
    b = write_run(tmp_path / "b", world.results("blind"))
    found = joined(a, b)
    assert ranks_of(found) == {"strong": 1, "none": 2, "blind": None}
    assert reason(found["blind"]) == "score-depends-on-batch"


def test_runs_without_scores_and_of_other_images_have_no_rank_and_a_reason(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", THREE.results("strong", "middle"))
    b = write_run(tmp_path / "b", THREE.results("weak"))
    (b / "tables/scores.csv.gz").unlink()
    c = write_run(tmp_path / "c", THREE.results("same"), ranked=80)
    found = joined(a, b, c)
    assert ranks_of(found) == {"strong": 1, "middle": 2, "none": 3, "weak": None, "same": None}
    assert (reason(found["weak"]), reason(found["same"])) == (NO_SCORES, OTHER_IMAGES)
    # The rank in the table of such a run is about its own rows alone.
    assert [r.number("rank") for r in read_run(b).rows("leaderboard")] == [1, 2]


def test_a_table_that_its_scores_do_not_give_has_no_rank(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", THREE.results("strong"))
    b = write_run(tmp_path / "b", THREE.results("weak"), robust_accuracy_at_fpr_5=0.99)
    found = joined(a, b)
    assert ranks_of(found) == {"strong": 1, "none": 2, "weak": None}
    assert reason(found["weak"]) == OTHER_ACCURACY


def rewrite(run: Path, change: Callable[[list[dict[str, str]]], list[dict[str, str]]], columns: Sequence[str]) -> None:
    """Change the rows of a run's scores."""
    file = run / "tables/scores.csv.gz"
    rows = change(read_csv(file))
    with gzip.open(file, "wt", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("column", ["success", "linf", "prediction"])
def test_scores_of_an_older_version_give_no_rank(tmp_path: Path, column: str) -> None:
    a, b = (write_run(tmp_path / d, THREE.results(d)) for d in ("strong", "weak"))
    rewrite(b, lambda rows: rows, [c for c in COLUMNS["scores"] if c != column])
    found = joined(a, b)
    assert (found["weak"].number("rank"), reason(found["weak"])) == (None, NO_SCORES)
    assert found["strong"].number("rank") == 1


CHANGES: dict[str, Callable[[dict[str, str]], dict[str, str] | None]] = {
    "no calibrate image": lambda r: None if r["set"] == "calibrate" else r,
    "few calibrate images": lambda r: None if r["set"] == "calibrate" and int(r["index"]) > 50 else r,
    "no clean image": lambda r: None if r["set"] == "clean" else r,
    "a calibrate score is missing": lambda r: r | {"score": "" if r["set"] + r["index"] == "calibrate7" else "1"},
    "a calibrate score is infinite": lambda r: r | ({"score": "inf"} if r["set"] == "calibrate" else {}),
    "clean scores are missing": lambda r: r | ({"score": ""} if r["set"] == "clean" else {}),
    "scores of attacks are missing": lambda r: r | ({"score": ""} if r["set"] == "perturbed" else {}),
    "another model": lambda r: r | {"model": "mlp"},
    "another detector": lambda r: r | {"detector": "weaker"},
    "nothing at all": lambda r: None,
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_scores_that_are_incomplete_give_no_rank(
    tmp_path: Path, change: Callable[[dict[str, str]], dict[str, str] | None]
) -> None:
    a, b = (write_run(tmp_path / d, THREE.results(d)) for d in ("strong", "weak"))
    rewrite(b, lambda rows: [new for r in rows if (new := change(r)) is not None], COLUMNS["scores"])
    found = joined(a, b)
    assert found["weak"].number("rank") is None
    assert reason(found["weak"]) in (NO_SCORES, OTHER_ACCURACY)
    assert ranks_of(found) | {"weak": None} == {"strong": 1, "none": 2, "weak": None}


def test_seeds_of_other_numbers_of_calibrate_images_give_no_rank(tmp_path: Path) -> None:
    world = replace(THREE, seeds=(0, 1))
    a, b = (write_run(tmp_path / d, world.results(d)) for d in ("strong", "weak"))
    more = lambda rows: [*rows, *(r for r in rows if r["set"] == "calibrate" and r["seed"] == "1")]  # noqa: E731
    rewrite(b, more, COLUMNS["scores"])
    assert ranks_of(joined(a, b)) == {"strong": 1, "none": 2, "weak": None}


@pytest.mark.parametrize(
    "columns",
    [{"norm": n} for n in ("score", "set", "index", "success", "../x", "")]
    + [{"eps": e} for e in ("eight", "8/255", "nan", "inf", "-1", "")]
    + [{"n_images": n} for n in ("", 0, -5, 1e300, 0.5)],
    ids=str,
)
def test_a_threat_or_a_number_of_images_that_is_none_gives_no_rank(tmp_path: Path, columns: dict[str, Any]) -> None:
    a = write_run(tmp_path / "a", THREE.results("strong", "middle"))
    b = write_run(tmp_path / "b", THREE.results("weak"), **columns)
    found = joined(a, b)
    assert found["weak"].number("rank") is None
    assert reason(found["weak"]) in (NO_SCORES, OTHER_ACCURACY, OTHER_IMAGES)
    assert found["strong"].number("rank") == 1


def test_cells_beyond_the_header_move_no_column(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / d, THREE.results(d)) for d in ("strong", "weak"))
    expected = ranks_of(joined(a, b))
    file = b / "tables/scores.csv.gz"
    first, *rows = gzip.decompress(file.read_bytes()).decode().splitlines()
    file.write_bytes(gzip.compress("\n".join([first, *(f"{row},more" for row in rows)]).encode()))
    assert ranks_of(joined(a, b)) == expected


# Files that no run writes


def refused(tmp_path: Path, make: Callable[[Path], object]) -> str:
    """The message about a run whose scores file is not what a run writes."""
    a, b = (write_run(tmp_path / d, THREE.results(d)) for d in ("strong", "weak"))
    file = b / "tables/scores.csv.gz"
    file.unlink()
    make(file)
    with pytest.raises(UsageError, match=re.escape(str(file))) as caught:
        build_site([a, b], tmp_path / "site")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "site").exists()
    return str(caught.value)


def test_links_and_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside.csv.gz"
    outside.write_bytes(gzip.compress(b"secret,success\n1,1\n"))
    assert "secret" not in refused(tmp_path / "1", lambda file: file.symlink_to(outside))
    assert "regular file" in refused(tmp_path / "2", lambda file: file.symlink_to(file))
    assert "leads out" in refused(tmp_path / "3", lambda file: file.symlink_to(tmp_path / "nowhere"))
    assert "regular file" in refused(tmp_path / "4", lambda file: file.mkdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    assert "regular file" in refused(tmp_path, os.mkfifo)


HEADER = ",".join(COLUMNS["scores"])
LINE = "digits,cnn,0,none,weak,{index},1,1,1,calibrate,{score},0,,,,,"
BODY = "\n".join([HEADER, *(LINE.format(index=i, score=i / 7) for i in range(5000))]).encode()
WHOLE = gzip.compress(BODY)
BROKEN = {
    "no gzip": BODY,
    "an empty file": b"",
    "an empty table": gzip.compress(b""),
    "a cut stream": WHOLE[: len(WHOLE) // 2],
    "a changed stream": WHOLE[:200] + bytes(64) + WHOLE[264:],
    "a wrong checksum": WHOLE[:-8] + bytes(8),
    "other bytes after the end": WHOLE + b"more",
    "no UTF-8": gzip.compress(BODY + b"\n\xff\xfe,\xff"),
    "text as a number": gzip.compress(f"{HEADER}\n{LINE.format(index=1, score='high')}\n".encode()),
    "an index beyond 64 bits": gzip.compress(f"{HEADER}\n{LINE.format(index=10**30, score=1)}\n".encode()),
    "an index that is empty": gzip.compress(f"{HEADER}\n{LINE.format(index='', score=1)}\n".encode()),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_malformed_file_is_one_sentence_that_names_it(tmp_path: Path, content: bytes) -> None:
    assert "not a table that can be read" in refused(tmp_path, lambda file: file.write_bytes(content))


def test_files_that_unpack_to_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = gzip.compress(f"{HEADER}\n".encode() + (LINE.format(index=1, score=1) + "\n").encode() * 100_000)
    monkeypatch.setattr(published, "_MOST_BYTES", 1_000_000)
    assert len(bomb) < 50_000
    refused_as = refused(tmp_path / "1", lambda file: file.write_bytes(bomb))
    assert "more than a report reads" in refused_as
    monkeypatch.setattr(published, "_LONGEST_LINE", 10_000)
    line = gzip.compress(f"{HEADER}\n".encode() + b"x" * 100_000)
    assert "a line that is longer" in refused(tmp_path / "2", lambda file: file.write_bytes(line))
    monkeypatch.setattr(published, "_MOST_PACKED", 200_000)
    assert "is larger than" in refused(tmp_path / "3", lambda file: file.write_bytes(bytes(200_001)))


# On the page


def board_of(page: str) -> list[tuple[str, str]]:
    """Rank and detector of every row of the first leaderboard, in its order."""
    (table,) = re.findall(r'<table class="sortable">(?:(?!</table>).)*Leaderboard of .*?</table>', page, re.S)
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table.split("</thead>")[1], re.S)
    return [
        (re.sub(r"<[^>]+>", "", re.search(r'<td class="number rank".*?</td>', row, re.S)[0]).strip(),  # type: ignore[index]
         re.search(r'<td class="text detector".*?class="value">(?:<a[^>]*>)?(.*?)<', row, re.S)[1])  # type: ignore[index]
        for row in rows
    ]  # fmt: skip


def test_the_page_shows_the_common_ranks_and_names_the_winner(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", THREE.results("weak", "middle"))
    b = write_run(tmp_path / "b", THREE.results("strong", "weak"))
    page = build_site([a, b], tmp_path / "site").read_text("utf-8")
    assert "joined from 2 runs" in page
    # weak and none are the same in both: one row each.
    assert board_of(page) == [("1", "strong"), ("2", "middle"), ("3", "weak"), ("4", "none")]
    assert "strong is alone on the first rank" in page


def test_two_detectors_of_one_name_are_two_rows(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", THREE.results("weak"))
    other = replace(THREE, detectors={"weak": Planted(0.05)})
    b = write_run(tmp_path / "b", other.results("weak"))
    page = build_site([a, b], tmp_path / "site").read_text("utf-8")
    assert board_of(page) == [("1", "weak (b)"), ("2", "weak"), ("3", "none")]


def test_a_row_without_scores_says_so_where_its_rank_would_be(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", THREE.results("weak"))
    b = write_run(tmp_path / "b", THREE.results("strong"))
    (b / "tables/scores.csv.gz").unlink()
    page = build_site([a, b], tmp_path / "site").read_text("utf-8")
    assert board_of(page) == [("1", "weak"), ("2", "none"), ("–", "strong")]
    assert f'title="not ranked: {NO_SCORES}"' in page
