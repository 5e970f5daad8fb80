"""Local Python files with parts, imported into this process."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from .errors import UsageError
from .files import file_digest
from .registry import MODELS, REGISTRIES, LaterPart, Loading, Origin, models_only

DECIDES_NO_NUMBER = True

# Where the module of a plugin file keeps what it registered.
_ADDED = "__aftershock_parts__"


def plugin_origin(path: Path) -> Origin:
    """Return the origin of a plugin file's parts.

    Raises:
        UsageError: if there is no such file.
    """
    path = path.resolve()
    if not path.is_file():
        raise UsageError(f"The plugin file {path} does not exist.")
    return Origin("file", file_digest(path)[:12], str(path))


def load_plugin_file(path: Path) -> Origin:
    """Import a local ``.py`` file into this process; its parts register themselves. Doing it again does nothing.

    Raises:
        UsageError: if the file is missing, is not Python, or raises; the text names file and reason.
    """
    origin = plugin_origin(path)
    loading = Loading(REGISTRIES.values(), origin)
    module = import_file(path, loading)
    for registry, name, part in loading.added or module.__dict__.get(_ADDED, ()):
        # Stand-ins may have taken their places meanwhile.
        registry.add(name, part, origin)
    module.__dict__.setdefault(_ADDED, loading.added)
    return origin


def later_model(path: Path, name: str) -> LaterPart:
    """A model of a plugin file, imported into this process when it is needed; the file's other parts are left out.

    Args:
        path: of the file.
        name: the model's.
    """

    def load() -> Any:
        import_file(path, models_only(plugin_origin(path)), "models")
        return MODELS._entries[name].target

    return LaterPart(load)


def import_file(path: Path, around: Loading | None = None, purpose: str = "file") -> Any:
    """Import a local ``.py`` file under a name of its own (its path, content and purpose), once.

    Raises:
        UsageError: if the file is missing or raises while it is imported.
    """
    path = path.resolve()
    if not path.is_file():
        raise UsageError(f"The file {path} does not exist.")
    name = f"aftershock_{purpose}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{file_digest(path)[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path, loader=_FromSource(name, str(path)))
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with around or Loading([], Origin("file")), _search_path_kept():
            spec.loader.exec_module(module)
    except UsageError:
        del sys.modules[name]
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(f"{path} could not be loaded: {type(error).__name__}: {error}") from error
    return module


@contextmanager
def _search_path_kept() -> Iterator[None]:
    """Keep what was on ``sys.path``; a file may add to it, but modules and versions are looked up later, too."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path.extend(place for place in before if place not in sys.path)


class _FromSource(SourceFileLoader):
    """Never reads or leaves compiled files: those know a source by its second and size, so a quick edit is missed."""

    def get_code(self, fullname: str) -> types.CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)
