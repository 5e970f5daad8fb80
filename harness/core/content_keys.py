"""Content keys: what a result depends on, hashed; never a class name alone, never a pickle (docs/architecture.md).

A key covers the keys of the inputs, the bytes of data and weights, parameters, the source of the code that runs, and
the versions of the libraries that it uses.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from .errors import UsageError
from .files import MIB, file_digest, parse_json, read_file, write_atomic
from .formats import is_sealed, seal
from .local_sources import local_sources
from .registry import PACKAGE, Origin, distributions

DECIDES_NO_NUMBER = True

# Raised whenever the meaning of a number changes; part of every key and of the protocol digest.
PROTOCOL_VERSION = 4
# The digests of some 100,000 data files.
DIGESTS_LIMIT = 32 * MIB


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces; dataclasses, tuples and paths included.

    Raises:
        TypeError: for anything that has no such form.
    """

    def plain(item: Any) -> Any:
        if is_dataclass(item) and not isinstance(item, type):
            return asdict(item)
        if isinstance(item, Path):
            return str(item)
        if isinstance(item, Mapping):
            return dict(item)
        if isinstance(item, frozenset | set):
            return sorted(item)
        raise TypeError(f"a {type(item).__name__} cannot be part of a content key")

    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=plain, allow_nan=False)


def content_key(kind: str, **parts: Any) -> str:
    """sha256, in hex, of the kind, the protocol's version and everything else that a result depends on."""
    return hashlib.sha256(canonical({"kind": kind, "protocol": PROTOCOL_VERSION, **parts}).encode()).hexdigest()


@cache
def versions(*packages: str) -> dict[str, str]:
    """Return the installed versions of distributions; an absent one is ``absent``."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def sources_digest(path: Path) -> str:
    """Digest of a Python file, of the local files behind it, and of the versions of the packages that they use.

    The file's own name and place do not matter, only where the others lie relative to it.
    """
    sources = local_sources(path)
    digest = hashlib.sha256(file_digest(sources.files[0]).encode())
    loads = _loads({file.name for file in sources.files[1:]})
    for file in sources.files[1:]:
        load = loads.get(os.path.realpath(file))
        held = file_digest(file) if load is None else _digest_when_loaded(file, load)
        digest.update(os.path.relpath(file, sources.files[0].parent).encode() + b"\0" + held.encode())
    digest.update(canonical(_package_versions(sources.packages)).encode())
    return digest.hexdigest()


def _loads(names: Container[str]) -> dict[str, int]:
    """Return a number for each import of a file with one of these names, by the real paths of the files."""
    found: dict[str, int] = {}
    for module in list(sys.modules.values()):
        path = getattr(module, "__dict__", {}).get("__file__")
        if isinstance(path, str) and Path(path).name in names:
            found.setdefault(os.path.realpath(path), id(module.__spec__))
    return found


@cache
def _digest_when_loaded(file: Path, load: int) -> str:
    """Return the digest of a file as it was when it was imported: an edit counts once the module is loaded again."""
    return file_digest(file)


@cache
def _package_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of the distributions that have top-level modules of these names."""
    return versions(*sorted({d for name in names for d in distributions().get(name, [name])}))


@cache
def distribution_digest(origin: Origin) -> str:
    """Digest of an installed distribution's Python files and of the versions of what it requires.

    Of the source tree where it is installed editable.
    """
    digest = hashlib.sha256(str(origin).encode())
    try:
        found = distribution(origin.package)
    except PackageNotFoundError:
        return digest.hexdigest()
    required = [name for r in found.requires or () if (name := re.match(r"[A-Za-z0-9._-]+", r))]
    digest.update(canonical(versions(*sorted({name[0] for name in required} - {PACKAGE}))).encode())
    for path in distribution_files(origin.package):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@cache
def distribution_files(name: str) -> tuple[Path, ...]:
    """The Python files of an installed distribution, of the source tree where it is installed editable; or none."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return ()
    paths = [Path(str(found.locate_file(f))) for f in found.files or []]
    direct = found.read_text("direct_url.json")
    if direct and json.loads(direct).get("dir_info", {}).get("editable"):
        root = Path(json.loads(direct)["url"].removeprefix("file://"))
        paths = [p for p in root.rglob("*.py") if not {".tox", ".venv", "build"} & set(p.relative_to(root).parts)]
    return tuple(sorted(p for p in paths if p.suffix == ".py" and p.is_file()))


class FileDigests:
    """Digests of large files, remembered by path, size and modification time so that data are hashed once.

    Args:
        memory: a JSON file that may be written, or ``None`` to remember nothing.
    """

    def __init__(self, memory: Path | None) -> None:
        self._memory = memory
        self._known: dict[str, list[Any]] = {}
        if memory is not None:
            held = None
            with suppress(OSError, UsageError):
                content = read_file(memory, DIGESTS_LIMIT)
                held = parse_json(content, memory) if is_sealed(content) else None
            if isinstance(held, dict):
                self._known = {k: v for k, v in held.items() if isinstance(v, list) and len(v) == 4}

    def of(self, paths: Iterable[Path]) -> str:
        """Return one digest over the contents of files in the given order; their places do not matter."""
        digest = hashlib.sha256()
        for found in self.each(paths):
            digest.update(found.encode())
        return digest.hexdigest()

    def each(self, paths: Iterable[Path]) -> list[str]:
        """Return the digest of each file's content, in order."""
        digests = []
        changed = False
        for path in paths:
            state = path.stat()
            name = str(path.resolve())
            stamp = [state.st_size, state.st_mtime_ns, state.st_ino]
            held = self._known.get(name)
            if held is None or held[:3] != stamp or not isinstance(held[3], str):
                held = [*stamp, file_digest(path)]
                self._known[name] = held
                changed = True
            digests.append(held[3])
        if changed and self._memory is not None:
            self._remember(self._memory)
        return digests

    def _remember(self, memory: Path) -> None:
        with suppress(OSError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(memory, seal(self._known))
