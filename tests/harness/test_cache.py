"""The cache as its user keeps it in order: size, prune, clear, and locks that leave nothing behind."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from aftershock.harness.core.cell_names import CellName
from aftershock.harness.core.errors import UsageError
from aftershock.harness.store.artifacts import SMALL, Artifact
from aftershock.harness.store.cache import (
    CACHE_TAG,
    LOCKS,
    Removed,
    clear,
    entries,
    parse_age,
    parse_size,
    prune,
    size_text,
)
from aftershock.harness.store.cells import Cells
from aftershock.harness.store.ledger import Record
from aftershock.harness.store.locks import Locks
from aftershock.harness.store.packs import CellWriter
from aftershock.harness.store.run_directory import Store
from support.cells import artifact, ledger, lines, read_cells
from support.commands import Forks

NAME = CellName("digits", "mlp", 0, "thing")
KEYS = ["a" * 64, "b" * 64, "c" * 64]
DAY = 86400


def numbers(count: int = 1000) -> Artifact:
    return Artifact.of({"x": torch.arange(float(count))})


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Three cells of about 4.6 kB, last used 1, 10 and 100 days ago; runs hold them, too."""
    root = tmp_path / "cache"
    for days, key in zip((1, 10, 100), KEYS, strict=True):
        with Store(tmp_path / f"run-{days}", root) as store:
            store.put(key, NAME, numbers(), {}, 0.0)
        used = time.time() - days * DAY
        os.utime(lines(root, key), (used, used))
    return root


def held(cache: Path) -> list[str]:
    return sorted(ledger(cache))


def test_the_size_of_a_cache(cache: Path, tmp_path: Path) -> None:
    found = entries(cache)
    assert [entry.key for entry in found] == KEYS[::-1]
    files = [p for part in ("cells", "artifacts") for p in (cache / part).rglob("*") if p.is_file()]
    assert sum(entry.size for entry in found) == sum(p.stat().st_size for p in files)
    assert all(entry.shared == entry.size for entry in found)
    shutil.rmtree(tmp_path / "run-10")
    assert [entry.shared == 0 for entry in entries(cache)] == [False, True, False]


@pytest.mark.parametrize(
    ("older_than", "max_size", "left"),
    [
        (200 * DAY, None, 3), (50 * DAY, None, 2), (5 * DAY, None, 1), (0, None, 0), (None, 10**6, 3),
        (None, 11_000, 2), (None, 6_000, 1), (None, 0, 0), (50 * DAY, 6_000, 1), (5 * DAY, 10**6, 1),
    ],
)  # fmt: skip
def test_prune(older_than: float | None, max_size: int | None, left: int, cache: Path) -> None:
    removed = prune(cache, older_than, max_size)
    assert removed.entries == 3 - left and (removed.size > 4000) == (left < 3)
    assert held(cache) == KEYS[:left]
    assert [len(list((cache / part).iterdir())) for part in ("cells", "artifacts")] == [left, left]
    assert (cache / CACHE_TAG).exists()


def test_a_cell_that_a_run_takes_over_was_used_just_now(cache: Path, tmp_path: Path) -> None:
    with Store(tmp_path / "second", cache) as store:
        assert store.find(KEYS[2]) is not None
    assert prune(cache, older_than=5 * DAY).entries == 1
    assert held(cache) == [KEYS[0], KEYS[2]]
    for days, key in zip((1, 10, 100), KEYS, strict=True):
        with Store(tmp_path / f"run-{days}", None) as store:
            assert store.find(key) is not None


@pytest.mark.parametrize("count", [1000, 2 * SMALL], ids=["small", "large"])
def test_of_cells_in_one_pack_those_that_were_written_first_are_removed_first(tmp_path: Path, count: int) -> None:
    cache = tmp_path / "cache"
    with Store(tmp_path / "run", cache) as store:
        for number, key in enumerate(KEYS):
            store.put(key, NAME, numbers(count), {"n": number}, 0.0)
    used = time.time() - DAY / 2
    os.utime(lines(cache, KEYS[0]), (used, used))
    before = lines(cache, KEYS[0])
    size = sum(entry.size for entry in entries(cache))
    assert prune(cache, max_size=size - 1).entries == 1
    assert held(cache) == KEYS[1:]
    # The others are in another pack, which was used when the first one was.
    assert not before.exists() and entries(cache)[0].used == pytest.approx(used, abs=1)
    with Store(tmp_path / "second", cache) as store:
        assert [store.find(key) is not None for key in KEYS] == [False, True, True]
        assert store.values(KEYS[2]) == {"n": 2} and len(store.tensor(KEYS[2], "x")) == count
    with Store(tmp_path / "run") as store:
        assert all(store.find(key) is not None for key in KEYS)


def twice(cache: Path, tmp_path: Path, *others: str) -> None:
    """The first cell once more, computed again by another run, with others in its older pack."""
    with Store(tmp_path / "first", cache) as store:
        for key in (KEYS[0], *others):
            store.put(key, NAME, numbers(), {"n": 1}, 0.0)
    used = time.time() - 30 * DAY
    os.utime(lines(cache, KEYS[0]), (used, used))
    with Store(tmp_path / "again", cache, fresh=True) as store:
        store.put(KEYS[0], NAME, numbers(), {"n": 2}, 0.0)


def files(cache: Path) -> int:
    """The bytes of all cells."""
    return sum(p.stat().st_size for part in ("cells", "artifacts") for p in (cache / part).rglob("*") if p.is_file())


def test_a_cell_of_two_packs_is_counted_and_removed_as_a_whole(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    twice(cache, tmp_path)
    assert [entry.key for entry in entries(cache)] == [KEYS[0]]
    assert sum(entry.size for entry in entries(cache)) == files(cache)
    removed = prune(cache, max_size=0)
    assert (removed.entries, files(cache)) == (1, 0) and not held(cache)
    assert not [*(cache / "cells").iterdir()]


@pytest.mark.parametrize("older_than", [None, 5 * DAY, 100 * DAY])
def test_a_pack_of_which_nothing_counts_is_removed(older_than: float | None, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    twice(cache, tmp_path)
    before = files(cache)
    removed = prune(cache, older_than, 10**9)
    assert removed.entries == 0 and removed.size == before - files(cache) > 4000
    assert len([*(cache / "cells").iterdir()]) == 1 and ledger(cache)[KEYS[0]].values == {"n": 2}


def test_older_entries_go_before_a_cell_does(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    twice(cache, tmp_path, KEYS[1])
    before = files(cache)
    # The other cell of the older pack counts: as long as there is room, it is not written anew.
    assert prune(cache, max_size=before).size == 0
    removed = prune(cache, max_size=before - 1)
    # Offsets in the new pack have fewer digits.
    assert removed.entries == 0 and removed.size == pytest.approx(before - files(cache), abs=10) and removed.size > 4000
    assert held(cache) == KEYS[:2] and ledger(cache)[KEYS[0]].values == {"n": 2}
    assert sum(entry.size for entry in entries(cache)) == files(cache)
    assert prune(cache, older_than=5 * DAY).entries == 1
    assert held(cache) == KEYS[:1]


def test_a_run_stays_whole_when_the_cache_is_cleared(cache: Path, tmp_path: Path) -> None:
    (cache / "digests.json").write_text("{}")
    (cache / "rates.json").write_text("{}")
    (cache / "cells" / "thesis.txt").write_text("mine")
    assert clear(cache).entries == 3
    assert {p.relative_to(cache).as_posix() for p in cache.rglob("*") if p.stat().st_size and p.is_file()} == {
        CACHE_TAG,
        "cells/thesis.txt",
    }
    for days, key in zip((1, 10, 100), KEYS, strict=True):
        with Store(tmp_path / f"run-{days}", cache) as store:
            assert store.find(key) is not None


def test_a_cleared_cache_holds_no_artifacts_whatever_happened_to_their_entries(cache: Path, tmp_path: Path) -> None:
    twice(cache, tmp_path)
    damaged = lines(cache, KEYS[1])
    damaged.write_text("damaged\n")
    (cache / "cells" / f"{'0' * 16}.jsonl").touch()
    (cache / "artifacts" / f"{'0' * 16}.pack").write_text("of no entry")
    clear(cache)
    assert files(cache) == 0 and not [*(cache / "artifacts").glob("*.pack")]


def test_what_killed_processes_left_is_pruned_after_a_day(cache: Path) -> None:
    place = cache / "artifacts" / "aa"
    place.mkdir()
    # Half a file, a file whose entry was never written, and the artifacts of a pack without entries.
    names = [f"aa/{KEYS[0]}.safetensors.{number}.tmp" for number in (77, 78)]
    names += [f"aa/{'a' * 63}{digit}.safetensors" for digit in "01"]
    names += [f"{digit * 16}.pack" for digit in "01"]
    for number, name in enumerate(names):
        path = cache / "artifacts" / name
        path.write_text("half")
        os.utime(path, (time.time() - (0 if number % 2 else 2) * DAY,) * 2)
    before = {p for p in (cache / "artifacts").rglob("*") if p.is_file()}
    prune(cache, max_size=10**9)
    after = {p for p in (cache / "artifacts").rglob("*") if p.is_file()}
    assert before - after == {cache / "artifacts" / name for name in names[::2]}


def test_folders_that_are_no_cache_are_refused(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    (tmp_path / "home" / "cells").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("nowhere", "empty", "home", "file", "run-1"):
        with pytest.raises(UsageError, match="cache"):
            clear(tmp_path / name)
    outside = tmp_path / "outside"
    (cache / "cells").rename(outside)
    (cache / "cells").symlink_to(outside)
    with pytest.raises(UsageError, match="is a link"):
        clear(cache)
    assert len(list(outside.iterdir())) == 3


def test_links_in_a_cache_are_not_followed(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    with Store(tmp_path / "precious") as store:
        store.put("d" * 64, NAME, numbers(2 * SMALL), {}, 0.0)
    kept = artifact(tmp_path / "precious", "d" * 64)
    entry = lines(tmp_path / "precious", "d" * 64)
    (cache / "artifacts" / "dd").symlink_to(kept.parent)
    (cache / "cells" / entry.name).symlink_to(entry)
    assert clear(cache).entries == 3 and kept.exists() and entry.exists()


@pytest.mark.parametrize("remove", [clear, lambda cache: prune(cache, max_size=10**9)], ids=["clear", "prune"])
def test_entries_of_an_earlier_version_go_and_those_of_this_one_count(
    remove: Callable[[Path], Removed], cache: Path
) -> None:
    for name in (f"aa/{KEYS[0]}.json", f"bb/{KEYS[1]}.json", "bb/thesis.txt"):
        path = cache / "cells" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
        os.utime(path, (time.time() - 2 * DAY,) * 2)
    outside = cache.parent / "outside"
    outside.mkdir()
    (outside / f"{KEYS[2]}.json").write_text("{}")
    (cache / "cells" / "cc").symlink_to(outside)
    assert len(entries(cache)) == 3
    assert remove(cache).entries == (3 if remove is clear else 0)
    assert len(held(cache)) == (0 if remove is clear else 3)
    assert not (cache / "cells" / "aa").exists()
    assert [path.name for path in (cache / "cells" / "bb").iterdir()] == ["thesis.txt"]
    assert len([*outside.iterdir()]) == 1


def test_a_cache_of_before_the_tag_is_one(cache: Path) -> None:
    (cache / CACHE_TAG).unlink()
    assert len(entries(cache)) == 3
    (cache / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a cache"):
        entries(cache)


def test_ages_and_sizes() -> None:
    assert [parse_age(t) for t in ("30d", "12h", "90m", "2w", "1.5 d")] == [
        30 * DAY,
        DAY / 2,
        5400,
        14 * DAY,
        1.5 * DAY,
    ]
    assert [parse_size(t) for t in ("10GB", "500 MB", "2GiB", "1.5T", "7", "3kb")] == [
        10**10, 5 * 10**8, 2**31, 15 * 10**11, 7, 3000,
    ]  # fmt: skip
    for text in ("", "30", "d", "-3d", "3y", "1e3d"):
        with pytest.raises(UsageError, match="--older-than"):
            parse_age(text)
    for text in ("", "GB", "-1GB", "10 bottles", "nan"):
        with pytest.raises(UsageError, match="--max-size"):
            parse_size(text)
    assert [size_text(n) for n in (0, 999, 1000, 1_500_000, 2 * 10**9)] == [
        "0 bytes", "999 bytes", "1.0 kB", "1.5 MB", "2.0 GB",
    ]  # fmt: skip


def test_the_command_line(cache: Path, forks: Forks, tmp_path: Path) -> None:
    def answer(*arguments: str, cache: Path = cache) -> tuple[int, str]:
        done = forks("cache", *arguments, cwd=tmp_path, AFTERSHOCK_CACHE=str(cache))
        return done.status, done.output

    status, said = answer("size")
    assert status == 0 and "3 cells" in said and "run directories hold" in said
    assert answer("prune")[0] == 2
    status, said = answer("prune", "--older-than", "30d")
    assert status == 0 and said.startswith("Removed 1 cell,")
    status, said = answer("clear")
    assert status == 2 and "--yes" in said and len(held(cache)) == 2
    status, said = answer("clear", "--yes")
    assert status == 0 and said.startswith("Removed 2 cells,") and not held(cache)
    assert answer("size", cache=tmp_path / "nowhere")[0] == 2


def locked(store: Store, key: str) -> ExitStack:
    """Hold a key, as soon as nobody else does."""
    while (held := store.computing(key)) is None:
        time.sleep(0.001)
    return held


def work(folder: Path, cache: Path, log: Path, cells: int) -> None:
    with Store(folder, cache) as store:
        for number in range(cells):
            key = f"{number:064x}"
            with locked(store, key):
                if store.find(key) is None:
                    with log.open("a") as stream:
                        stream.write(f"{number} begins\n")
                    time.sleep(0.001)
                    store.put(key, NAME, Artifact.of({"x": torch.full((10,), float(number))}), {"n": number}, 0.0)
                    with log.open("a") as stream:
                        stream.write(f"{number} ends\n")
            assert store.find(key) is not None and float(store.tensor(key, "x")[0]) == number


def workers(tmp_path: Path, cache: Path, count: int, cells: int) -> list[Any]:
    """Processes that all need the same cells."""
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    context = multiprocessing.get_context("fork")
    arguments = [(tmp_path / f"w{i}", cache, tmp_path / "log", cells) for i in range(count)]
    started = [context.Process(target=work, args=given) for given in arguments]
    for process in started:
        process.start()
    return started


def ends(started: list[Any]) -> list[int]:
    for process in started:
        process.join(120)
    return [process.exitcode for process in started]


def test_processes_that_share_a_cache_compute_each_cell_once_and_leave_no_locks(tmp_path: Path) -> None:
    started = workers(tmp_path, tmp_path / "cache", 3, 60)
    assert ends(started) == [0, 0, 0]
    lines = (tmp_path / "log").read_text().splitlines()
    # Nobody began a cell that another one was computing, or had computed.
    assert sorted(lines) == sorted(f"{n} {what}" for n in range(60) for what in ("begins", "ends"))
    assert len(list((tmp_path / "cache" / "cells").iterdir())) <= 3 and len(ledger(tmp_path / "cache")) == 60


def test_processes_that_publish_at_once_where_links_are_impossible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    started = workers(tmp_path, tmp_path / "cache", 3, 40)
    assert ends(started) == [0, 0, 0]
    lines = (tmp_path / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{n} {what}" for n in range(40) for what in ("begins", "ends"))
    assert len(ledger(tmp_path / "cache")) == 40


def test_a_cache_may_be_pruned_and_cleared_while_processes_work(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    started = workers(tmp_path, cache, 2, 60)
    removed = 0
    while any(process.is_alive() for process in started):
        if (cache / CACHE_TAG).exists():
            removed += (prune(cache, max_size=500) if removed % 2 else clear(cache)).entries
        time.sleep(0.002)
    assert ends(started) == [0, 0]
    assert removed > 10
    for i in range(2):
        with Store(tmp_path / f"w{i}") as store:
            assert all(store.find(f"{n:064x}") is not None for n in range(60))


def unlinked(*args: object) -> None:
    """Another file system: nothing can be hard-linked."""
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


def test_packs_that_others_begin_while_one_is_chosen_are_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(os, "link", unlinked)
    with Store(tmp_path / "one", cache) as store:
        store.put(KEYS[0], NAME, numbers(), {}, 0.0)
    with Store(tmp_path / "two", cache) as store:
        # Between its listing and its first cell, others finish many.
        for number in range(8):
            writer = CellWriter(read_cells(cache), lambda name: ExitStack())
            writer.roll()
            writer.add(Record(f"{number:064x}", NAME, "done"))
            writer.close()
        # The pack that is chosen first is none to append to.
        monkeypatch.setattr("aftershock.harness.store.packs._ends", lambda path, end: False)
        store.put(KEYS[1], NAME, numbers(), {}, 0.0)
        assert store.find(KEYS[1]) is not None
    assert set(KEYS[:2]) <= set(ledger(cache))


def test_without_locks_a_run_shares_only_packs_that_no_other_process_joins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / LOCKS).write_text("a file where a folder belongs")
    with Store(tmp_path / "linked", cache) as store:
        store.put(KEYS[0], NAME, numbers(), {}, 0.0)
        store.put(KEYS[2], NAME, numbers(), {}, 0.0)
    monkeypatch.setattr(os, "link", unlinked)
    with Store(tmp_path / "copied", cache) as store:
        store.put(KEYS[1], NAME, numbers(), {}, 0.0)
        assert store.find(KEYS[1]) is not None
    assert ledger(cache).keys() == {KEYS[0], KEYS[2]} and ledger(tmp_path / "copied").keys() == {KEYS[1]}
    # Nor is a pack of the cache written anew; what goes as a whole may go.
    with pytest.raises(UsageError, match="No locks available"):
        prune(cache, max_size=files(cache) - 1)
    assert held(cache) == [KEYS[0], KEYS[2]]
    assert clear(cache).entries == 2


def appended(cells: Cells, key: str) -> str:
    """Append an entry as another process does; return its pack."""
    writer = CellWriter(cells, lambda name: ExitStack())
    writer.add(Record(key, NAME, "done"))
    writer.close()
    return cells.pack_of(key)


@pytest.fixture
def days(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the clock that packs go by, in days from now."""
    now = time.time()

    def to(number: float) -> None:
        monkeypatch.setattr("aftershock.harness.store.packs.time.time_ns", lambda: int((now + number * DAY) * 1e9))
        monkeypatch.setattr("aftershock.harness.store.packs.time.time", lambda: now + number * DAY)

    return to


def test_a_pack_has_cells_of_one_day_whenever_it_was_used(tmp_path: Path, days: Callable[[float], None]) -> None:
    days(0)
    first = appended(read_cells(tmp_path), KEYS[0])
    used = tmp_path / "cells" / f"{first}.jsonl"
    days(0.9)
    os.utime(used, (time.time(),) * 2)
    assert appended(read_cells(tmp_path), KEYS[1]) == first
    days(1.1)
    os.utime(used, (time.time(),) * 2)
    assert appended(read_cells(tmp_path), KEYS[2]) != first


def test_a_process_that_reads_on_misses_nothing_however_long_a_pack_was_idle(
    tmp_path: Path, days: Callable[[float], None]
) -> None:
    days(0)
    first = appended(read_cells(tmp_path), KEYS[0])
    reader = read_cells(tmp_path)
    for number, key in ((0.9, KEYS[1]), (3, KEYS[2])):
        days(number)
        reader.refresh()
        # It is used by those that take cells over from it.
        os.utime(tmp_path / "cells" / f"{first}.jsonl", (time.time(),) * 2)
        appended(read_cells(tmp_path), key)
    reader.refresh(again=True)
    assert set(reader.keys()) == set(KEYS)


def test_a_writer_of_many_days_begins_a_pack_every_day(tmp_path: Path, days: Callable[[float], None]) -> None:
    cells = read_cells(tmp_path)
    writer = CellWriter(cells, lambda name: ExitStack())
    for number, key in zip((0, 0.5, 3), KEYS, strict=True):
        days(number)
        writer.add(Record(key, NAME, "done"))
    packs = [cells.pack_of(key) for key in KEYS]
    assert packs[0] == packs[1] != packs[2]


def test_a_run_shares_what_it_computes_after_damage_and_after_the_cache_was_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(os, "link", unlinked)
    with Store(tmp_path / "run", cache) as store:
        store.put(KEYS[0], NAME, numbers(2 * SMALL), {}, 0.0)
        artifact(tmp_path / "run", KEYS[0]).unlink()
        assert store.find(KEYS[0]) is not None
        clear(cache)
        with locked(store, KEYS[1]):
            store.put(KEYS[1], NAME, numbers(), {}, 0.0)
    assert held(cache) == [KEYS[1]]


def test_whatever_the_cache_raises_a_stored_cell_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("of the cache")

    monkeypatch.setattr(os, "link", unlinked)
    with Store(tmp_path / "run", tmp_path / "cache") as store:
        store.put(KEYS[0], NAME, numbers(), {}, 0.0)
        monkeypatch.setattr("aftershock.harness.store.shared_cache.CellWriter.add", _of_the_run(tmp_path / "run", fail))
        store.put(KEYS[1], NAME, numbers(), {}, 0.0)
        assert all(store.find(key) is not None for key in KEYS[:2])


def _of_the_run(run: Path, fail: Callable[..., Any]) -> Callable[..., Any]:
    """Writing that works in a run directory and fails elsewhere."""
    real = CellWriter.add

    def add(self: CellWriter, *args: Any) -> Any:
        return real(self, *args) if self._cells.root == run else fail()

    return add


@pytest.fixture(params=["bytes", "files"])
def kind_of_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Locks where the system locks bytes of a file, and where it does not."""
    kind: str = request.param
    if kind == "files":
        monkeypatch.setattr(sys, "platform", "other")
    return kind


def test_locks_leave_nothing_behind(tmp_path: Path, kind_of_locks: str) -> None:
    locks = Locks(tmp_path / "locks")
    for _ in range(3):
        with locks.take("one") or ExitStack(), locks.take("other") or ExitStack():
            assert locks.take("one") is None
    files = list((tmp_path / "locks").iterdir())
    assert sum(path.stat().st_size for path in files) == 0 and len(files) == (kind_of_locks == "bytes")
    locks.close()


def test_a_lock_may_be_given_back_after_all_are(tmp_path: Path, kind_of_locks: str) -> None:
    locks = Locks(tmp_path / "locks")
    held = locks.take("one")
    assert held is not None
    locks.close()
    held.close()
    with locks.take("one") or ExitStack():
        assert locks.take("one") is None


def test_a_key_that_another_run_holds_is_not_waited_for(tmp_path: Path, kind_of_locks: str) -> None:
    cache = tmp_path / "cache"
    with Store(tmp_path / "one", cache) as one, Store(tmp_path / "other", cache) as other:
        with locked(one, KEYS[0]):
            assert other.computing(KEYS[0]) is None
            with locked(other, KEYS[1]):
                assert one.computing(KEYS[1]) is None
        with locked(other, KEYS[0]):
            pass
