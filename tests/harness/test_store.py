"""The run directory and the cache under damage, full disks, strangers' files and second processes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from aftershock.harness.core.cell_names import CellName
from aftershock.harness.core.errors import AftershockError, UsageError
from aftershock.harness.core.files import write_atomic
from aftershock.harness.core.formats import seal
from aftershock.harness.store.artifacts import Artifact
from aftershock.harness.store.ledger import SCHEMA, SUFFIX, Record, is_whole, read_record
from aftershock.harness.store.run_directory import Store

KEY, OTHER = "a" * 64, "b" * 64
NAME = CellName("digits", "mlp", 0, "thing")


def put(store: Store, key: str = KEY, scale: float = 1.0) -> Record:
    tensors = {"x": torch.arange(1000.0) * scale, "flags": torch.tensor([True, False])}
    return store.put(key, NAME, Artifact.of(tensors), {"n": 3, "share": 0.1}, 1.5)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def held(run: Path, cache: Path) -> Iterator[Store]:
    """A store with one cell, shared with the cache."""
    with Store(run, cache) as store:
        put(store)
        yield store


def artifact(folder: Path, key: str = KEY) -> Path:
    return folder / "artifacts" / f"{key}{SUFFIX}"


def cached(cache: Path, key: str = KEY) -> Path:
    return cache / "cells" / key[:2] / f"{key}{SUFFIX}"


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
    assert not list((run / "artifacts").iterdir())


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
def test_a_damaged_artifact_is_noticed_and_replaced(damage, run: Path, cache: Path, held: Store) -> None:  # type: ignore[no-untyped-def]
    # By hard link the cache's file is the same one, so nothing whole is left.
    assert artifact(run).samefile(cached(cache))
    held.close()
    damage(artifact(run))
    with Store(run, cache) as store:
        assert store.find(KEY) is None
        assert not artifact(run).exists()
        assert not cached(cache).exists()
        put(store)
        assert store.find(KEY) is not None
        assert torch.equal(store.tensor(KEY, "x"), torch.arange(1000.0))
    assert is_whole(cached(cache), read_record(cached(cache).with_suffix(".json")))  # type: ignore[arg-type]


def test_a_damaged_artifact_is_noticed_while_the_run_goes_on(run: Path, held: Store) -> None:
    flip(artifact(run))
    assert held.find(KEY) is None


def test_a_lost_artifact_comes_back_from_the_cache(run: Path, cache: Path, held: Store) -> None:
    artifact(run).unlink()
    assert held.find(KEY) is not None
    assert torch.equal(held.tensor(KEY, "x"), torch.arange(1000.0))


def test_a_damaged_copy_in_the_run_is_replaced_by_the_whole_one_of_the_cache(
    run: Path, cache: Path, held: Store
) -> None:
    data = artifact(run).read_bytes()
    artifact(run).unlink()
    artifact(run).write_bytes(data[:-1] + b"!")
    assert held.find(KEY) is not None
    assert artifact(run).read_bytes() == data


def test_touching_an_artifact_is_no_damage(run: Path, held: Store) -> None:
    os.utime(artifact(run), (1, 1))
    assert held.find(KEY) is not None


def entry(key: str = KEY, schema: int = SCHEMA, **changes: object) -> bytes:
    """A ledger entry with a right checksum, whatever it says."""
    return seal({"schema": schema, "aftershock": "9.9", **asdict(Record(key, NAME, "done")), **changes})


DAMAGED = {
    "nothing": b"",
    "half": entry()[: len(entry()) // 2],
    "binary": b"\xff\xfe\x00",
    "another-shape": b"[1, 2]",
    "deep": b"[" * 100_000,
    "no-checksum": json.dumps(asdict(Record(KEY, NAME, "done"))).encode(),
    "edited": entry(values={"clean_accuracy": 0.98}).replace(b"0.98", b"0.99"),
    "edited-seconds": entry(seconds=1.5).replace(b"1.5", b"2.5"),
    "edited-name": entry().replace(b'"mlp"', b'"cnn"'),
    "older-schema": entry(schema=1),
    "other-key": entry(OTHER),
    "no-key": seal({"schema": SCHEMA, "aftershock": "9.9"}),
    "hostile-key": entry("../../../etc/passwd"),
    "odd-status": entry(status="finished"),
    "odd-values": entry(values=None),
    "odd-seconds": entry(seconds="fast"),
    "more-fields": entry(extra=1),
}


def test_a_ledger_entry_that_is_not_damaged_is_read(tmp_path: Path) -> None:
    path = tmp_path / f"{KEY}.json"
    path.write_bytes(entry(seconds=1.5))
    assert read_record(path) == Record(KEY, NAME, "done", seconds=1.5)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_ledger_entry_is_not_there(name: str, run: Path) -> None:
    with Store(run) as store:
        put(store)
    (run / "cells" / f"{KEY}.json").write_bytes(DAMAGED[name])
    with Store(run) as store:
        assert store.find(KEY) is None
        assert store.records() == []
        put(store, scale=2.0)
        assert store.find(KEY) is not None


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_entry_of_the_cache_is_not_there(name: str, tmp_path: Path, cache: Path, held: Store) -> None:
    cached(cache).with_suffix(".json").write_bytes(DAMAGED[name])
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


STEPS = {"write": (Path, "write_bytes"), "rename": (os, "replace"), "rename-path": (Path, "replace")}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_full_disk_loses_nothing_that_was_there(
    step: str, code: int, run: Path, cache: Path, held: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with monkeypatch.context() as patched:
        patched.setattr(*STEPS[step], full(code))
        for key, scale in ((OTHER, 1.0), (KEY, 2.0)):
            with pytest.raises(AftershockError, match="what was there is kept") as caught:
                put(held, key, scale)
            assert os.strerror(code) in str(caught.value)
        with pytest.raises(AftershockError, match="what was there is kept"):
            held.put_failure(OTHER, NAME, "failed", "why")
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    held.close()
    with Store(run, cache) as store:
        assert store.find(OTHER) is None
        assert store.find(KEY) is not None
        assert torch.equal(store.tensor(KEY, "x"), torch.arange(1000.0))
        put(store, OTHER)
        assert store.find(OTHER) is not None


def test_a_disk_that_fills_between_artifact_and_entry(run: Path, held: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_bytes

    def write(self: Path, data: bytes) -> int:
        if self.name.startswith(f"{OTHER}.json"):
            raise OSError(errno.ENOSPC, "full")
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(AftershockError, match="No space left"):
        put(held, OTHER)
    assert held.find(OTHER) is None


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
    leftovers = [run / "run.json.77.tmp", run / "cells" / "x.json.77.tmp", run / "artifacts" / "x.77.tmp",
                 run / "tables" / "metrics.csv.77.tmp"]  # fmt: skip
    for path in leftovers:
        path.write_text("half")
    with Store(run):
        assert not any(path.exists() for path in leftovers)
        assert artifact(run).exists()


# The cache


def test_another_run_links_from_the_cache(tmp_path: Path, run: Path, cache: Path, held: Store) -> None:
    with Store(tmp_path / "second", cache) as store:
        assert store.find(KEY) is not None
        assert artifact(tmp_path / "second").samefile(artifact(run))
        assert store.values(KEY) == {"n": 3, "share": 0.1}
        # Recomputing in one run never writes through into the other.
        put(store, scale=5.0)
    assert torch.equal(held.tensor(KEY, "x"), torch.arange(1000.0))


def test_another_run_copies_where_links_are_impossible(
    tmp_path: Path, run: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", full(errno.EXDEV))
    with Store(run, cache) as store:
        put(store)
    with Store(tmp_path / "second", cache) as store:
        assert store.find(KEY) is not None
        assert not artifact(tmp_path / "second").samefile(artifact(run))
        flip(artifact(run))
        assert store.find(KEY) is not None


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
    # What stands in the way here are files where folders belong and the other way round.
    (cache / "cells").mkdir(parents=True)
    (cache / "cells" / KEY[:2]).write_text("")
    (cache / "locks" / f"{KEY}.lock").mkdir(parents=True)
    with Store(run, cache) as store:
        assert store.find(KEY) is None
        assert store.computing(KEY) is not None
        put(store)
        assert store.find(KEY) is not None


def test_a_cache_without_permission_is_done_without(
    run: Path, cache: Path, held: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(cached(cache))
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


def test_a_cache_that_is_emptied_at_the_wrong_moment(
    tmp_path: Path, cache: Path, held: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def late(source: Path, target: Path) -> None:
        cached(cache).unlink()
        real(source, target)

    monkeypatch.setattr(os, "link", late)
    with Store(tmp_path / "second", cache) as store:
        assert store.find(KEY) is None


def test_a_full_disk_of_the_cache_is_no_reason_to_fail(run: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", full(errno.ENOSPC))
    with Store(run, cache) as store:
        put(store)
        assert store.find(KEY) is not None
    assert not cached(cache).with_suffix(".json").exists()


def test_ledger_entries_are_readable_json(run: Path, held: Store) -> None:
    entry = json.loads((run / "cells" / f"{KEY}.json").read_text())
    assert entry["name"] == NAME.as_json()
    assert entry["status"] == "done"
    assert entry["size"] == artifact(run).stat().st_size
