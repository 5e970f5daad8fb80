"""The board of a folder of entries: ranked where they compare, listed where not, refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aftershock.harness.cli.main import app
from aftershock.reports.entries.board import NO_TABLE, OTHER_IMAGES, OTHER_NUMBER, Placed, build_board, place_entries
from aftershock.reports.entries.folder import read_folders
from aftershock.reports.entries.images import digest_of
from aftershock.reports.entries.metrics import metrics_of
from aftershock.reports.entries.recomputed import Marks, Recomputed
from aftershock.reports.entries.schema import Claims
from support.entries import RANKED, put, table, with_seed, written
from typer.testing import CliRunner

SEEDS = (0,)


def rows(folder: Path, marks: Marks | None = None) -> dict[str, Placed]:
    return {p.label: p for p in place_entries(read_folders([folder]), marks or Marks({}))}


def test_rows_are_ranked_over_contributors_by_the_rule_of_the_leaderboard(tmp_path: Path) -> None:
    put(tmp_path / "jane", written("none", "Jane", seeds=SEEDS), written("strong", "Jane", passing=0.0, seeds=SEEDS))
    put(tmp_path / "john", written("none", "John", seeds=SEEDS),
        written("weak", "John", passing=1.0, dearer=1.0, seeds=SEEDS),
        written("dear", "John", passing=1.0, dearer=1.5, seeds=SEEDS))  # fmt: skip
    found = rows(tmp_path)
    # Every contributor's run has a row without a detector: one of them stands.
    assert sorted(found) == ["dear", "none", "strong", "weak"]
    ranks = {label: p.ranks.rank for label, p in found.items() if p.ranks is not None}
    accuracy = {label: p.ranks.accuracy_rank for label, p in found.items() if p.ranks is not None}
    assert ranks["strong"] == 1
    assert accuracy["dear"] == accuracy["weak"] == 2
    assert ranks["dear"] < ranks["weak"]
    assert all(p.standing == "claimed" for p in found.values())


def test_what_cannot_be_compared_is_listed_without_a_rank(tmp_path: Path) -> None:
    honest = [written(name, seeds=SEEDS) for name in ("a", "b", "c")]
    flagged = written(
        "flagged",
        seeds=SEEDS,
        claims={
            "flags": "adaptive-incomplete",
            "not_ranked_reason": "adaptive-incomplete",
            "robust_accuracy_is_upper_bound": 1,
        },
    )
    held = table("other", SEEDS)
    wrong = held.seeds[0].scores.right.copy()
    # Another model of the same protocol: it gets another image wrong, outside those of the price.
    at = int(np.flatnonzero(wrong)[-1])
    wrong[at] = False
    lowest = np.where(wrong, held.seeds[0].scores.lowest, np.inf)
    other = written("other", images=with_seed(held, 0, right=wrong, lowest=lowest), seeds=SEEDS)
    bare = written("bare", seeds=SEEDS)
    bare = replace(bare, entry=bare.entry.model_copy(update={"images": None, "images_missing": "lost"}), table=None)
    few = written("few", seeds=SEEDS)
    counted = metrics_of(table("few", SEEDS), "few", RANKED - 10)
    few = replace(few, entry=few.entry.model_copy(update={"metrics": counted}))
    put(tmp_path, *honest, flagged, other, bare, few)
    found = rows(tmp_path)
    assert all(found[name].ranks is not None for name in ("a", "b", "c"))
    assert found["flagged"].reason == "adaptive-incomplete" and found["flagged"].ranks is None
    assert found["other"].reason == OTHER_IMAGES and found["other"].ranks is None
    assert found["bare"].reason == f"{NO_TABLE}: lost"
    assert found["few"].reason == OTHER_NUMBER and found["few"].ranks is None


def test_two_entries_of_one_name_are_told_apart_and_marks_are_shown(tmp_path: Path) -> None:
    paths = put(tmp_path, written("msp", "Jane", seeds=SEEDS), written("msp", "John", passing=0.2, seeds=SEEDS))
    mark = Recomputed(by="A. Referee", date="2026-11-27", robust_accuracy_at_fpr_5=0.5)
    found = rows(tmp_path, Marks({}).with_mark(digest_of(paths[0].read_bytes()), mark))
    assert sorted(found) == ["msp (Jane)", "msp (John)"]
    assert found["msp (Jane)"].standing == "recomputed by A. Referee"
    assert found["msp (John)"].standing == "claimed"


def test_the_site_of_a_board_has_all_rows_and_escapes_what_entries_say(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    put(tmp_path / "in", written("msp", evil, seeds=SEEDS), written("none", evil, seeds=SEEDS))
    (tmp_path / "in" / "bad.json").write_text("{", encoding="utf-8")
    page = build_board(read_folders([tmp_path / "in"]), tmp_path / "site", Marks({}), "Board", [tmp_path / "in"])
    front, entries = (page.with_name(name).read_text(encoding="utf-8") for name in ("index.html", "entries.html"))
    for text in (front, entries):
        assert evil not in text
        assert "msp" in text
    assert "&lt;script&gt;" in entries
    assert "bad.json" in entries and "is not valid JSON" in entries
    assert str(tmp_path) not in entries
    assert "claimed by" in front


@pytest.mark.parametrize("count", [25])
def test_many_entries_make_one_board(tmp_path: Path, count: int) -> None:
    put(tmp_path / "in", *(written(f"d{n}", passing=n / count, seeds=SEEDS) for n in range(count)))
    said = CliRunner().invoke(app, ["board", str(tmp_path / "in"), "--out", str(tmp_path / "site")]).output
    assert f"{count} entries, 0 refused" in said
    assert (tmp_path / "site" / "index.html").is_file()


def test_init_writes_what_a_repository_needs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call = ["board", "init", "--out", "mine", "--name", "My board"]
    assert CliRunner().invoke(app, call).exit_code == 0
    made = {str(p.relative_to("mine")) for p in Path("mine").rglob("*") if p.is_file()}
    assert made == {"README.md", "recomputed.json", "entries/.gitkeep", ".github/workflows/board.yml"}
    workflow = Path("mine/.github/workflows/board.yml").read_text(encoding="utf-8")
    assert "aftershock verify entries" in workflow and "aftershock board entries" in workflow
    assert "is there already" in str(CliRunner().invoke(app, call).exception)
    # What the workflow runs works in the new repository, as soon as it has an entry.
    monkeypatch.chdir(tmp_path / "mine")
    put(
        Path("entries/digits/mlp"),
        written(
            "msp",
            seeds=SEEDS,
            claims=Claims().model_dump() | {"robust_accuracy_is_upper_bound": 0, "surrogate": "exact"},
        ),
    )
    for arguments in (["verify", "entries"], ["board", "entries", "--out", "site"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output


def test_rows_are_written_in_the_form_of_the_hub(tmp_path: Path) -> None:
    evil = 'a" \\u0022: - {x'
    put(tmp_path / "in", written("msp", evil, seeds=SEEDS), written("none", "Jane", seeds=SEEDS))
    call = ["board", str(tmp_path / "in"), "--out", str(tmp_path / "site"), "--hub", "owner/board", "--source",
            "https://example.org/board"]  # fmt: skip
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    files = sorted((tmp_path / "site" / "eval_results").glob("*.yaml"))
    assert len(files) == 2
    yaml: Any = pytest.importorskip("yaml")
    for file, entry in zip(files, sorted(v.entry.stem for v in read_folders([tmp_path / "in"]).entries), strict=True):
        assert file.stem == entry
        [row] = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert row["dataset"] == {"id": "owner/board", "task_id": "digits-mlp-linf-0.1"}
        assert 0 <= row["value"] <= 1 and row["source"] == {"url": "https://example.org/board"}
        assert "protocol" in row["notes"]
    for wrong in (["--hub", "board"], ["--hub", "a/../b"], ["--hub", "owner/board", "--source", "javascript:1"]):
        assert CliRunner().invoke(app, [*call[:4], *wrong]).exit_code != 0
