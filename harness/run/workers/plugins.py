"""Plugins opened in processes of their own: their parts are registered here as stand-ins."""

from __future__ import annotations

from pathlib import Path

from ...core.content_keys import distribution_digest
from ...core.errors import AftershockError, UsageError
from ...core.plugin_files import later_model, plugin_origin
from ...core.registry import MODELS, REGISTRIES, Entry, LaterPart, Origin
from .pool import POOL
from .process import Source
from .standins.kinds import KINDS
from .standins.part import PluginPart

DECIDES_NO_NUMBER = True


def open_plugin_file(path: Path) -> Origin:
    """Import a local ``.py`` file in a process of its own and register stand-ins for its parts.

    Models are imported into this process when they are needed: a user's own network is trusted.

    Raises:
        UsageError: if the file is missing, is not Python, raises, or ends its process; the text names file and reason.
    """
    origin = plugin_origin(path)
    if origin.path is None:
        raise UsageError(f"The plugin file {path} does not exist.")
    _register(Source(path=Path(origin.path), digest=origin.version), origin)
    return origin


def open_distribution(origin: Origin, kind: str, name: str) -> None:
    """Import an installed distribution in a process of its own and register stand-ins for its parts.

    Raises:
        UsageError: if it cannot be imported, or has no part of that kind and name.
    """
    _register(Source(distribution=origin.package, digest=distribution_digest(origin)), origin)
    if not any(entry.name == name for entry in REGISTRIES[kind].of(origin)):
        raise UsageError(f"it registers no {REGISTRIES[kind].word} {name!r}")


def _register(source: Source, origin: Origin) -> None:
    try:
        greeting = POOL.worker(source, "detectors").greeting()
    except UsageError:
        raise
    except AftershockError as error:
        # It ended its process, or raised what no import catches.
        raise UsageError(f"{source} could not be loaded: {error}") from error
    try:
        seen = {name: greeting[name] for name in ("files", "programs")}
        found = [(REGISTRIES[d["kind"]], str(d["name"]), {**d, **seen}) for d in greeting["parts"]]
    except (KeyError, TypeError) as error:
        raise UsageError(f"{source} could not be loaded: its process sent nothing that can be read") from error
    for registry, name, described in found:
        if registry is MODELS:
            if not _is_held(registry.of(origin), name, origin) and origin.path is not None:
                registry.add(name, later_model(Path(origin.path), name), origin)
            continue
        registry.add(name, PluginPart(source, described, KINDS[registry.kind]), origin)


def _is_held(entries: list[Entry], name: str, origin: Origin) -> bool:
    """Return whether a model of this very file was imported before."""
    return any(e.name == name and e.origin == origin and not isinstance(e.target, LaterPart) for e in entries)
