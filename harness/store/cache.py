"""The shared cache as a folder that its user keeps in order: how large it is, and what may go.

Every run directory holds what it uses by links or copies of its own, so removing entries costs at most computing time,
also while other processes work with the cache.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ..core.errors import UsageError
from ..core.files import MIB, is_regular, read_file
from .cells import ARTIFACTS, SUFFIX, Cells
from .ledger import KEY, PACK, Head
from .locks import Locks
from .packs import CellWriter

# A folder that backup programs leave out, by https://bford.info/cachedir/.
CACHE_TAG = "CACHEDIR.TAG"
CACHE_SIGNATURE = (
    "Signature: 8a477f597d28d172789f06886806bc55\n# Finished cells of Aftershock (see `aftershock cache`).\n"
)
_EARLIER = re.compile(r"[0-9a-f]{64}\.json(\.[0-9]+\.tmp)?")
_LEFT = re.compile(r"[0-9a-f]{64}\.safetensors\.[0-9]+\.tmp")
LOCKS = "locks"
# What shards work in.
SHARDS = "shards"
# What decides the shadow images of shards, until a run collects their work.
SECRETS = "secrets"
# What cells took on this machine.
RATES = "rates.json"
_OURS = {"cells", "artifacts", LOCKS, SHARDS, SECRETS, "digests.json", RATES, CACHE_TAG}
# Younger than that, a half-written file may still be written.
_DAY = 86400.0
_AGES = {"m": 60.0, "h": 3600.0, "d": _DAY, "w": 7 * _DAY}
_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
          "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One finished cell of the cache.

    Attributes:
        key: its content key.
        size: bytes of its entries, of which the newest one counts, and their artifacts.
        shared: of these, bytes that run directories hold as well: removing the cell does not free them.
        used: when its pack, the thousand cells that were written together, was written or last taken over from by a
            run, in seconds since 1970.
        written: when its newest entry was written, in ns since 1970.
    """

    key: str
    size: int
    shared: int
    used: float
    written: int


@dataclass(frozen=True)
class Removed:
    """What was removed: cells, their bytes with those of older entries, and how many of them run directories hold."""

    entries: int
    size: int
    shared: int


def check_cache(root: Path) -> None:
    """Refuse a folder that no run used as its cache.

    Raises:
        UsageError: if it does not exist, is a file, or holds other things and no cache tag.
    """
    if not root.is_dir():
        raise UsageError(f"There is no cache at {root}: name one with --cache.")
    try:
        tagged = read_file(root / CACHE_TAG, MIB, follow=False).startswith(CACHE_SIGNATURE.encode())
    except (OSError, UsageError):
        tagged = False
    names = {path.name for path in root.iterdir()}
    if not tagged and (not names <= _OURS or not names):
        raise UsageError(f"{root} is not a cache of Aftershock: name the folder that runs use, with --cache.")
    for part in (root / "cells", root / "artifacts", root / LOCKS):
        if part.is_symlink():
            raise UsageError(f"{part} is a link: nothing is counted or removed behind it.")


class _Line(NamedTuple):
    """A line of a pack, with the small artifact that it is about: older ones of a cell do not count, but take place."""

    used: float
    written: int
    pack: str
    key: str
    size: int
    shared: int


def entries(root: Path) -> list[Entry]:
    """Return the cells of a cache, least recently used first; files of other names are not looked at.

    Raises:
        UsageError: like :func:`check_cache`.
    """
    check_cache(root)
    cells = Cells(root)
    return _entries(cells, _lines(cells))


def _lines(cells: Cells) -> list[_Line]:
    """Read all lines of a cache."""
    found: list[_Line] = []
    packs: dict[str, tuple[float, bool]] = {}

    def note(head: Head, pack: str, length: int) -> None:
        if pack not in packs:
            packs[pack] = _changed(cells.lines(pack)), _is_linked(cells.lines(pack))
        used, linked = packs[pack]
        size = length + (head.size if head.pack == pack else 0)
        found.append(_Line(used, head.written, pack, head.key, size, size if linked else 0))

    cells.refresh(note)
    return found


def _entries(cells: Cells, lines: list[_Line]) -> list[Entry]:
    found: dict[str, Entry] = {}
    for line in lines:
        known = found.get(line.key)
        if known is None:
            size, shared = _of_its_own(cells.artifact(line.key))
            known = Entry(line.key, size, shared, 0.0, 0)
        found[line.key] = Entry(
            line.key, known.size + line.size, known.shared + line.shared, max(known.used, line.used),
            max(known.written, line.written),
        )  # fmt: skip
    return sorted(found.values(), key=lambda entry: (entry.used, entry.written, entry.key))


def _of_its_own(path: Path) -> tuple[int, int]:
    """Return the bytes of a large artifact, and how many of them run directories hold; 0 where there is none."""
    try:
        facts = path.lstat()
    except OSError:
        return 0, 0
    return facts.st_size, facts.st_size if facts.st_nlink > 1 else 0


def _is_linked(path: Path) -> bool:
    try:
        return path.lstat().st_nlink > 1
    except OSError:
        return False


def _changed(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def prune(root: Path, older_than: float | None = None, max_size: int | None = None) -> Removed:
    """Remove entries of a cache, least recently used first, and what killed processes left.

    Args:
        root: the cache.
        older_than: age in seconds since the last use above which entries are removed.
        max_size: maximum size in bytes of what is kept.

    Raises:
        UsageError: like :func:`check_cache`, and if a file cannot be removed.
    """
    now = time.time()
    check_cache(root)
    cells = Cells(root)
    lines = _lines(cells)
    held = _entries(cells, lines)
    left = {entry.key: entry.size for entry in held}
    total = sum(left.values())
    superseded = _superseded(cells, lines)
    counting = {cells.pack_of(key) for key in cells.keys()}  # noqa: SIM118 (not a mapping)
    rewritten = set()
    # First what no run takes over, because the cell has a newer entry.
    for pack in sorted(superseded, key=lambda pack: superseded[pack][0]):
        too_old = older_than is not None and now - superseded[pack][0].used > older_than
        if pack not in counting or too_old or (max_size is not None and total > max_size):
            rewritten.add(pack)
            for line in superseded[pack]:
                left[line.key] -= line.size
                total -= line.size
    gone = []
    for entry in held:
        too_old = older_than is not None and now - entry.used > older_than
        if too_old or (max_size is not None and total > max_size):
            gone.append(entry)
            total -= left[entry.key]
    removed = _remove(cells, lines, gone, rewritten)
    for path in _left(cells):
        with suppress(OSError):
            if now - path.lstat().st_mtime > _DAY:
                path.unlink()
    _remove_emptied(root)
    return removed


def clear(root: Path) -> Removed:
    """Remove all entries of a cache, and what it remembers: digests of data files, and how long cells took.

    Raises:
        UsageError: like :func:`prune`.
    """
    check_cache(root)
    cells = Cells(root)
    lines = _lines(cells)
    removed = _remove(cells, lines, _entries(cells, lines), set())
    packs = [path(name) for name in cells.packs for path in (cells.lines, cells.pack)]
    secrets = [path for path in (root / SECRETS).glob("*") if KEY.fullmatch(path.name) and is_regular(path)]
    for path in [*packs, *_left(cells), *secrets, root / "digests.json", root / RATES]:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    _remove_emptied(root)
    return removed


def _superseded(cells: Cells, lines: list[_Line]) -> dict[str, list[_Line]]:
    """Return the lines of cells that have a newer one, by pack."""
    found: dict[str, list[_Line]] = {}
    for line in lines:
        if (line.written, line.pack) != (cells.newest(line.key), cells.pack_of(line.key)):
            found.setdefault(line.pack, []).append(line)
    return found


def _left(cells: Cells) -> Iterator[Path]:
    """Return files that belong to no entry: a process was killed or is at work, or the entry was damaged.

    And entries that earlier versions wrote, each as a file of its own, which no run of this version reads.
    """
    for place in _earlier(cells.root):
        yield from (path for path in sorted(place.iterdir()) if _EARLIER.fullmatch(path.name) and is_regular(path))
    known = set(cells.keys())
    folder = cells.root / "artifacts"
    if not folder.is_dir():
        return
    for place in sorted(folder.iterdir()):
        if place.suffix == ARTIFACTS and PACK.fullmatch(place.stem) and is_regular(place):
            if not cells.lines(place.stem).exists():
                yield place
        elif not place.is_symlink() and place.is_dir():
            with suppress(FileNotFoundError):
                for path in sorted(place.iterdir()):
                    lost = path.suffix == SUFFIX and KEY.fullmatch(path.stem) and path.stem not in known
                    if (lost or _LEFT.fullmatch(path.name)) and is_regular(path):
                        yield path


def _earlier(root: Path) -> list[Path]:
    """Return the folders of entries of earlier versions."""
    places = sorted((root / "cells").glob("[0-9a-f][0-9a-f]"))
    return [place for place in places if place.is_dir() and not place.is_symlink()]


def _remove_emptied(root: Path) -> None:
    for place in _earlier(root):
        with suppress(OSError):
            place.rmdir()


def _remove(cells: Cells, lines: list[_Line], gone: list[Entry], rewritten: set[str]) -> Removed:
    """Remove entries. Packs that hold others as well are written anew, under other names, and then removed.

    Args:
        cells: of the cache, as far as it was read.
        lines: all lines of it.
        gone: the entries.
        rewritten: packs of which what does not count is removed besides.
    """
    keys = {entry.key for entry in gone}
    packs = sorted(rewritten | {line.pack for line in lines if line.key in keys})
    kept: dict[str, list[str]] = {pack: [] for pack in packs}
    for key in cells.keys():  # noqa: SIM118 (not a mapping)
        if key not in keys and cells.pack_of(key) in kept:
            kept[cells.pack_of(key)].append(key)
    superseded = _superseded(cells, lines)
    dropped = [line for pack in packs for line in superseded.get(pack, ()) if line.key not in keys]
    writer = CellWriter(cells, Locks(cells.root / LOCKS).claim, alone=False)
    try:
        for pack in packs:
            used = _changed(cells.lines(pack))
            if kept[pack]:
                _copy(cells, writer, kept[pack], used)
            # The entries first: without them, no run takes over the artifacts.
            cells.lines(pack).unlink(missing_ok=True)
            cells.pack(pack).unlink(missing_ok=True)
        for key in keys:
            cells.artifact(key).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{error.filename or cells.root} cannot be removed ({error.strerror}).") from error
    away: list[Entry | _Line] = [*gone, *dropped]
    return Removed(len(gone), sum(e.size for e in away), sum(e.shared for e in away))


def _copy(cells: Cells, writer: CellWriter, keys: list[str], used: float) -> None:
    """Write cells of one pack into a new one, which was used when that was."""
    made = writer.roll()
    for key in keys:
        with suppress(UsageError):
            # What is damaged, or gone by now, is left out.
            record = cells.record(key)
            if record is not None:
                try:
                    data = cells.data(record) if record.pack else b""
                except FileNotFoundError:
                    continue
                writer.add(replace(record, pack="", offset=0), data)
    writer.close()
    writer.sync()
    with suppress(FileNotFoundError):
        os.utime(cells.lines(made), (used, used))


def parse_age(text: str) -> float:
    """Return the seconds of ``30d``, ``12h``, ``90m`` or ``2w``.

    Raises:
        UsageError: for anything else.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([mhdw])\s*", text)
    if match is None:
        raise UsageError(f"--older-than {text!r}: write a number and m, h, d or w, as in 30d.")
    return float(match[1]) * _AGES[match[2]]


def parse_size(text: str) -> int:
    """Return the bytes of ``10GB``, ``500MB``, ``2GiB`` or ``1.5T``.

    Raises:
        UsageError: for anything else.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    if match is None or match[2] not in _SIZES:
        raise UsageError(f"--max-size {text!r}: write a number and kB, MB, GB or TB, as in 10GB.")
    return int(float(match[1]) * _SIZES[match[2]])


def size_text(count: int) -> str:
    """Return bytes for people: ``1.5 GB``."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
