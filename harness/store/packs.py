"""Writing finished cells: small ones are appended to packs, of which each writer has one at a time."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from ..core.files import append, replacing, sync
from .artifacts import Artifact
from .cells import YOUNG, Cells
from .ledger import RECORD_LIMIT, Record, dump_record

DECIDES_NO_NUMBER = True


class CellWriter:
    """Writes cells into a folder, beside other processes that do the same.

    What was written is there after a kill of the process at any moment. Against a power cut, see :meth:`sync`.

    Args:
        cells: of the folder, which take note of what is written.
        claim: keeps other processes from appending to a pack as long as what it returns is open; ``None`` where one
            does, or where nothing can be locked.
        other: another folder that holds the same packs, by hard links, and takes no note of them; ``None`` for none.
        alone: no other process writes into the folder, so that a new pack needs no claim. Others that write into the
            other folder join no pack that has two names.
    """

    def __init__(
        self, cells: Cells, claim: Callable[[str], ExitStack | None], other: Cells | None = None, alone: bool = True
    ) -> None:
        self._cells, self._claim, self._other, self._alone = cells, claim, other, alone
        self._held = ExitStack()
        # The pack that is appended to, its files, whether something was since they were brought to the disk.
        self._pack = ""
        self._lines = self._artifacts = Path()
        self._appended = False
        self._unsynced: set[Path] = set()

    def add(self, record: Record, data: bytes = b"") -> tuple[Record, bool]:
        """Write a cell's entry, with its artifact where that is small; what it says of places is set here.

        Args:
            record: of the cell.
            data: the small artifact; none where there is no artifact, a file of its own, or one in a pack already.

        Returns:
            the entry as it was written, and whether the other folder has it as well.

        Raises:
            OSError: if it cannot be written; nothing of it is there then.
            TypeError, ValueError: for values that JSON has no form for, or too many of them.
        """
        if self._pack and self._cells.packs[self._pack].older(YOUNG):
            self.close()
        try:
            return self._add(self._pack or self._begin(), record, data)
        except FileNotFoundError:
            # The cache is being emptied.
            self.close()
            return self._add(self._begin(), record, data)

    def _add(self, pack: str, record: Record, data: bytes) -> tuple[Record, bool]:
        # A clock that is set back must not make an older entry count.
        written = max(time.time_ns(), self._cells.newest(record.key) + 1)
        if data:
            whole = record.placed(written, pack, append(self._artifacts, data).st_size)
        else:
            whole = record.placed(written, record.pack, record.offset)
        line = dump_record(whole)
        facts = append(self._lines, line)
        self._cells.note(pack, whole, facts.st_size, len(line))
        self._appended = True
        linked = facts.st_nlink > 1
        if self._cells.packs[pack].full or (self._other is not None and not linked):
            # Where the other folder lost its name for the pack, the next one has two again.
            self.close()
        return whole, self._other is not None and linked

    def add_file(self, artifact: Artifact, key: str) -> int:
        """Make a large artifact a file of its own; return its modification time in ns.

        Raises:
            OSError: if it cannot be written; what was there stays.
        """
        target = self._cells.artifact(key)
        self._folder(target.parent)
        if artifact.path is not None:
            artifact.path.replace(target)
        else:
            with replacing(target) as temporary:
                temporary.write_bytes(artifact.data)
        return self._placed(target)

    def link(self, source: Path, key: str) -> int:
        """Take over the file of a large artifact, by a hard link or as a copy; like :meth:`add_file`."""
        target = self._cells.artifact(key)
        self._folder(target.parent)
        link(source, target)
        return self._placed(target)

    def sync(self) -> None:
        """Have what was written so far brought to the disk: a power cut later than this call costs none of it."""
        self._note_appended()
        paths, self._unsynced = self._unsynced, set()
        sync(paths)

    def roll(self) -> str:
        """Begin another pack with the next cell, whichever could be joined; return its name."""
        self.close()
        return self._new()

    def close(self) -> None:
        """Let go of the pack; the next cell begins another one, or goes on with one that no process holds."""
        self._note_appended()
        self._cells.own.discard(self._pack)
        self._pack = ""
        self._held.close()

    def _note_appended(self) -> None:
        if self._appended:
            self._unsynced |= {self._lines, self._artifacts}
            self._appended = False

    def _begin(self) -> str:
        """Take a pack to append to."""
        now = time.time()
        # A list: looking again may find packs that others began.
        for name, state in [*self._cells.packs.items()]:
            if state.full or state.older(YOUNG) or name in self._cells.own or not self._joins(name, now):
                continue
            held = self._claim(name)
            if held is not None:
                # Since it was looked at, another process may have appended to it, and may have been killed doing so.
                self._cells.refresh()
                whole = self._cells.packs.get(name) is state and not state.full and not state.older(YOUNG)
                if whole and _ends(self._cells.lines(name), state.end):
                    return self._take(name, held)
                held.close()
        return self._new()

    def _joins(self, name: str, now: float) -> bool:
        """Return whether a pack is linked to the other folder where there is one, and else to none.

        One that was last used long ago is left as it is, too: with one more cell, all of it would seem to be in use.
        """
        with suppress(OSError):
            for path in (self._cells.pack(name), self._cells.lines(name)):
                facts = path.lstat()
                if not stat.S_ISREG(facts.st_mode):
                    return False
                if self._other is None:
                    linked = facts.st_nlink == 1
                else:
                    linked = path.samefile(self._other.root / path.parent.name / path.name)
                if not linked:
                    return False
            return now - facts.st_mtime < YOUNG
        return False

    def _new(self) -> str:
        name = secrets.token_hex(8)
        held = self._claim(name)
        if held is None:
            if not self._alone:
                # Another process, which may lock where this one cannot, would append to it as well.
                raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), str(self._cells.lines(name)))
            held = ExitStack()
        # The lines last: a pack is there when they are.
        for path in (self._cells.pack(name), self._cells.lines(name)):
            self._folder(path.parent)
            path.touch(exist_ok=False)
            self._unsynced.add(path.parent)
            if self._other is not None:
                self._link(path, self._other)
        self._cells.begin(name)
        return self._take(name, held)

    def _link(self, path: Path, other: Cells) -> None:
        """Give a file of a pack a second name; where that cannot be, the other folder is done without from now on."""
        folder = other.root / path.parent.name
        other.own.add(path.stem)
        try:
            self._folder(folder)
            os.link(path, folder / path.name)
            self._unsynced.add(folder)
        except OSError:
            self._other = None

    def _take(self, name: str, held: ExitStack) -> str:
        self._held, self._pack = held, name
        self._cells.own.add(name)
        self._lines, self._artifacts = self._cells.lines(name), self._cells.pack(name)
        return name

    def _folder(self, folder: Path) -> None:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            self._unsynced.add(folder.parent)

    def _placed(self, target: Path) -> int:
        self._unsynced |= {target, target.parent}
        return target.stat().st_mtime_ns


def _ends(path: Path, end: int) -> bool:
    """Cut off a line that a kill left without its end; return whether nothing else stands behind the last whole one."""
    with suppress(OSError):
        with path.open("rb") as stream:
            stream.seek(end)
            rest = stream.read(RECORD_LIMIT + 1)
        if len(rest) > RECORD_LIMIT or b"\n" in rest:
            # It could not be read before, for whatever reason.
            return False
        if rest:
            os.truncate(path, end)
        return True
    return False


def link(source: Path, target: Path) -> None:
    """Hard-link, or copy where links are impossible; atomic and never through an existing file."""
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            shutil.copyfile(source, temporary)
