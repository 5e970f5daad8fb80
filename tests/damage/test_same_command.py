"""A run directory or a cache is damaged, and the same command is given again.

It ends with what an undamaged run shows, or says in a sentence what is wrong. With ``AFTERSHOCK_DAMAGE`` set, every
operation meets every kind of file, and every field of every kind of JSON file is edited; otherwise some of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from support.cells import artifact, ledger, lines
from support.commands import Forks
from support.damage import Differences, Edits, Operation
from support.tables import share_secret

FILES = (
    "run.json", "keys.txt", "tables/leaderboard.csv", "tables/scores.csv.gz", "tables/timings.csv",
    "analyses/*/findings.json", "analyses/*/arrays.safetensors", "analyses/*/rdm-pairs.csv", "site/index.html",
    "site/analyses/*.html", "site/assets/style.css", "site/assets/plotly.min.js",
)  # fmt: skip
KINDS = ("model", "fit", "score", "analysis")


class Place:
    """A damaged copy of a run and its cache, and the command that made them."""

    def __init__(
        self, origin: Path, folder: Path, forks: Forks, differences: Differences, counts: dict[str, int]
    ) -> None:
        self.origin, self.folder, self._forks, self._differences = origin, folder, forks, differences
        self.counts, self._number = counts, 0

    def fresh(self, *names: str) -> Path:
        """A folder with undamaged copies."""
        self._number += 1
        folder = self.folder / str(self._number)
        folder.mkdir()
        shutil.copy(self.origin / "suite.toml", folder)
        for name in names:
            shutil.copytree(self.origin / name, folder / name)
        return folder

    def again(self, folder: Path, what: str, out: str = "run") -> None:
        """The command, whose end is judged."""
        if not (folder / out).exists():
            # Shadow images of another run would be others.
            share_secret(self.origin / "run", folder / out)
        done = self._forks("run", "suite.toml", "--out", out, cwd=folder, AFTERSHOCK_CACHE="cache")
        assert "Traceback" not in done.output, f"{what}: {done.output}"
        if done.status == 0:
            found = self._differences(folder / out, self.origin / "run")
            assert not found, f"{what}: {found} differ\n{done.output}"
            end = "unnoticed, same output" if "Nothing was missing." in done.output else "made again"
        else:
            assert done.status in (1, 2), f"{what}: {done.status}"
            assert 0 < len(done.output.strip().splitlines()[-1]) < 1000, what
            end = "a sentence"
        for name in ("tried", end):
            self.counts[name] = self.counts.get(name, 0) + 1
        shutil.rmtree(folder)


@pytest.fixture
def place(
    damaged_place: Path, tmp_path: Path, forks: Forks, differences: Differences, counted: dict[str, int]
) -> Place:
    return Place(damaged_place, tmp_path, forks, differences, counted)


def some(
    operations: Mapping[str, Operation], everything: bool, number: int, count: int = 1
) -> Iterator[tuple[str, Operation]]:
    """All operations, or some of them, other ones for each file."""
    names = list(operations)
    chosen = names if everything else [names[(5 * number + i) % len(names)] for i in range(count)]
    return ((name, operations[name]) for name in chosen)


def of_kind(folder: Path, kind: str) -> str:
    """The key of the first cell of a kind that has an artifact (any cell, of kinds without)."""
    ours = [record for _, record in sorted(ledger(folder).items()) if record.kind.startswith(kind)]
    return next((record.key for record in ours if record.digest), ours[0].key)


def file_of(folder: Path, part: str, kind: str) -> Path:
    """The file that holds the entry or the artifact of the first cell of a kind."""
    return (lines if part == "cells" else artifact)(folder, of_kind(folder, kind))


@pytest.mark.parametrize("number", range(len(FILES)), ids=FILES)
def test_what_a_run_shows(number: int, place: Place, operations: Mapping[str, Operation], everything: bool) -> None:
    if not everything and number % 6 != 2:
        pytest.skip("set AFTERSHOCK_DAMAGE to try every file")
    for name, damage in some(operations, everything, number):
        folder = place.fresh("run", "cache")
        (target,) = (folder / "run").glob(FILES[number])
        damage(target)
        place.again(folder, f"{name} {FILES[number]}")


@pytest.mark.parametrize("number", range(len(KINDS)), ids=KINDS)
@pytest.mark.parametrize("part", ["cells", "artifacts"])
def test_cells_of_a_run(
    part: str, number: int, place: Place, operations: Mapping[str, Operation], everything: bool
) -> None:
    if not everything and number != (2 if part == "cells" else 0):
        pytest.skip("set AFTERSHOCK_DAMAGE to try every kind")
    for name, damage in some(operations, everything, number + 3):
        folder = place.fresh("run", "cache")
        damage(file_of(folder / "run", part, KINDS[number]))
        # Tables are made anew, from what lies there now.
        (folder / "run" / "tables" / "metrics.csv").unlink()
        place.again(folder, f"{name} {part} of {KINDS[number]}")


@pytest.mark.parametrize("number", range(len(KINDS)), ids=KINDS)
@pytest.mark.parametrize("part", ["cells", "artifacts"])
def test_cells_of_the_cache(
    part: str, number: int, place: Place, operations: Mapping[str, Operation], everything: bool
) -> None:
    if not everything and number != (0 if part == "cells" else 2):
        pytest.skip("set AFTERSHOCK_DAMAGE to try every kind")
    for name, damage in some(operations, everything, number + 1):
        folder = place.fresh("cache")
        damage(file_of(folder / "cache", part, KINDS[number]))
        place.again(folder, f"{name} {part} of {KINDS[number]} in the cache", out="second")


@pytest.mark.parametrize("file", ["digests.json", "CACHEDIR.TAG"])
def test_files_of_the_cache(file: str, place: Place, operations: Mapping[str, Operation], everything: bool) -> None:
    for name, damage in some(operations, everything, len(file)):
        folder = place.fresh("run", "cache")
        target = folder / "cache" / file
        damage(target) if target.exists() else target.write_bytes(b"stray")
        place.again(folder, f"{name} {file}")


@pytest.mark.parametrize("file", ["run.json", "model", "fit", "score", "analysis", "analyses/*/findings.json"])
def test_every_field_of_a_json_file(file: str, place: Place, edits: Edits, everything: bool) -> None:
    def target(folder: Path) -> tuple[Path, str]:
        if "." in file:
            return next((folder / "run").glob(file)), ""
        return folder / "run", of_kind(folder / "run", file)

    if not everything and file not in ("run.json", "model"):
        pytest.skip("set AFTERSHOCK_DAMAGE to try every file")
    names = [name for name, _ in edits(*target(place.origin))]
    step = 1 if everything and len(names) < 25 else max(1, len(names) // (25 if everything else 1))
    for name in names[len(file) % step :: step]:
        folder = place.fresh("run", "cache")
        dict(edits(*target(folder)))[name]()
        if "." not in file:
            (folder / "run" / "tables" / "metrics.csv").unlink()
        place.again(folder, f"edit {file}: {name}")


@pytest.mark.parametrize("part", ["cells", "artifacts", "tables", "site", "site/assets", "analyses"])
def test_folders_that_are_links(part: str, place: Place, everything: bool) -> None:
    if not everything and part not in ("tables", "site/assets"):
        pytest.skip("set AFTERSHOCK_DAMAGE to try every folder")
    folder = place.fresh("run", "cache")
    elsewhere = folder / "elsewhere"
    (folder / "run" / part).rename(elsewhere)
    (folder / "run" / part).symlink_to(elsewhere)
    (folder / "run" / "run.json").unlink()
    before = {p: p.stat().st_mtime_ns for p in elsewhere.rglob("*")}
    done = place._forks("run", "suite.toml", "--out", "run", cwd=folder, AFTERSHOCK_CACHE="cache")
    assert done.status == 2 and "is a link" in done.output, done.output
    assert {p: p.stat().st_mtime_ns for p in elsewhere.rglob("*")} == before


def test_files_of_somebody_in_the_site_do_no_harm(place: Place) -> None:
    folder = place.fresh("run", "cache")
    for name in ("site/notes.html", "site/assets/logo.svg", "analyses/readme.txt", "tables/mine.csv"):
        (folder / "run" / name).write_text("mine")
    done = place._forks("run", "suite.toml", "--out", "run", cwd=folder, AFTERSHOCK_CACHE="cache")
    assert done.status == 0 and "Nothing was missing." in done.output
    (folder / "run" / "site" / "index.html").unlink()
    done = place._forks("run", "suite.toml", "--out", "run", cwd=folder, AFTERSHOCK_CACHE="cache")
    assert done.status == 0 and "Nothing was missing." not in done.output
    assert (folder / "run" / "site" / "notes.html").read_text() == "mine"
    assert (folder / "run" / "tables" / "mine.csv").read_text() == "mine"
