"""The run directory and the cache: finished cells, written so that a kill at any moment loses at most one cell.

A cell's tensors become one safetensors file, written beside its final name and renamed; then the ledger entry with the
file's digest is renamed into place. An entry whose file is missing or differs is not there. The cache holds the same
two files per key; a run hard-links (or copies) what it uses, so it stays whole when the cache is emptied.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import safetensors
from filelock import BaseFileLock, FileLock, Timeout
from torch import Tensor

from ..core.cell_names import CellName
from ..core.errors import AftershockError, UsageError
from ..core.files import (
    parse_json,
    read_file,
    read_if_there,
    refuse_links_below,
    remove_leftovers,
    replacing,
    why,
    write_atomic,
)
from ..core.formats import RUN_JSON_LIMIT, RUN_SCHEMA, check_schema
from .artifacts import Artifact
from .cache import CACHE_SIGNATURE, CACHE_TAG
from .ledger import SUFFIX, Record, Status, checked_key, dump_record, is_whole, read_record

DECIDES_NO_NUMBER = True

# What a run directory holds that is ours to write and delete.
PARTS = ("cells", "artifacts", "tables", "site", "analyses", "run.json", "keys.txt", ".lock", ".incoming")


class Store:
    """The one writer of a run directory.

    Args:
        folder: the run directory; made if needed.
        cache: the shared cache, or ``None``.
        fresh: forget what the run directory and the cache hold for the cells of this run.

    Raises:
        UsageError: if another process holds the directory, it cannot be written, something in it is a link, or a
            newer version wrote it.
    """

    def __init__(self, folder: Path, cache: Path | None = None, fresh: bool = False) -> None:
        self.folder = folder
        self.cells, self.artifacts = folder / "cells", folder / "artifacts"
        self.cache = cache
        self._fresh = fresh
        self._records: dict[str, Record] = {}
        # Size, time and file of the artifacts that were hashed by this process.
        self._hashed: dict[str, tuple[int, int, int]] = {}
        refuse_links_below(folder, PARTS)
        if not fresh:
            _refuse_newer(folder / "run.json")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            known = (folder / ".lock").exists() or (folder / "run.json").exists()
            if not known and any(not path.name.startswith(".") for path in folder.iterdir()):
                raise UsageError(
                    f"{folder} holds other things than a run: choose a directory of its own for the run, with --out."
                )
            self._lock = FileLock(folder / ".lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(
                f"Another process is working in {folder}: wait for it, or choose another directory with --out."
            ) from None
        except OSError as error:
            raise UsageError(f"{folder} cannot be written ({why(error)}): choose another directory, --out.") from error
        try:
            self._open(fresh)
        except OSError as error:
            self._lock.release()
            raise UsageError(f"{folder} cannot be written ({why(error)}): choose another directory, --out.") from error
        except UsageError:
            self._lock.release()
            raise

    def _open(self, fresh: bool) -> None:
        if fresh:
            for old in (self.cells, self.artifacts, self.folder / "tables", self.folder / "site"):
                shutil.rmtree(old, ignore_errors=True)
            for name in ("run.json", "keys.txt"):
                (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / ".incoming", ignore_errors=True)
        for place in (self.cells, self.artifacts):
            place.mkdir(exist_ok=True)
        # What a killed process was writing; no other process writes while the lock is held.
        for written in ("", "cells", "artifacts", "tables", "site", "site/assets", "site/analyses"):
            remove_leftovers(self.folder / written)
        for path in self.cells.glob("*.json"):
            record = read_record(path)
            if record is not None:
                self._records[record.key] = record
        if self.cache is not None:
            try:
                self.cache.mkdir(parents=True, exist_ok=True)
                if not (self.cache / CACHE_TAG).exists():
                    write_atomic(self.cache / CACHE_TAG, CACHE_SIGNATURE.encode())
            except OSError:
                self.cache = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the directory back."""
        shutil.rmtree(self.folder / ".incoming", ignore_errors=True)
        self._lock.release()

    def incoming(self) -> Path:
        """A folder for artifacts that other processes make; it is removed when the store is closed."""
        place = self.folder / ".incoming"
        try:
            place.mkdir(exist_ok=True)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        return place

    def find(self, key: str, name: CellName | None = None) -> Record | None:
        """Return the finished cell of a key, whole, from the run directory or linked from the cache; else ``None``.

        Args:
            key: the content key.
            name: what this run calls it. Content has no labels: the run that computed it may have called it otherwise.

        Raises:
            AftershockError: if its entry cannot be written.
        """
        record = self._records.get(key)
        if record is not None and record.status == "done":
            if self._is_whole(key, record):
                return self._called(record, name)
            self._forget(key)
        return None if self._fresh else self._adopt(key, name)

    def _called(self, record: Record, name: CellName | None) -> Record:
        """Return an entry of the run directory under the name that this run has for it."""
        if name is None or record.name == name:
            return record
        return self._enter(replace(record, name=name))

    def _enter(self, record: Record) -> Record:
        """Write an entry of the ledger."""
        try:
            write_atomic(self._entry(record.key), dump_record(record))
        except OSError as error:
            raise unwritable(self.folder, error) from error
        self._records[record.key] = record
        return record

    def _is_whole(self, key: str, record: Record) -> bool:
        """Whether a cell's artifact is as it was written; hashed once in the life of this store, and when touched."""
        stamp = self._stamp(key)
        if record.digest and self._hashed.get(key) != stamp:
            if not is_whole(self._artifact(key), record):
                return False
            self._hashed[key] = stamp
        return True

    def _stamp(self, key: str) -> tuple[int, int, int]:
        try:
            state = self._artifact(key).lstat()
        except OSError:
            return (0, 0, 0)
        return (state.st_size, state.st_mtime_ns, state.st_ino)

    def failure(self, key: str) -> Record | None:
        """Return the ledger's entry of a cell that failed or was skipped."""
        record = self._records.get(key)
        return record if record is not None and record.status != "done" else None

    def records(self) -> list[Record]:
        """Every entry of the ledger, by name."""
        return sorted(self._records.values(), key=lambda r: (str(r.name), r.key))

    def put(self, key: str, name: CellName, artifact: Artifact, values: Mapping[str, Any], seconds: float) -> Record:
        """Store a finished cell; a file that is given is moved into the run directory.

        Raises:
            AftershockError: if it cannot be written (a full disk), or bytes that were sent are not those that were
                made; what was there stays.
        """
        modified = 0
        try:
            if artifact.path is not None:
                artifact.path.replace(self._artifact(key))
            elif artifact.size:
                if hashlib.sha256(artifact.data).hexdigest() != artifact.digest:
                    raise AftershockError(f"the artifact of {name} was damaged on its way")
                write_atomic(self._artifact(key), artifact.data)
            if artifact.size:
                modified = self._artifact(key).stat().st_mtime_ns
        except OSError as error:
            raise unwritable(self.folder, error) from error
        record = self._enter(
            Record(key, name, "done", "", round(seconds, 6), dict(values), artifact.digest, artifact.size, modified)
        )
        self._hashed[key] = self._stamp(key)
        self._publish(key, record)
        return record

    def put_failure(self, key: str, name: CellName, status: Status, reason: str) -> Record:
        """Note why a cell has no result; such an entry is tried again by the next run and never cached."""
        return self._enter(Record(key, name, status, reason))

    def load(self, key: str) -> dict[str, Tensor]:
        """Return the tensors of a finished cell, memory-mapped."""
        record = self._records[key]
        if not record.digest:
            return {}
        with safetensors.safe_open(self._artifact(key), framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)

    def tensor(self, key: str, name: str) -> Tensor:
        """Return one tensor of a finished cell, memory-mapped."""
        with safetensors.safe_open(self._artifact(key), framework="pt") as opened:
            found: Tensor = opened.get_tensor(name)
            return found

    def values(self, key: str) -> Mapping[str, Any]:
        """Return the small results of a finished cell."""
        return self._records[key].values

    def artifact(self, key: str) -> Artifact:
        """Return the artifact of a finished cell with its bytes, as it is sent to where it cannot be read.

        Raises:
            AftershockError: if it cannot be read.
        """
        record = self._records[key]
        if not record.digest:
            return Artifact()
        try:
            return Artifact(record.digest, record.size, read_file(self._artifact(key), record.size))
        except OSError as error:
            raise AftershockError(f"{self._artifact(key)} cannot be read ({why(error)})") from error

    def record(self, key: str) -> Record:
        """Return what the ledger says of a finished cell."""
        return self._records[key]

    def computing(self, key: str) -> ExitStack | None:
        """Lock a key from this call until what is returned is closed: runs that share a cache do no work twice.

        Locking is best effort: without it, work may be done twice.

        Returns:
            ``None`` if another run holds it.
        """
        held = ExitStack()
        if self.cache is None:
            return held
        place = self.cache / "locks"
        try:
            place.mkdir(parents=True, exist_ok=True)
            lock = FileLock(place / f"{checked_key(key)}.lock")
            held.enter_context(lock.acquire(timeout=0))
            held.callback(_remove_lock, lock)
        except Timeout:
            return None
        except OSError:
            pass
        return held

    def _artifact(self, key: str) -> Path:
        return self.artifacts / f"{checked_key(key)}{SUFFIX}"

    def _entry(self, key: str) -> Path:
        return self.cells / f"{checked_key(key)}.json"

    def _forget(self, key: str) -> None:
        """Drop a damaged cell; the cache's copy is judged on its own (by hard link it may be the same file)."""
        self._records.pop(key, None)
        try:
            for path in (self._entry(key), self._artifact(key)):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def _cached(self, key: str) -> tuple[Path, Path] | None:
        if self.cache is None:
            return None
        place = self.cache / "cells" / checked_key(key)[:2]
        return place / f"{key}{SUFFIX}", place / f"{key}.json"

    def _publish(self, key: str, record: Record) -> None:
        """Share a finished cell; this is best effort: without it, work may be done twice."""
        cached = self._cached(key)
        if cached is None:
            return
        artifact, entry = cached
        try:
            artifact.parent.mkdir(parents=True, exist_ok=True)
            if record.digest:
                _link(self._artifact(key), artifact)
            write_atomic(entry, dump_record(record))
        except OSError:
            return

    def _adopt(self, key: str, name: CellName | None) -> Record | None:
        cached = self._cached(key)
        if cached is None:
            return None
        try:
            if not os.path.lexists(cached[1]):
                return None
            record = read_record(cached[1])
            # All of it is read: a run must not take over what has rotted in the cache.
            if record is None or record.status != "done" or not is_whole(cached[0], record):
                for path in cached:
                    path.unlink(missing_ok=True)
                return None
        except (OSError, UsageError):
            # A cache that cannot be read or cleaned, or an entry of a newer version, does not stop the run.
            return None
        try:
            if record.digest:
                _link(cached[0], self._artifact(key))
            self._enter(record if name is None else replace(record, name=name))
            with suppress(OSError):
                # Its last use, by which the cache is pruned.
                os.utime(cached[1])
        except FileNotFoundError:
            # The cache is being emptied at this moment.
            return None
        except OSError as error:
            raise unwritable(self.folder, error) from error
        self._hashed[key] = self._stamp(key)
        return self._records[key]


def _remove_lock(lock: BaseFileLock) -> None:
    """Remove the file of a lock that is still held, so that a process that waited for it finds it gone and asks for a
    new one, as ``filelock`` does on POSIX systems; on Windows it removes the file itself."""
    if lock.is_locked and os.name == "posix":
        with suppress(OSError):
            Path(lock.lock_file).unlink()


def _link(source: Path, target: Path) -> None:
    """Hard-link, or copy where links are impossible; atomic and never through an existing file."""
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            shutil.copyfile(source, temporary)


def _refuse_newer(path: Path) -> None:
    """Refuse to work in a directory that a newer version wrote; what is damaged is written anew."""
    try:
        content = read_if_there(path, RUN_JSON_LIMIT)
        facts = None if content is None else parse_json(content, path)
    except (OSError, UsageError):
        return
    schema = facts.get("schema") if isinstance(facts, dict) else None
    if isinstance(facts, dict) and isinstance(schema, int) and schema > RUN_SCHEMA:
        versions = facts.get("versions")
        check_schema(path, schema, RUN_SCHEMA, versions.get("aftershock") if isinstance(versions, dict) else None)


def unwritable(folder: Path, error: OSError) -> AftershockError:
    """Return what to tell a person whose run directory cannot be written."""
    return AftershockError(f"{folder} could not be written ({why(error)}); what was there is kept.")
