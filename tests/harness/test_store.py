"""The run directory and the cache under damage, full disks, strangers' files and second processes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from aftershock.harness.core.cell_names import CellName
from aftershock.harness.core.errors import AftershockError, UsageError
from aftershock.harness.core.files import write_atomic
from aftershock.harness.core.formats import line_json, seal, seal_text
from aftershock.harness.store.artifacts import SMALL, Artifact
from aftershock.harness.store.ledger import SCHEMA, Record, dump_record, parse_record
from aftershock.harness.store.packs import CellWriter
from aftershock.harness.store.run_directory import Store
from support.cells import artifact, ledger, lines, raw_entry, read_cells, replace_line

KEY, OTHER = "a" * 64, "b" * 64
NAME = CellName("digits", "mlp", 0, "thing")


# Numbers of an artifact that shares a pack, and of one that is a file of its own.
FEW, MANY = 1000, 2 * SMALL


def put(store: Store, key: str = KEY, scale: float = 1.0, count: int = FEW) -> Record:
    tensors = {"x": torch.arange(float(count)) * scale, "flags": torch.tensor([True, False])}
    return store.put(key, NAME, Artifact.of(tensors), {"n": 3, "share": 0.1}, 1.5)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(params=[FEW, MANY], ids=["small", "large"])
def count(request: pytest.FixtureRequest) -> int:
    """How many numbers an artifact has."""
    found: int = request.param
    return found


@pytest.fixture
def held(run: Path, cache: Path, count: int) -> Iterator[Store]:
    """A store with one cell, shared with the cache."""
    with Store(run, cache) as store:
        put(store, count=count)
        yield store


def numbers(store: Store, key: str = KEY) -> list[float]:
    found: list[float] = store.tensor(key, "x").tolist()
    return found


@pytest.mark.parametrize("reopen", [False, True])
def test_what_is_put_is_read_back_exactly(run: Path, reopen: bool) -> None:
    values = {"list": [1, 2.5, None, "ü"], "nan": float("inf"), "deep": {"a": {"b": True}}}
    strided = torch.arange(12.0).reshape(3, 4).t()
    store = Store(run)
    store.put(KEY, NAME, Artifact.of({"a": strided, "b": strided[0], "empty": torch.empty(0, 5)}), values, 0.25)
    if reopen:
        store.close()
        store = Store(run)
    assert store.find(KEY) is not None
    assert store.values(KEY) == values
    assert store.record(KEY).seconds == 0.25
    loaded = store.load(KEY)
    # Tensors that share memory and are not contiguous come back as they were.
    assert torch.equal(loaded["a"], strided)
    assert torch.equal(loaded["b"], strided[0])
    assert loaded["empty"].shape == (0, 5)
    assert torch.equal(store.tensor(KEY, "b"), strided[0])
    store.close()


def test_a_cell_without_tensors(run: Path) -> None:
    with Store(run) as store:
        store.put(KEY, NAME, Artifact.of({}), {"only": "values"}, 0.0)
    with Store(run) as store:
        assert store.find(KEY) is not None
        assert store.load(KEY) == {}
    assert not any(path.stat().st_size for path in (run / "artifacts").iterdir())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    with path.open("r+b") as stream:
        stream.write(data)


def cut(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)


def empty(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.truncate(0)


def grow(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"more")


@pytest.mark.parametrize("damage", [flip, cut, empty, grow], ids=lambda f: f.__name__)
def test_a_damaged_artifact_is_noticed_and_replaced(damage, run: Path, cache: Path, held: Store, count: int) -> None:  # type: ignore[no-untyped-def]
    # By hard link the cache's file is the same one, so nothing whole is left.
    path = artifact(run, KEY)
    assert path.samefile(artifact(cache, KEY))
    held.close()
    damage(path)
    with Store(run, cache) as store:
        if damage is grow and count == FEW:
            # What stands behind an artifact in a pack is no part of it.
            assert store.find(KEY) is not None
            return
        assert store.find(KEY) is None
        if count == MANY:
            assert not path.exists() and not (cache / path.relative_to(run)).exists()
        put(store, count=count)
        assert store.find(KEY) is not None
        assert numbers(store) == [*range(count)]
    for folder in (run, cache):
        cells = read_cells(folder)
        assert cells.is_whole(cells.record(KEY))  # type: ignore[arg-type]
    with Store(run, cache) as store:
        assert store.find(KEY) is not None and numbers(store) == [*range(count)]


def test_a_damaged_artifact_is_noticed_while_the_run_goes_on(run: Path, held: Store, count: int) -> None:
    path = artifact(run, KEY)
    flip(path)
    if count == MANY:
        assert held.find(KEY) is None
    else:
        with pytest.raises(AftershockError, match="damaged"):
            held.load(KEY)
        path.unlink()
        assert held.find(KEY) is None


TRANSIENT = [errno.EIO, errno.EMFILE, errno.ESTALE]


@pytest.mark.parametrize("code", TRANSIENT)
def test_what_cannot_be_read_for_a_moment_is_no_damage(
    code: int, run: Path, cache: Path, held: Store, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.close()
    path, real = artifact(run, KEY), os.open

    def fail(name: Any, *args: Any, **kwargs: Any) -> int:
        if Path(name).suffix in (".pack", ".safetensors"):
            raise OSError(code, os.strerror(code), str(name))
        return real(name, *args, **kwargs)

    with Store(run, cache) as store, Store(run.parent / "second", cache) as second:
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", fail)
            with pytest.raises(AftershockError, match=os.strerror(code)):
                store.find(KEY)
            # What the cache cannot give now is computed.
            assert second.find(KEY) is None
        assert path.exists() and artifact(cache, KEY).exists()
        assert store.find(KEY) is not None and numbers(store) == [*range(count)]
        assert second.find(KEY) is not None


@pytest.mark.parametrize("code", TRANSIENT)
def test_an_entry_that_cannot_be_read_for_a_moment_is_still_there(
    code: int, run: Path, cache: Path, held: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.close()
    with Store(run) as store, Store(run.parent / "second", cache) as second:
        with monkeypatch.context() as patched:
            patched.setattr("aftershock.harness.store.cells.open_file", full(code))
            for read in (store.find, store.failure, store.record, store.values):
                with pytest.raises(AftershockError, match=os.strerror(code)):
                    read(KEY)
            with pytest.raises(AftershockError, match=os.strerror(code)):
                store.records()
            assert second.find(KEY) is None
        assert store.find(KEY) is not None and second.find(KEY) is not None


def test_what_cannot_be_read_is_one_sentence(
    run: Path, held: Store, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.record(KEY)
    for name in ("open_file", "open_tensors"):
        monkeypatch.setattr(f"aftershock.harness.store.cells.{name}", full(errno.EMFILE))
    for read in (held.load, held.artifact, lambda key: held.tensor(key, "x")):
        with pytest.raises(AftershockError, match="Too many open files"):
            read(KEY)


def test_a_lost_artifact_comes_back_from_the_cache(run: Path, cache: Path, held: Store, count: int) -> None:
    held.close()
    artifact(run, KEY).unlink()
    with Store(run, cache) as store:
        assert store.find(KEY) is not None
        assert numbers(store) == [*range(count)]


def test_a_damaged_copy_in_the_run_is_replaced_by_the_whole_one_of_the_cache(
    run: Path, cache: Path, held: Store, count: int
) -> None:
    held.close()
    path = artifact(run, KEY)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + b"!")
    with Store(run, cache) as store:
        assert store.find(KEY) is not None
        assert numbers(store) == [*range(count)]


def test_touching_an_artifact_is_no_damage(run: Path, held: Store) -> None:
    os.utime(artifact(run, KEY), (1, 1))
    assert held.find(KEY) is not None


KEYS = [f"{number:064x}" for number in range(40)]


def several(run: Path, cache: Path | None = None) -> dict[str, Record]:
    """Forty cells in one pack; returns their entries."""
    with Store(run, cache) as store:
        return {key: put(store, key, scale=i) for i, key in enumerate(KEYS)}


def found(run: Path, cache: Path | None = None) -> list[str]:
    with Store(run, cache) as store:
        return [key for key in KEYS if store.find(key) is not None and numbers(store, key)[1] == KEYS.index(key)]


def test_small_cells_share_two_files_and_a_run_and_its_cache_share_them(run: Path, cache: Path) -> None:
    several(run, cache)
    for folder in (run, cache):
        assert [len(list((folder / part).iterdir())) for part in ("cells", "artifacts")] == [1, 1]
    assert lines(run, KEYS[0]).samefile(lines(cache, KEYS[0]))
    # The next call goes on with the pack.
    with Store(run, cache) as store:
        put(store)
    assert len(list((run / "cells").iterdir())) == 1 and len(ledger(cache)) == 41


def test_a_flipped_byte_in_a_pack_costs_the_cell_that_holds_it(run: Path) -> None:
    record = several(run)[KEYS[7]]
    path = artifact(run, KEYS[7])
    data = bytearray(path.read_bytes())
    data[record.offset + record.size // 2] ^= 1
    path.write_bytes(data)
    assert found(run) == [key for key in KEYS if key != KEYS[7]]


def test_a_flipped_byte_in_a_line_costs_the_cell_that_it_is_about(run: Path) -> None:
    several(run)
    path = lines(run, KEYS[0])
    held = path.read_bytes().splitlines(keepends=True)
    for damaged in (b"x", b"\n"):
        path.write_bytes(b"".join([*held[:3], held[3][:200] + damaged + held[3][201:], *held[4:]]))
        assert found(run) == [key for key in KEYS if key != KEYS[3]]
    # Without its line break, a line takes the next one with it.
    path.write_bytes(b"".join([*held[:3], held[3][:-1], *held[4:]]))
    assert found(run) == [key for key in KEYS if key not in (KEYS[3], KEYS[4])]


@pytest.mark.parametrize("part", ["cells", "artifacts"])
def test_a_truncated_pack_costs_what_is_cut_off(part: str, run: Path) -> None:
    several(run)
    (path,) = (run / part).iterdir()
    cut(path)
    left = found(run)
    assert left == KEYS[: len(left)] and 15 < len(left) < 25
    with Store(run) as store:
        for i, key in enumerate(KEYS):
            if store.find(key) is None:
                put(store, key, scale=i)
    assert found(run) == KEYS


def test_a_line_that_a_kill_cut_off_does_no_harm_to_the_next_one(run: Path, cache: Path) -> None:
    several(run, cache)
    with lines(run, KEYS[0]).open("ab") as stream:
        stream.write(b'{"checksum":"')
    with Store(run, cache) as store:
        put(store)
    assert found(run, cache) == KEYS and KEY in ledger(cache)


def test_an_entry_that_is_too_large_is_refused_and_costs_no_other_cell(
    run: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("ledger", "cells", "packs"):
        monkeypatch.setattr(f"aftershock.harness.store.{module}.RECORD_LIMIT", 2000)
    with Store(run, cache) as store:
        put(store)
        with pytest.raises(ValueError, match="at most 2000"):
            store.put("c" * 64, NAME, Artifact(), {"text": "x" * 2000}, 0.0)
        # The largest one that is written is read.
        rest = len(dump_record(Record(KEY, NAME, "done", written=10**18, values={"text": ""}, seconds=1.5)))
        store.put(OTHER, NAME, Artifact(), {"text": "x" * (2000 - rest)}, 1.5)
        put(store, "d" * 64)
    for folder in (run, cache):
        assert ledger(folder).keys() == {KEY, OTHER, "d" * 64}
        assert len(json.dumps(ledger(folder)[OTHER].values)) > 1000


def test_a_pack_that_could_not_be_read_is_left_as_it_is(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several(run)
    before = lines(run, KEYS[0]).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("aftershock.harness.store.cells.open_file", full(errno.EMFILE))
        with Store(run) as store:
            put(store)
    path = next(path for path in (run / "cells").iterdir() if path.stat().st_size > 10_000)
    assert path.read_bytes() == before and found(run) == KEYS and KEY in ledger(run)


@pytest.mark.parametrize("call", ["stat", "iterdir"])
@pytest.mark.parametrize("code", TRANSIENT)
def test_a_folder_that_cannot_be_listed_for_a_moment_is_not_empty(
    call: str, code: int, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several(run)
    cells, real = read_cells(run), getattr(Path, call)

    def fail(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self == run / "cells":
            raise OSError(code, os.strerror(code))
        return real(self, *args, **kwargs)

    writer = CellWriter(read_cells(run), lambda name: ExitStack())
    writer.roll()
    writer.add(Record(KEY, NAME, "done"))
    with monkeypatch.context() as patched:
        patched.setattr(Path, call, fail)
        cells.refresh(again=True)
    assert set(cells.keys()) == set(KEYS)
    # The pack that was begun meanwhile is found by the next call.
    cells.refresh()
    assert set(cells.keys()) == {*KEYS, KEY}


def test_a_pack_that_is_written_is_not_forgotten(run: Path) -> None:
    cells = read_cells(run)
    writer = CellWriter(cells, lambda name: ExitStack())
    writer.add(Record(KEY, NAME, "done"))
    lines(run, KEY).rename(run / "away")
    cells.refresh(again=True)
    assert cells.record(KEY) is not None
    writer.add(Record(OTHER, NAME, "done"))
    assert OTHER in ledger(run)


def test_a_pack_that_is_lost_comes_back_from_the_cache(run: Path, cache: Path) -> None:
    several(run, cache)
    lines(run, KEYS[0]).unlink()
    assert found(run, cache) == KEYS


def test_a_run_stays_whole_when_the_cache_is_emptied_and_shares_what_it_computes_then(run: Path, cache: Path) -> None:
    from aftershock.harness.store.cache import clear

    with Store(run, cache) as store:
        for i, key in enumerate(KEYS[:20]):
            put(store, key, scale=i)
        assert clear(cache).entries == 20
        for i, key in enumerate(KEYS[20:], 20):
            put(store, key, scale=i)
    assert found(run) == KEYS
    # The cell after which the lost name was noticed may be in the run alone.
    assert set(KEYS[21:]) <= set(ledger(cache)) <= set(KEYS[20:])


def test_entries_count_in_the_order_in_which_they_were_written_whatever_the_clock_says(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([5 * 10**18, 4 * 10**18, 3 * 10**18])
    with Store(run) as store:
        monkeypatch.setattr("aftershock.harness.store.packs.time.time_ns", lambda: next(now))
        store.put_failure(KEY, NAME, "failed", "first")
        store.put_failure(KEY, NAME, "failed", "second")
        put(store)
    with Store(run) as store:
        assert store.find(KEY) is not None and store.failure(KEY) is None


def test_what_was_put_is_brought_to_the_disk_when_a_store_is_closed(
    run: Path, cache: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, int]] = []

    def note(descriptor: int) -> None:
        facts = os.fstat(descriptor)
        synced.append((facts.st_ino, facts.st_size))

    monkeypatch.setattr(os, "fsync", note)
    with Store(run, cache) as store:
        put(store, count=count)
        assert not synced
    files = [path for folder in (run, cache) for part in ("cells", "artifacts") for path in (folder / part).rglob("*")]
    wanted = {(p.stat().st_ino, p.stat().st_size) for p in files if p.is_file() and p.stat().st_size}
    assert wanted <= set(synced)
    # And so are the folders that say what they are called.
    assert {p.stat().st_ino for p in (run / "cells", cache / "cells")} <= {inode for inode, _ in synced}


def test_a_run_whose_cells_are_files_of_their_own_is_refused_and_made_again(run: Path) -> None:
    (run / "cells").mkdir(parents=True)
    (run / ".lock").touch()
    (run / "cells" / f"{KEY}.json").write_bytes(seal({"schema": 3, "aftershock": "0.1.0", "key": KEY}))
    with pytest.raises(UsageError, match=r"earlier version .*--fresh"):
        Store(run)
    with Store(run, fresh=True) as store:
        put(store)
        assert store.find(KEY) is not None


def test_a_ledger_of_a_newer_version_is_refused(run: Path) -> None:
    with Store(run) as store:
        put(store)
    replace_line(run, KEY, entry(schema=SCHEMA + 1))
    with pytest.raises(UsageError, match="newer"):
        Store(run)


def entry(key: str = KEY, schema: int = SCHEMA, **changes: object) -> bytes:
    """A ledger entry with a right checksum, whatever it says."""
    whole = json.loads(dump_record(Record(key, NAME, "done")))
    del whole["checksum"]
    return seal_text(line_json({**whole, "schema": schema, **changes}))


DAMAGED = {
    "nothing": b"",
    "half": entry()[: len(entry()) // 2],
    "binary": b"\xff\xfe\x00",
    "another-shape": b"[1, 2]",
    "deep": b"[" * 100_000,
    "no-checksum": json.dumps(json.loads(entry())).encode(),
    "edited": entry(values={"clean_accuracy": 0.98}).replace(b"0.98", b"0.99"),
    "edited-seconds": entry(seconds=1.5).replace(b"1.5", b"2.5"),
    "edited-name": entry().replace(b'"mlp"', b'"cnn"'),
    "older-schema": entry(schema=1),
    "older-layout": seal({"schema": 3, "aftershock": "0.1.0", "key": KEY, "status": "done"}),
    "no-key": seal_text(line_json({"schema": SCHEMA, "aftershock": "9.9"})),
    "hostile-pack": entry(pack="../../../etc/x", digest="0" * 64, size=7),
    "large-in-a-pack": entry(pack="0" * 16, digest="0" * 64, size=SMALL + 1),
    "hostile-key": entry("../../../etc/passwd"),
    "odd-status": entry(status="finished"),
    "odd-values": entry(values=None),
    "odd-seconds": entry(seconds="fast"),
    "more-fields": entry(extra=1),
}


def test_a_ledger_entry_that_is_not_damaged_is_read() -> None:
    assert parse_record(entry(seconds=1.5)) == Record(KEY, NAME, "done", seconds=1.5)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_ledger_entry_is_not_there(name: str, run: Path) -> None:
    with Store(run) as store:
        put(store)
    lines(run, KEY).write_bytes(DAMAGED[name])
    with Store(run) as store:
        assert store.find(KEY) is None
        assert store.records() == []
        put(store, scale=2.0)
        assert store.find(KEY) is not None


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("count", [FEW], indirect=True)
def test_a_damaged_entry_of_the_cache_is_not_there(
    name: str, tmp_path: Path, run: Path, cache: Path, held: Store
) -> None:
    path = lines(cache, KEY)
    path.unlink()
    path.write_bytes(DAMAGED[name])
    with Store(tmp_path / "second", cache) as store:
        assert store.find(KEY) is None
        put(store)
    with Store(tmp_path / "third", cache) as store:
        assert store.find(KEY) is not None


@pytest.mark.parametrize(
    "key", ["../../escape", "/etc/passwd", "", "A" * 64, "a" * 63, "a" * 65, "a" * 63 + "/", KEY + "\n"]
)
def test_a_key_cannot_leave_the_directory(key: str, tmp_path: Path, run: Path, cache: Path) -> None:
    (tmp_path / "escape.json").write_text("precious")
    with Store(run, cache) as store:
        uses: tuple[Callable[[], object], ...] = (
            lambda: put(store, key),
            lambda: store.find(key),
            lambda: store.put_failure(key, NAME, "failed", ""),
        )
        for use in uses:
            with pytest.raises(ValueError, match="not a content key"):
                use()
    assert (tmp_path / "escape.json").read_text() == "precious"
    assert {p.name for p in tmp_path.iterdir()} == {"escape.json", "run", "cache"}


SECOND = """
import sys
from pathlib import Path
from aftershock.harness.store.run_directory import Store
from aftershock.harness.core.cell_names import CellName
from aftershock.harness.core.errors import UsageError
try:
    Store(Path(sys.argv[1]))
except UsageError as error:
    print(error)
    sys.exit(2)
"""


@pytest.mark.parametrize("count", [FEW], indirect=True)
def test_a_second_process_is_refused(run: Path, held: Store) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", SECOND, str(run)]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert found.returncode == 2, found.stderr
    assert found.stdout.startswith(f"Another process is working in {run}")
    held.close()
    assert subprocess.run(command, capture_output=True, env=environment, timeout=60).returncode == 0


def test_a_place_that_cannot_be_a_directory_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot be written .*--out"):
        Store(tmp_path / "file" / "run")
    with pytest.raises(UsageError, match=r"cannot be written .*--out"):
        Store(tmp_path / "file")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_one_sentence(run: Path) -> None:
    run.mkdir()
    run.chmod(0o500)
    try:
        with pytest.raises(UsageError, match=r"cannot be written .*--out"):
            Store(run)
    finally:
        run.chmod(0o700)


def full(error: int):  # type: ignore[no-untyped-def]
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(error, os.strerror(error))

    return fail


STEPS = {"append": (os, "write"), "write": (Path, "write_bytes"), "rename": (os, "replace")}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_full_disk_loses_nothing_that_was_there(
    step: str, code: int, run: Path, cache: Path, held: Store, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if step != "append" and count == FEW:
        pytest.skip("small cells are appended")

    def contents() -> dict[Path, bytes]:
        return {p: data for p in run.rglob("*") if p.is_file() and (data := p.read_bytes())}

    before = contents()
    with monkeypatch.context() as patched:
        patched.setattr(*STEPS[step], full(code))
        for key, scale in ((OTHER, 1.0), (KEY, 2.0)):
            if (step, key, count) == ("append", KEY, MANY):
                # Its file would be replaced before the entry fails.
                continue
            with pytest.raises(AftershockError, match="what was there is kept") as caught:
                put(held, key, scale, count)
            assert os.strerror(code) in str(caught.value)
        if step == "append":
            with pytest.raises(AftershockError, match="what was there is kept"):
                held.put_failure(OTHER, NAME, "failed", "why")
    after = {path: data for path, data in contents().items() if OTHER not in path.name}
    assert after == before
    held.close()
    with Store(run, cache) as store:
        assert store.find(OTHER) is None
        assert store.find(KEY) is not None
        assert numbers(store) == [*range(count)]
        put(store, OTHER, count=count)
        assert store.find(OTHER) is not None


def test_a_disk_that_fills_between_artifact_and_entry(run: Path, held: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        if data.startswith(b'{"checksum":'):
            real(descriptor, data[:100])
            raise OSError(errno.ENOSPC, "full")
        return real(descriptor, data)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write)
        with pytest.raises(AftershockError, match="No space left"):
            put(held, OTHER)
        assert held.find(OTHER) is None
    put(held, OTHER)
    held.close()
    with Store(run) as store:
        assert all(store.find(key) is not None for key in (KEY, OTHER))


def test_write_atomic_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_bytes

    def half(self: Path, data: bytes) -> int:
        real(self, data[:2])
        raise OSError(errno.ENOSPC, "full")

    (tmp_path / "f").write_bytes(b"old")
    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="full"):
        write_atomic(tmp_path / "f", b"newer")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"f": b"old"}


def test_leftovers_of_a_killed_run_are_cleared(run: Path, held: Store) -> None:
    held.close()
    (run / "tables").mkdir()
    (run / "artifacts" / "aa").mkdir(exist_ok=True)
    leftovers = [run / "run.json.77.tmp", run / "artifacts" / "aa" / "x.77.tmp",
                 run / "tables" / "metrics.csv.77.tmp"]  # fmt: skip
    for path in leftovers:
        path.write_text("half")
    with Store(run):
        assert not any(path.exists() for path in leftovers)
        assert artifact(run, KEY).exists()


# The cache


def test_another_run_takes_over_from_the_cache(tmp_path: Path, run: Path, cache: Path, held: Store, count: int) -> None:
    with Store(tmp_path / "second", cache) as store:
        assert store.find(KEY) is not None
        # A large artifact is linked, a small one is copied.
        assert artifact(tmp_path / "second", KEY).samefile(artifact(run, KEY)) == (count == MANY)
        assert store.values(KEY) == {"n": 3, "share": 0.1}
        # Recomputing in one run never writes through into the other.
        put(store, scale=5.0, count=count)
    assert numbers(held) == [*range(count)]


def test_another_run_copies_where_links_are_impossible(
    tmp_path: Path, run: Path, cache: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", full(errno.EXDEV))
    with Store(run, cache) as store:
        put(store, count=count)
        put(store, OTHER, count=count)
    assert [len(list((folder / "cells").iterdir())) for folder in (run, cache)] == [1, 1]
    with Store(tmp_path / "second", cache) as store:
        assert store.find(KEY) is not None
        assert not artifact(tmp_path / "second", KEY).samefile(artifact(run, KEY))
        flip(artifact(run, KEY))
        assert store.find(KEY) is not None and numbers(store) == [*range(count)]


def test_failures_are_never_shared(tmp_path: Path, run: Path, cache: Path) -> None:
    with Store(run, cache) as store:
        store.put_failure(KEY, NAME, "failed", "ZeroDivisionError")
        assert store.find(KEY) is None
        assert store.failure(KEY) is not None
    with Store(run, cache) as store:
        assert store.failure(KEY).reason == "ZeroDivisionError"  # type: ignore[union-attr]
        assert store.find(KEY) is None
    with Store(tmp_path / "second", cache) as store:
        assert store.find(KEY) is None


def test_fresh_ignores_run_and_cache(run: Path, cache: Path, held: Store) -> None:
    held.close()
    with Store(run, cache, fresh=True) as store:
        assert store.find(KEY) is None
        put(store, scale=2.0)
        assert store.find(KEY) is not None
    with Store(run, cache) as store:
        assert torch.equal(store.tensor(KEY, "x"), torch.arange(1000.0) * 2)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_with_other_things_is_no_place_for_a_run(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "thesis.csv").write_text("years of work")
    with pytest.raises(UsageError, match="--out"):
        Store(tmp_path, fresh=fresh)
    assert {path.name for path in tmp_path.iterdir()} == {"tables"}
    assert (tmp_path / "tables" / "thesis.csv").read_text() == "years of work"


def test_a_folder_that_is_empty_but_for_hidden_files_will_do(tmp_path: Path) -> None:
    (tmp_path / ".gitkeep").write_text("")
    with Store(tmp_path) as store:
        put(store)


def test_a_cache_is_no_place_for_a_run(run: Path, cache: Path) -> None:
    with Store(run, cache) as store:
        put(store)
    with pytest.raises(UsageError, match="--out"):
        Store(cache, cache)


def test_a_cache_that_is_a_file_is_done_without(run: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with Store(run, tmp_path / "cache") as store:
        assert store.computing(KEY) is not None
        put(store)
        assert store.find(KEY) is not None


def test_a_cache_that_cannot_be_written_is_done_without(run: Path, cache: Path) -> None:
    # What stands in the way here are files where folders belong.
    cache.mkdir()
    (cache / "cells").write_text("")
    (cache / "locks").write_text("")
    with Store(run, cache) as store:
        assert store.find(KEY) is None
        assert store.computing(KEY) is not None
        put(store)
        put(store, OTHER)
        assert store.find(KEY) is not None and store.find(OTHER) is not None
    assert len(list((run / "cells").iterdir())) == 1


@pytest.mark.parametrize("count", [MANY], indirect=True)
def test_a_cache_without_permission_is_done_without(
    run: Path, cache: Path, held: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(artifact(cache, KEY))
    real = Path.unlink

    def refuse(self: Path, missing_ok: bool = False) -> None:
        if cache in self.parents:
            raise PermissionError(errno.EACCES, "Permission denied")
        real(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    with Store(tmp_path / "second", cache) as store:
        assert store.find(KEY) is None
        put(store)
        assert store.find(KEY) is not None


@pytest.mark.parametrize("count", [MANY], indirect=True)
def test_a_cache_that_is_emptied_at_the_wrong_moment(
    tmp_path: Path, cache: Path, held: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, path = os.link, artifact(cache, KEY)

    def late(source: Path, target: Path) -> None:
        path.unlink()
        real(source, target)

    with Store(tmp_path / "second", cache) as store:
        monkeypatch.setattr(os, "link", late)
        assert store.find(KEY) is None


def test_a_full_disk_of_the_cache_is_no_reason_to_fail(run: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", full(errno.ENOSPC))
    with Store(run, cache) as store:
        put(store, count=MANY)
        assert store.find(KEY) is not None
    assert not ledger(cache)


def test_ledger_entries_are_readable_json(run: Path, held: Store) -> None:
    entry = raw_entry(run, KEY)
    assert entry["name"] == NAME.as_json()
    assert entry["status"] == "done"
    # What a program in another language needs to find the artifact.
    path = run / "artifacts" / (f"{entry['pack']}.pack" if entry["pack"] else f"{KEY[:2]}/{KEY}.safetensors")
    data = path.read_bytes()[entry["offset"] : entry["offset"] + entry["size"]]
    assert hashlib.sha256(data).hexdigest() == entry["digest"]
