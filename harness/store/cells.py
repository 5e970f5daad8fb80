"""Finished cells as a folder holds them, a run directory or the cache: the one way in which they are read.

::

    cells/<pack>.jsonl                        entries of the ledger, one a line
    artifacts/<pack>.pack                     small artifacts, each a whole safetensors file, one after the other
    artifacts/<xx>/<key>.safetensors          large artifacts; xx are the first two digits of the key

A pack is two files of one name, to which one process appends. An entry says where its artifact is. What is written
stays as it is until the pack is removed: whoever has read a part of one reads on from there. A line that is damaged, or
whose artifact is, is not there; what stands before and behind it in the pack is.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from safetensors import SafetensorError

from ..core.errors import UsageError
from ..core.files import KIB, MIB, RefusedFileError, file_digest, open_file, open_tensors
from ..core.recent import Recent
from .artifacts import SMALL, ArtifactTensors
from .compression import DamagedTensorError
from .ledger import PACK, RECORD_LIMIT, Head, Held, Record, checked_key, newer_schema, parse_head, parse_record

if TYPE_CHECKING:
    from torch import Tensor

DECIDES_NO_NUMBER = True

LINES, ARTIFACTS = ".jsonl", ".pack"
SUFFIX = ".safetensors"
# A pack is full, and another one is begun, at one of these.
_MOST_LINES, _MOST_BYTES = 4000, 32 * MIB
# The largest file of a pack that is looked into: one line or artifact more than makes it full.
_LARGEST = _MOST_BYTES + RECORD_LIMIT + SMALL
# Entries that are held in memory once they were asked for.
_KEPT = 4096
# Bytes of the tensors that are held so.
_KEPT_BYTES = 32 * MIB
# A pack that was begun earlier than that many seconds ago is left as it is: its cells grow old together, and the cache
# goes by their age.
YOUNG = 86400.0
# Times of folders are as coarse as that, in seconds: a listing that is not later than the folder's time was first seen
# by that much may lack files of the same time.
_COARSE = 0.1


class _Place(NamedTuple):
    """Where an entry is: of several of one cell the newest one counts."""

    written: int
    pack: str
    start: int
    length: int
    done: bool


@dataclass(slots=True)
class PackState:
    """How far a pack was read.

    Attributes:
        end: where the last whole line ends.
        lines: how many there are.
        bytes: where the last artifact ends.
        begun: when its first entry was written, in ns since 1970, which never changes; 0 without entries.
        old: it was read to its end after the time in which anything is appended to it.
    """

    end: int = 0
    lines: int = 0
    bytes: int = 0
    begun: int = 0
    old: bool = False

    @property
    def full(self) -> bool:
        """Whether nothing more is appended to it."""
        return self.lines >= _MOST_LINES or self.end >= _MOST_BYTES or self.bytes >= _MOST_BYTES

    def older(self, seconds: float) -> bool:
        """Return whether it was begun earlier than that many seconds ago."""
        return self.begun > 0 and time.time() - self.begun / 1e9 > seconds

    def add(self, held: Held, length: int) -> None:
        """Take the line of an entry into account."""
        self.begun = self.begun or held.written
        self.end += length
        self.lines += 1
        if held.pack:
            self.bytes = max(self.bytes, held.offset + held.size)


class Cells:
    """Cells of a folder, which others may write meanwhile; see :meth:`refresh`.

    Args:
        root: the run directory or cache.

    Attributes:
        own: packs that need not be read, by name: this process appends to them, or has what they hold elsewhere.
        packs: how far each pack was read, by name.
        newer: the newest schema beyond this version's own that an entry has; 0 where none has.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folder = root / "cells"
        self.own: set[str] = set()
        self.packs: dict[str, PackState] = {}
        self.newer = 0
        # Of these, the packs to which something may have been appended since.
        self._growing: set[str] = set()
        self._places: dict[str, tuple[_Place, ...]] = {}
        self._records: Recent[str, Record] = Recent(_KEPT)
        self._tensors: Recent[tuple[str, str], Tensor] = Recent(_KEPT_BYTES, lambda held: held.nbytes + KIB)
        # The time of the folder of packs, since when it was seen to have it, whether it was listed long after.
        self._listed, self._since, self._settled = 0, 0.0, False
        # Folders of large artifacts that are no links.
        self._folders: set[str] = set()

    def refresh(self, each: Callable[[Head, str, int], None] | None = None, again: bool = False) -> None:
        """Read what was written since the last call; what was removed is forgotten.

        Args:
            each: called with every entry that is read, its pack and the bytes of its line.
            again: look for new packs even where the folder says that there are none, as it may for some seconds on a
                file system of another machine.
        """
        self._list(again)
        for name in sorted(self._growing - self.own):
            state = self.packs.get(name)
            if state is not None:
                self._read_on(name, state, each)
            if state is None or state.full or state.old:
                self._growing.discard(name)

    def begin(self, name: str) -> None:
        """Take a pack into account of which nothing was read yet."""
        self.packs[name] = PackState()
        self._growing.add(name)

    def keys(self) -> Iterable[str]:
        """Return the keys of all cells that have an entry."""
        return self._places.keys()

    def done(self) -> set[str]:
        """Return the keys of the cells whose entry says that they have a result."""
        return {key for key, places in self._places.items() if places[-1].done}

    def record(self, key: str) -> Record | None:
        """Return the newest entry of a cell that is whole, ``None`` if there is none.

        Raises:
            ValueError: for what is not a key.
            OSError: if it is there and cannot be read now, which says nothing of it.
        """
        if key in self._records:
            return self._records[key]
        if key not in self._places:
            checked_key(key)
        while places := self._places.get(key):
            record = self._entry(places[-1])
            if record is not None and record.key == key:
                self._records[key] = record
                return record
            self.drop(key)
        return None

    def records(self) -> Iterator[Record]:
        """Return all entries that count, as they lie on the disk; errors are those of :meth:`record`."""
        order = sorted(self._places, key=lambda key: self._places[key][-1][1:])
        for key in order:
            record = self._records[key] if key in self._records else self._entry(self._places[key][-1])
            if record is not None and record.key == key:
                yield record

    def drop(self, key: str) -> None:
        """Forget the newest entry of a cell, which is of no use; an older one, if there is one, counts again."""
        places = self._places.pop(key, ())[:-1]
        if places:
            self._places[key] = places
        self._records.discard(key)

    def note(self, name: str, record: Record, start: int, length: int) -> None:
        """Take an entry into account that this process appended to a pack."""
        state = self.packs[name]
        state.end = start
        state.add(record, length)
        self._add(_Place(record.written, name, start, length, record.status == "done"), record.key)
        self._records[record.key] = record

    def pack_of(self, key: str) -> str:
        """Return the name of the pack that a cell's newest entry is in."""
        return self._places[key][-1].pack

    def stamps(self) -> dict[str, tuple[int, int]]:
        """Return size and modification time, in ns, of the small artifacts of every pack."""
        found = {}
        for name in self.packs:
            with suppress(OSError):
                state = self.pack(name).lstat()
                found[name] = (state.st_size, state.st_mtime_ns)
        return found

    def newest(self, key: str) -> int:
        """Return when the newest entry of a cell was written; 0 where there is none."""
        places = self._places.get(key)
        return places[-1].written if places else 0

    def is_whole(self, held: Held, hashed: bool = True) -> bool:
        """Return whether an artifact is as it was written.

        Args:
            held: the cell's entry.
            hashed: read all of it; otherwise a file of its own is hashed only when size or time say that it was
                touched.

        Raises:
            OSError: if it is there and cannot be read now, which says nothing of it.
        """
        if not held.digest:
            return True
        try:
            if held.pack:
                self._piece(held)
                return True
            path = self._file(held.key)
            state = os.lstat(path)
            if not stat.S_ISREG(state.st_mode) or state.st_size != held.size:
                return False
            return (not hashed and state.st_mtime_ns == held.modified) or file_digest(
                Path(path), held.size
            ) == held.digest
        except (FileNotFoundError, NotADirectoryError, UsageError):
            return False

    def load(self, record: Record) -> dict[str, Tensor]:
        """Return the tensors of a cell; those of a large artifact are memory-mapped.

        Raises:
            OSError: if the artifact cannot be read.
            RefusedFileError: if it is damaged.
        """
        if not record.digest:
            return {}
        with self._opened(record) as held:
            return {name: held[name] for name in held.names}

    def tensor(self, record: Record, name: str) -> Tensor:
        """Return one tensor of a cell; errors are those of :meth:`load`, and ``KeyError`` for another name."""
        # A detector asks for the same rows tap by tap, a slice at a time: what was decompressed is kept for a while.
        kept = (record.digest, name)
        if kept in self._tensors:
            return self._tensors[kept].clone()
        with self._opened(record) as held:
            if name not in held.names:
                raise KeyError(name)
            found = held[name]
            if name in held.compressed and 0 < found.nbytes <= _KEPT_BYTES:
                self._tensors[kept] = _apart(found)
            return found

    @contextmanager
    def _opened(self, record: Record) -> Iterator[ArtifactTensors]:
        """Open an artifact."""
        try:
            if record.pack:
                yield ArtifactTensors.of_bytes(self._piece(record))
            else:
                path = Path(self._file(record.key))
                with open_tensors(path, follow=False) as opened:
                    yield ArtifactTensors.of_file(opened, path.stat().st_size)
        except (SafetensorError, DamagedTensorError) as error:
            raise self._damaged(record) from error

    def data(self, record: Record) -> bytes:
        """Return the bytes of an artifact; errors are those of :meth:`load`."""
        if not record.pack:
            with open_file(Path(self._file(record.key)), record.size, follow=False) as stream:
                return stream.read()
        return self._piece(record)

    def forget_pack(self, name: str) -> None:
        """Forget what a pack that is gone held."""
        self.packs.pop(name, None)
        for key, places in list(self._places.items()):
            if any(place.pack == name for place in places):
                left = tuple(place for place in places if place.pack != name)
                self._records.discard(key)
                if left:
                    self._places[key] = left
                else:
                    del self._places[key]

    def artifact(self, key: str) -> Path:
        """Return the file of a large artifact."""
        return self.root / "artifacts" / key[:2] / f"{checked_key(key)}{SUFFIX}"

    def place(self, held: Held) -> Path:
        """Return the file that holds an artifact, with others or alone."""
        return self.pack(held.pack) if held.pack else self.artifact(held.key)

    def state(self, held: Held) -> os.stat_result:
        """Return the state of that file.

        Raises:
            OSError: if it is not there.
            UsageError: if a link is in the place of its folder.
        """
        return os.lstat(f"{self.root}/artifacts/{held.pack}{ARTIFACTS}" if held.pack else self._file(held.key))

    def lines(self, name: str) -> Path:
        """Return the file of a pack's entries."""
        return self.root / "cells" / f"{name}{LINES}"

    def pack(self, name: str) -> Path:
        """Return the file of a pack's artifacts."""
        return self.root / "artifacts" / f"{name}{ARTIFACTS}"

    def _file(self, key: str) -> str:
        """Return the file of a large artifact, to be read: a link in the place of its folder is not followed."""
        folder = f"{self.root}/artifacts/{checked_key(key)[:2]}"
        if folder not in self._folders:
            if Path(folder).is_symlink():
                raise RefusedFileError(f"{folder} is a link: replace it by the folder itself.")
            self._folders.add(folder)
        return f"{folder}/{key}{SUFFIX}"

    def _list(self, again: bool) -> None:
        try:
            changed = self._folder.stat().st_mtime_ns
            since = self._since if changed == self._listed else time.monotonic()
            if changed == self._listed and self._settled and not again:
                return
            settled = time.monotonic() - since > _COARSE
            names = {path.stem for path in self._folder.iterdir() if path.suffix == LINES}
        except FileNotFoundError:
            changed, since, settled, names = 0, 0.0, False, set()
        except OSError:
            # It cannot be read now: what is known stays, and the next call asks again.
            return
        self._listed, self._since, self._settled = changed, since, settled
        if names == self.packs.keys():
            return
        for name in self.packs.keys() - names - self.own:
            self.forget_pack(name)
        for name in sorted(names - self.packs.keys()):
            if PACK.fullmatch(name):
                self.begin(name)

    def _read_on(self, name: str, state: PackState, each: Callable[[Head, str, int], None] | None) -> None:
        with suppress(OSError, UsageError), open_file(self.lines(name), _LARGEST, follow=False) as stream:
            if os.fstat(stream.fileno()).st_size != state.end:
                stream.seek(state.end)
                self._read_lines(stream, name, state, each)
            # Twice the time in which it is appended to: clocks differ.
            state.old = state.older(2 * YOUNG)

    def _read_lines(
        self, stream: IO[bytes], name: str, state: PackState, each: Callable[[Head, str, int], None] | None
    ) -> None:
        # A line without an end is being written, or was when its process was killed.
        while (line := stream.readline(RECORD_LIMIT)).endswith(b"\n"):
            start, head = state.end, parse_head(line)
            if head is None:
                state.end += len(line)
                self.newer = max(self.newer, newer_schema(line))
                continue
            state.add(head, len(line))
            self._add(_Place(head.written, name, start, len(line), head.status == "done"), head.key)
            self._records.discard(head.key)
            if each is not None:
                each(head, name, len(line))

    def _add(self, place: _Place, key: str) -> None:
        places = self._places.get(key)
        self._places[key] = (place,) if places is None else tuple(sorted((*places, place)))

    def _entry(self, place: _Place) -> Record | None:
        try:
            with open_file(self.lines(place.pack), _LARGEST, follow=False) as stream:
                stream.seek(place.start)
                return parse_record(stream.read(place.length))
        except (FileNotFoundError, NotADirectoryError, UsageError):
            return None

    def _piece(self, held: Held) -> bytes:
        """Return the bytes of a small artifact, which are whole."""
        if held.size > SMALL:
            raise self._damaged(held)
        with open_file(self.pack(held.pack), _LARGEST, follow=False) as stream:
            stream.seek(held.offset)
            data = stream.read(held.size)
        if hashlib.sha256(data).hexdigest() != held.digest:
            raise self._damaged(held)
        return data

    def _damaged(self, held: Held) -> RefusedFileError:
        where = f" at {held.offset}" if held.pack else ""
        return RefusedFileError(f"{self.place(held)} is damaged{where}: run the suite again.")


def _apart(tensor: Tensor) -> Tensor:
    """Return a copy in memory of its own: what is held for long beside what is freed soon leaves holes in the heap."""
    import torch

    return torch.frombuffer(mmap.mmap(-1, tensor.nbytes), dtype=tensor.dtype).view(tensor.shape).copy_(tensor)
