"""The run directory and the cache: finished cells, written so that a kill loses at most the cell that is being written.

Both hold cells in the same way (:mod:`~aftershock.harness.store.cells`): small ones in packs, large artifacts as files,
which a run and the cache share by hard links. A run holds all that it uses, so it stays whole when the cache is
emptied. First the artifact is written, then the entry with its digest; an entry whose artifact is missing or differs is
not there.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout
from torch import Tensor

from ..core.cell_names import CellName
from ..core.errors import AftershockError, UsageError
from ..core.files import parse_json, read_if_there, refuse_links_below, remove_leftovers, why
from ..core.formats import RUN_JSON_LIMIT, RUN_SCHEMA, check_schema
from .artifacts import Artifact
from .cells import Cells
from .ledger import KEY, SCHEMA, Record, Status, checked_key
from .packs import CellWriter
from .secrets import KEPT_IN
from .shared_cache import SharedCache

DECIDES_NO_NUMBER = True

# What a run directory holds that is ours to write and delete.
PARTS = (
    "cells", "artifacts", "tables", "site", "analyses", "gallery", "run.json", "keys.txt", ".lock", ".incoming",
    KEPT_IN,
)  # fmt: skip
# Seconds of work that a power cut may cost: what was written is brought to the disk as often.
_SYNCED = 10.0


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
        self.folder, self.cache = folder, cache
        self._fresh = fresh
        # The run's own lock keeps others from its packs.
        self._cells = Cells(folder)
        self._writer = CellWriter(self._cells, lambda name: ExitStack())
        self._shared: SharedCache | None = None
        # What this run computed, and only that, is in packs that it has in common with the cache.
        self._computed = self._writer
        self._synced = time.monotonic()
        # Small artifacts that were hashed by this process, and size, time and file of the large ones.
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
        cells, artifacts = self.folder / "cells", self.folder / "artifacts"
        if fresh:
            for old in (cells, artifacts, self.folder / "tables", self.folder / "site"):
                shutil.rmtree(old, ignore_errors=True)
            for name in ("run.json", "keys.txt"):
                (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / ".incoming", ignore_errors=True)
        for place in (cells, artifacts):
            place.mkdir(exist_ok=True)
        _refuse_older(self.folder)
        # What a killed process was writing; no other process writes while the lock is held.
        for written in ("", "tables", "gallery", "site", "site/assets", "site/analyses"):
            remove_leftovers(self.folder / written)
        for place in artifacts.iterdir():
            remove_leftovers(place)
        self._cells.refresh()
        if self._cells.newer:
            check_schema(cells, self._cells.newer, SCHEMA)
        if self.cache is not None:
            self._shared = SharedCache.opened(self.cache, self._cells)
        if self._shared is not None:
            self._computed = self._shared.writer(self._cells)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the directory back."""
        with suppress(OSError):
            self.sync()
        self._writer.close()
        self._computed.close()
        if self._shared is not None:
            self._shared.close()
        shutil.rmtree(self.folder / ".incoming", ignore_errors=True)
        self._lock.release()

    def sync(self) -> None:
        """Bring all that was put to the disk: a power cut later than this call costs none of it."""
        self._writer.sync()
        self._computed.sync()
        if self._shared is not None:
            self._shared.sync()
        self._synced = time.monotonic()

    def incoming(self) -> Path:
        """A folder for artifacts that other processes make; it is removed when the store is closed."""
        place = self.folder / ".incoming"
        try:
            place.mkdir(exist_ok=True)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        return place

    def find(self, key: str, name: CellName | None = None) -> Record | None:
        """Return the finished cell of a key, whole, from the run directory or taken over from the cache; else ``None``.

        Args:
            key: the content key.
            name: what this run calls it. Content has no labels: the run that computed it may have called it otherwise.

        Raises:
            AftershockError: if it cannot be read now, which says nothing of it, or its entry cannot be written.
        """
        while (record := self._known(key)) is not None and record.status == "done":
            if self._is_whole(record):
                return self._called(record, name)
            self._forget(record)
        return None if self._fresh or self._shared is None else self._adopt(self._shared, key, name)

    def _called(self, record: Record, name: CellName | None) -> Record:
        """Return an entry of the run directory under the name that this run has for it."""
        return record if name is None or record.name == name else self._enter(replace(record, name=name))

    def _enter(self, record: Record, data: bytes = b"") -> Record:
        """Write an entry of the ledger, with a small artifact."""
        try:
            return self._writer.add(record, data)[0]
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def _is_whole(self, record: Record) -> bool:
        """Whether a cell's artifact is as it was written; hashed once in the life of this store, and when touched."""
        stamp = self._stamp(record)
        if record.digest and (not any(stamp) or self._hashed.get(record.key) != stamp):
            with self._reading():
                if not self._cells.is_whole(record):
                    return False
            self._hashed[record.key] = stamp
        return True

    def _stamp(self, record: Record) -> tuple[int, int, int]:
        """Return what tells whether an artifact is still the one that was hashed; small ones are hashed when read."""
        try:
            state = self._cells.state(record)
        except (OSError, UsageError):
            return (0, 0, 0)
        if record.pack:
            # What is appended to the pack later is no change.
            return (min(state.st_size, record.offset + record.size), record.offset, state.st_ino)
        return (state.st_size, state.st_mtime_ns, state.st_ino)

    def _forget(self, record: Record) -> None:
        """Drop a damaged cell; the cache's copy is judged on its own (by hard link it may be the same file)."""
        self._cells.drop(record.key)
        if self._shared is not None:
            self._shared.look_again()
        if not record.pack:
            try:
                self._cells.artifact(record.key).unlink(missing_ok=True)
            except OSError as error:
                raise unwritable(self.folder, error) from error

    def failure(self, key: str) -> Record | None:
        """Return the ledger's entry of a cell that failed or was skipped; errors are those of :meth:`record`."""
        record = self._known(key)
        return record if record is not None and record.status != "done" else None

    def records(self) -> list[Record]:
        """Every entry of the ledger that counts, by name.

        Raises:
            AftershockError: if one cannot be read.
        """
        with self._reading():
            return sorted(self._cells.records(), key=lambda r: (str(r.name), r.key))

    def done(self) -> Collection[str]:
        """Return the keys of the cells that have a result, as far as the ledger knows."""
        return self._cells.done()

    def put(self, key: str, name: CellName, artifact: Artifact, values: Mapping[str, Any], seconds: float) -> Record:
        """Store a finished cell; a file that is given is moved into the run directory.

        Raises:
            AftershockError: if it cannot be written (a full disk), or bytes that were sent are not those that were
                made; what was there stays.
            TypeError, ValueError: for values that JSON has no form for, or too many of them.
        """
        record = Record(checked_key(key), name, "done", "", round(seconds, 6), values, artifact.digest, artifact.size)
        if artifact.path is None and artifact.size and hashlib.sha256(artifact.data).hexdigest() != artifact.digest:
            raise AftershockError(f"the artifact of {name} was damaged on its way")
        data = artifact.data
        try:
            if artifact.path is not None or not artifact.small:
                record, data = replace(record, modified=self._writer.add_file(artifact, key)), b""
                if self._shared is not None:
                    self._shared.link(key, self._cells)
            record, linked = self._computed.add(record, data)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        self._hashed[key] = self._stamp(record)
        if self._shared is not None and not linked:
            self._shared.publish(record, data)
        if time.monotonic() - self._synced > _SYNCED:
            self.sync()
        return record

    def put_failure(self, key: str, name: CellName, status: Status, reason: str) -> Record:
        """Note why a cell has no result; such an entry is tried again by the next run and never cached."""
        return self._enter(Record(checked_key(key), name, status, reason))

    def load(self, key: str) -> dict[str, Tensor]:
        """Return the tensors of a finished cell; large ones are memory-mapped.

        Raises:
            AftershockError: if they cannot be read.
        """
        with self._reading():
            return self._cells.load(self.record(key))

    def tensor(self, key: str, name: str) -> Tensor:
        """Return one tensor of a finished cell, like :meth:`load`."""
        with self._reading():
            return self._cells.tensor(self.record(key), name)

    def values(self, key: str) -> Mapping[str, Any]:
        """Return the small results of a finished cell."""
        return self.record(key).values

    def artifact(self, key: str) -> Artifact:
        """Return the artifact of a finished cell with its bytes, as it is sent to where it cannot be read.

        Raises:
            AftershockError: if it cannot be read.
        """
        record = self.record(key)
        with self._reading():
            return Artifact(record.digest, record.size, self._cells.data(record)) if record.digest else Artifact()

    def record(self, key: str) -> Record:
        """Return what the ledger says of a finished cell.

        Raises:
            KeyError: if it says nothing.
            AftershockError: if it cannot be read.
        """
        record = self._known(key)
        if record is None:
            raise KeyError(key)
        return record

    def _known(self, key: str) -> Record | None:
        try:
            return self._cells.record(key)
        except OSError as error:
            raise self._unreadable(error) from error

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Say in a sentence what could not be read."""
        try:
            yield
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> AftershockError:
        return AftershockError(
            f"{self.folder} could not be read ({why(error)}): run the suite again, or remove that file."
        )

    def packs(self) -> dict[str, tuple[int, int]]:
        """Return size and modification time, in ns, of every pack of small artifacts: what tells of changes later."""
        return self._cells.stamps()

    def computing(self, key: str) -> ExitStack | None:
        """Lock a key from this call until what is returned is closed: runs that share a cache do no work twice.

        What other runs have finished by then is known afterwards.

        Returns:
            ``None`` if another run holds it.
        """
        return ExitStack() if self._shared is None else self._shared.lock(checked_key(key))

    def _adopt(self, shared: SharedCache, key: str, name: CellName | None) -> Record | None:
        found = shared.find(key)
        if found is None:
            return None
        record, data = found
        record = replace(record, name=record.name if name is None else name, pack="", offset=0)
        if record.digest and not data:
            try:
                modified = self._writer.link(shared.cells.artifact(key), key)
            except FileNotFoundError:
                # The cache is being emptied at this moment.
                return None
            except OSError as error:
                raise unwritable(self.folder, error) from error
            record = replace(record, modified=modified)
        record = self._enter(record, data)
        self._hashed[key] = self._stamp(record)
        return record


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


def _refuse_older(folder: Path) -> None:
    """Refuse a run directory in which every cell has files of its own, as versions before packs wrote it."""
    if any(KEY.fullmatch(path.stem) for path in (folder / "cells").glob("*.json")):
        raise UsageError(
            f"{folder} was written by an earlier version of aftershock, whose cells this one does not read: make it "
            "again with --fresh, or choose another directory with --out."
        )


def unwritable(folder: Path, error: OSError) -> AftershockError:
    """Return what to tell a person whose run directory cannot be written."""
    return AftershockError(f"{folder} could not be written ({why(error)}); what was there is kept.")
