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
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import UsageError
from ..core.files import MIB, is_regular, read_file
from .ledger import SUFFIX

# A folder that backup programs leave out, by https://bford.info/cachedir/.
CACHE_TAG = "CACHEDIR.TAG"
CACHE_SIGNATURE = (
    "Signature: 8a477f597d28d172789f06886806bc55\n# Finished cells of Aftershock (see `aftershock cache`).\n"
)
_ENTRY = re.compile(r"([0-9a-f]{64})\.(json|safetensors)")
_LEFT = re.compile(r"[0-9a-f]{64}\.(json|safetensors)\.[0-9]+\.tmp")
# What shards work in.
SHARDS = "shards"
_OURS = {"cells", "locks", SHARDS, "digests.json", CACHE_TAG}
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
        size: bytes of its files.
        shared: of these, bytes that run directories hold as well: removing the entry does not free them.
        used: when it was written or last taken over by a run, seconds since 1970.
        files: its files.
    """

    key: str
    size: int
    shared: int
    used: float
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Removed:
    """What was removed: entries, their bytes, and how many of these bytes run directories still hold."""

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
    for part in (root / "cells", root / "locks"):
        if part.is_symlink():
            raise UsageError(f"{part} is a link: nothing is counted or removed behind it.")


def entries(root: Path) -> list[Entry]:
    """Return the cells of a cache, least recently used first; files of other names are not looked at.

    Raises:
        UsageError: like :func:`check_cache`.
    """
    check_cache(root)
    found: dict[str, list[tuple[Path, os.stat_result]]] = {}
    for path in _inside(root):
        match = _ENTRY.fullmatch(path.name)
        if match is not None:
            with suppress(OSError):
                found.setdefault(match[1], []).append((path, path.lstat()))
    made = []
    for key, files in found.items():
        # The entry's file says when it was last used; the artifact keeps the time at which it was written.
        used = [s.st_mtime for p, s in files if p.suffix != SUFFIX] or [s.st_mtime for _, s in files]
        shared = sum(s.st_size for _, s in files if s.st_nlink > 1)
        made.append(Entry(key, sum(s.st_size for _, s in files), shared, max(used), tuple(p for p, _ in files)))
    return sorted(made, key=lambda entry: (entry.used, entry.key))


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
    held = entries(root)
    total = sum(entry.size for entry in held)
    gone = []
    for entry in held:
        too_old = older_than is not None and now - entry.used > older_than
        if too_old or (max_size is not None and total > max_size):
            gone.append(entry)
            total -= entry.size
    for path in _inside(root):
        if _LEFT.fullmatch(path.name):
            with suppress(OSError):
                if now - path.lstat().st_mtime > _DAY:
                    path.unlink()
    return _remove(gone)


def clear(root: Path) -> Removed:
    """Remove all entries of a cache and the digests of data files that it remembers.

    Raises:
        UsageError: like :func:`prune`.
    """
    removed = _remove(entries(root))
    with suppress(OSError):
        (root / "digests.json").unlink(missing_ok=True)
    return removed


def _inside(root: Path) -> Iterator[Path]:
    """Return the regular files of a cache's cells; links are not followed."""
    cells = root / "cells"
    if not cells.is_dir():
        return
    for folder in sorted(cells.iterdir()):
        if folder.is_symlink() or not folder.is_dir():
            continue
        with suppress(FileNotFoundError):
            yield from (path for path in sorted(folder.iterdir()) if is_regular(path))


def _remove(gone: list[Entry]) -> Removed:
    for entry in gone:
        # The ledger's entry first: without it, no run takes over the artifact.
        for path in sorted(entry.files):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise UsageError(f"{path} cannot be removed ({error.strerror}).") from error
    return Removed(len(gone), sum(e.size for e in gone), sum(e.shared for e in gone))


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
