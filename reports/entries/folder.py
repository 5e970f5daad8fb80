"""Folders of entries, which may come from anybody: what can be read is used, what cannot is named."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...harness.core.errors import UsageError, printable
from ...harness.core.files import is_regular, write_atomic
from .from_run import Written
from .schema import SUFFIX, read_entry
from .verify import Verified, table_path, verify

DECIDES_NO_NUMBER = True

# A board of 100,000 rows is none that anybody reads.
_MOST_FILES, _DEEPEST = 100_000, 8


@dataclass(frozen=True)
class Refused:
    """A file that is on no board, and why; ``root`` is where the keeper has the entries, which no page tells."""

    path: Path
    reason: str
    root: Path

    @property
    def published(self) -> tuple[str, str]:
        """The file and the reason, by paths below the root."""
        return printable(str(self.path.relative_to(self.root))), printable(self.reason.replace(f"{self.root}/", ""))

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.reason}")


@dataclass(frozen=True)
class Folder:
    """What some folders hold: entries that agree with themselves, and files that are refused."""

    entries: Sequence[Verified]
    refused: Sequence[Refused]


def read_folders(paths: Sequence[Path]) -> Folder:
    """Read all entries below some folders, or entries named one by one.

    Raises:
        UsageError: if a path does not exist, or there are no entries at all.
    """
    entries: list[Verified] = []
    refused: list[Refused] = []
    seen: dict[tuple[str, str], Path] = {}
    for root in paths:
        if not root.exists():
            raise UsageError(f"There is no {root}: name a folder of entries, or an entry.")
        within = root if root.is_dir() else root.parent
        for path in _files(root) if root.is_dir() else [root]:
            try:
                found = verify(path, within)
            except UsageError as error:
                refused.append(Refused(path, str(error), within))
                continue
            if found.disagreements:
                more = len(found.disagreements) - 1
                refused.append(
                    Refused(path, f"{found.disagreements[0]}" + (f" (and {more} more)" if more else ""), within)
                )
            elif (key := (found.entry.identity, found.entry.created)) in seen:
                refused.append(Refused(path, f"it is the same entry as {seen[key]}", within))
            else:
                seen[key] = path
                entries.append(found)
    if not entries and not refused:
        raise UsageError(f"{', '.join(map(str, paths))}: no entries there. 'aftershock entry RUN' makes some.")
    return Folder(entries, refused)


def _files(root: Path) -> Iterator[Path]:
    """Yield the JSON files of a folder, in an order that does not depend on the file system; links are not followed."""
    count = 0
    for folder, folders, files in os.walk(root):
        inside = Path(folder)
        hidden = len(inside.relative_to(root).parts) >= _DEEPEST
        folders[:] = [] if hidden else sorted(f for f in folders if not f.startswith("."))
        for name in sorted(files):
            if name.endswith(SUFFIX) and not name.startswith("."):
                count += 1
                if count > _MOST_FILES:
                    raise UsageError(f"{root} holds more than {_MOST_FILES} entries.")
                yield inside / name


def write_entry(written: Written, folder: Path, replace: bool = False, within: Path | None = None) -> Path:
    """Write an entry with its table; returns the entry's file.

    Args:
        written: the entry.
        folder: of its files; made where it is not there.
        replace: whether it may take the place of an entry that says something else.
        within: a folder, as of a board that others write to as well, that links below must not lead out of.

    Raises:
        UsageError: if another entry of this name is there and is not to be replaced, or a link leads out.
        OSError: if the folder cannot be written.
    """
    path = folder / (written.entry.stem + SUFFIX)
    # os.path.realpath, unlike Path.resolve, does not raise where links form a loop.
    if within is not None and not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(within)):
        raise UsageError(f"{folder} leads out of {within}: replace the link by a folder.")
    if not replace and os.path.lexists(path) and not _is_same(path, written):
        raise UsageError(f"{path} is there already and says something else: write it with --replace, or elsewhere.")
    folder.mkdir(parents=True, exist_ok=True)
    table = table_path(path)
    # The table first: an entry never names one that is not there.
    if written.table is not None:
        write_atomic(table, written.table.content)
    write_atomic(path, written.entry.encode())
    if written.table is None and is_regular(table):
        table.unlink()
    return path


def _is_same(path: Path, written: Written) -> bool:
    """Return whether a file says the same, apart from when it was made."""
    try:
        there = read_entry(path)
    except UsageError:
        return False
    return there.model_copy(update={"created": "", "checksum": None}) == written.entry.model_copy(
        update={"created": "", "checksum": None}
    )


def place_in(folder: Path, written: Written) -> Path:
    """Return the folder of a checkout that an entry belongs in: data set, then model."""
    return folder / written.entry.dataset / written.entry.model
