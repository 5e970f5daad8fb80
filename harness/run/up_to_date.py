"""Whether a run directory already holds exactly what a command asks for, found out without loading any model code.

The fingerprint covers more than the content keys do (the whole package, every installed version), so a match means
that nothing can be missing; anything else goes the long way through the plan.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import distributions, entry_points
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..core.content_keys import FileDigests, canonical, distribution_digest
from ..core.errors import UsageError
from ..core.files import MIB, file_digest, parse_json, read_file
from ..core.formats import KEYS, RUN_JSON_LIMIT, RUN_SCHEMA, is_sealed
from ..core.local_sources import local_sources
from ..core.registry import DATASETS, MODELS, PACKAGE, REGISTRIES, Origin
from ..store.cells import Cells
from ..store.ledger import Head

ROOMS = ("harness", "attacks", "detectors", "analyses", "reports")
# Files of the package that decide what a run shows.
_SHOWN = frozenset((".py", ".html", ".css", ".js", ".toml"))
KEYS_LIMIT = 64 * MIB
# The largest file that a run shows: its scores, as far as a report reads them.
SHOWN_LIMIT = 1024 * MIB


def fingerprint(
    raw: Mapping[str, Any],
    folder: Path,
    plugins: Sequence[Path],
    options: Mapping[str, Any],
    root: Path,
    digests: FileDigests,
) -> str | None:
    """Return a digest of everything that a run's results depend on; ``None`` where it cannot be told.

    Args:
        raw: the suite as written.
        folder: where its relative paths start.
        plugins: files given on the command line.
        options: command line options that change the run.
        root: the data root.
        digests: remembers the digests of large files.
    """
    try:
        data = dict(raw["data"])
        params = {k: v for k, v in data.items() if k not in ("name", "fit", "calibrate", "evaluate")}
        if isinstance(params.get("path"), str):
            params["path"] = folder / params["path"]
        if any(_comes_ready(entry, plugins or raw.get("plugins")) for entry in raw["models"]):
            # What a factory gives is known only once it was called.
            return None
        if any(REGISTRIES[kind].is_of_session(name) for kind, name in _named(raw)):
            # Code that lies in no file is known to content keys alone.
            return None
        source = DATASETS.get(data["name"])(root, **params)
        sources = [local_sources(f) for f in {*_files(raw, folder), *_files(raw, root), *plugins}]
        if any(found.unknown for found in sources):
            return None
        named = sorted({file for found in sources for file in found.files})
        return hashlib.sha256(
            canonical(
                {
                    "suite": dict(raw),
                    "options": dict(options),
                    "data": [source.fingerprint, digests.of(source.files)],
                    "files": digests.of(named),
                    "code": _package_digest(),
                    "versions": _versions(),
                    "plugins": sorted(_plugin_digests()),
                    "python": platform.python_version(),
                }
            ).encode()
        ).hexdigest()
    except Exception:
        # Whatever is wrong with the suite or the data, the long way says it better.
        return None


def _versions() -> list[str]:
    """Return every installed distribution with its version; each file of metadata is parsed once."""
    found = (distribution.metadata for distribution in distributions())
    return sorted({f"{metadata['Name']}=={metadata['Version']}" for metadata in found})


def _named(raw: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Return the parts that a suite names, by kind."""
    yield "datasets", raw["data"]["name"]
    for kind in ("models", "perturbations", "detectors", "analyses"):
        yield from ((kind, entry.get("name")) for entry in raw.get(kind, ()))


def _package_digest() -> str:
    """Digest of the package's source, to the letter."""
    root, digest = Path(str(files(PACKAGE))), hashlib.sha256()
    for room in ROOMS:
        for source in sorted(path for path in (root / room).rglob("*") if path.suffix in _SHOWN):
            digest.update(source.relative_to(root).as_posix().encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()


def _comes_ready(entry: Mapping[str, Any], plugins: object) -> bool:
    """Return whether a model's network may come with its state: from a function of a user or a plugin."""
    if "weights" in entry or entry.get("train_if_missing"):
        return False
    name = entry.get("name")
    own = name in MODELS.builtins
    return not own and (
        "factory" in entry or bool(plugins) or name in {p.name for p in entry_points(group=MODELS.group)}
    )


def _files(value: Any, folder: Path) -> Iterator[Path]:
    """Every file that a suite names, whatever the key: weights, plugins, factories, images."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _files(item, folder)
    elif isinstance(value, list):
        for item in value:
            yield from _files(item, folder)
    elif isinstance(value, str) and value:
        path = folder / (value.rpartition(":")[0] if ".py:" in value else value)
        if path.is_file():
            yield path
        elif re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
            yield from _module_files(value.partition(":")[0])


def _module_files(module: str) -> Iterator[Path]:
    """Return the source of a factory's module, with all of its package."""
    found = find_spec(module)
    if found is None or found.origin is None or not Path(found.origin).is_file():
        return
    origin = Path(found.origin)
    if "." not in module and origin.name != "__init__.py":
        yield origin
    else:
        yield from sorted(origin.parent.rglob("*.py"))


def _plugin_digests() -> Iterator[str]:
    for registry in REGISTRIES.values():
        for point in entry_points(group=registry.group):
            if point.dist is not None and point.dist.name != PACKAGE:
                yield distribution_digest(Origin(point.dist.name, point.dist.version))


def published(run: Path, shown: Iterable[Path]) -> dict[str, str]:
    """Return the sha256 of files that a run directory shows, by their path in it; what is not there is left out."""
    return {file.relative_to(run).as_posix(): file_digest(file) for file in shown if file.exists()}


def read_keys(run: Path) -> list[str]:
    """Return the keys of a run's cells, as :data:`KEYS` lists them.

    Raises:
        OSError: if the file is missing.
        UsageError: if it is not a regular file or too large.
    """
    return read_file(run / KEYS, KEYS_LIMIT, within=run).decode("ascii", "replace").split()


def is_finished(run: Path, wanted: str) -> bool:
    """Return whether a run directory is complete, undamaged, and of this fingerprint.

    Everything that it shows is hashed: tables, analyses, pages and what pages load. Of a cell the ledger's entry is
    checked whole, the artifact, or the pack that holds it, by size and time.
    """
    try:
        content = read_file(run / "run.json", RUN_JSON_LIMIT)
        facts = parse_json(content, run / "run.json")
        if not is_sealed(content) or facts["schema"] != RUN_SCHEMA:
            return False
        if facts["fingerprint"] != wanted or facts["status"] != "done":
            return False
        if KEYS not in facts["files"]:
            return False
        if any(file_digest(run / name, SHOWN_LIMIT) != digest for name, digest in facts["files"].items()):
            return False
        if not are_whole(run, read_keys(run), facts["packs"]):
            return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError):
        return False
    return True


def are_whole(run: Path, keys: Iterable[str], stamps: Mapping[str, Sequence[int]]) -> bool:
    """Return whether cells are in a run directory, none has failed, and none was changed since it was written.

    Args:
        run: the run directory.
        keys: of the cells.
        stamps: size and modification time of the packs of small artifacts, as ``run.json`` has them.
    """
    cells, heads = Cells(run), dict[str, Head]()

    def note(head: Head, pack: str, length: int) -> None:
        known = heads.get(head.key)
        if known is None or known.written < head.written:
            heads[head.key] = head

    cells.refresh(note)
    untouched = {name for name, stamp in cells.stamps().items() if stamps.get(name) == [*stamp]}
    for key in keys:
        head = heads.get(key)
        if head is None or head.status == "failed":
            return False
        if head.pack not in untouched and not cells.is_whole(head, hashed=False):
            return False
    return True
