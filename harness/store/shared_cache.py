"""The shared cache as a run uses it. All of it is best effort: what goes wrong here costs work that is done twice."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

from ..core.errors import UsageError
from ..core.files import write_atomic
from .cache import CACHE_SIGNATURE, CACHE_TAG, LOCKS
from .cells import Cells
from .ledger import Record
from .locks import Locks
from .packs import CellWriter

DECIDES_NO_NUMBER = True


class SharedCache:
    """Finished cells that runs of several processes and machines share.

    Args:
        root: the cache.

    Attributes:
        cells: what it holds.
    """

    def __init__(self, root: Path) -> None:
        self.cells = Cells(root)
        self._locks = Locks(root / LOCKS)
        self._writer = CellWriter(self.cells, self._locks.claim, alone=False)
        self._used: set[str] = set()

    @classmethod
    def opened(cls, root: Path, run: Cells) -> Self | None:
        """Return a cache, made if needed; ``None`` where it cannot be.

        Args:
            root: the cache.
            run: cells of the run directory: packs that both have need not be read twice.
        """
        try:
            root.mkdir(parents=True, exist_ok=True)
            if not (root / CACHE_TAG).exists():
                write_atomic(root / CACHE_TAG, CACHE_SIGNATURE.encode())
        except OSError:
            return None
        made = cls(root)
        made.cells.own |= {name for name in run.packs if _same(run, made.cells, name)}
        made.cells.refresh()
        return made

    def lock(self, key: str) -> ExitStack | None:
        """Lock a key until what is returned is closed, ``None`` if another run holds it; see what others finished."""
        try:
            held = self._locks.take(key)
        except OSError:
            held = ExitStack()
        if held is not None:
            self.cells.refresh()
        return held

    def look_again(self) -> None:
        """Read the packs that the run has as well: what is damaged there may be whole here."""
        self._writer.close()
        self.cells.own.clear()
        self.cells.refresh()

    def find(self, key: str) -> tuple[Record, bytes] | None:
        """Return a cell that is whole, with its artifact where that is small; damaged ones are removed.

        All of it is read: a run must not take over what has rotted in the cache.
        """
        try:
            return self._find(key)
        except OSError:
            # It cannot be read now, which is no damage.
            return None

    def _find(self, key: str) -> tuple[Record, bytes] | None:
        while (record := self.cells.record(key)) is not None and record.status == "done":
            with suppress(FileNotFoundError, NotADirectoryError, UsageError):
                data = self.cells.data(record) if record.pack else b""
                if data or self.cells.is_whole(record):
                    self._use(self.cells.pack_of(key))
                    return record, data
            self.cells.drop(key)
            if not record.pack:
                with suppress(OSError):
                    self.cells.artifact(key).unlink(missing_ok=True)
        return None

    def writer(self, cells: Cells) -> CellWriter:
        """Return what writes into a run directory so that the cache has the same packs, by hard links."""
        return CellWriter(cells, self._locks.claim, self.cells)

    def link(self, key: str, source: Cells) -> None:
        """Share the file of a large artifact, before its entry is written."""
        with suppress(OSError):
            self._writer.link(source.artifact(key), key)

    def publish(self, record: Record, data: bytes) -> None:
        """Share a finished cell whose pack cannot be linked; whatever goes wrong, the run has the cell.

        Args:
            record: its entry.
            data: its artifact where that is small.
        """
        with suppress(Exception):
            if record.digest and not data:
                record = replace(record, modified=self.cells.artifact(record.key).stat().st_mtime_ns)
            self._writer.add(record, data)

    def sync(self) -> None:
        """Bring what was published to the disk."""
        self._writer.sync()

    def close(self) -> None:
        """Let other processes go on with the pack of this one."""
        self._writer.close()
        self._locks.close()

    def _use(self, pack: str) -> None:
        """Note the last use of a pack, by which the cache is pruned."""
        if pack not in self._used:
            self._used.add(pack)
            with suppress(OSError):
                os.utime(self.cells.lines(pack))


def _same(run: Cells, cache: Cells, name: str) -> bool:
    """Return whether two folders have one pack by hard links."""
    try:
        return all(f(run, name).samefile(f(cache, name)) for f in (Cells.lines, Cells.pack))
    except OSError:
        return False
