"""Names to parts: built-ins, installed plugins (entry points) and local files, looked up only when named.

A registry holds lazy targets for built-ins, so nothing heavy is imported before it is asked for; entry points
are read when a name is not found or when everything is listed. A broken plugin is one warning; the others are loaded.

The code of plugins runs in processes of its own, opened by a :class:`PluginHost`: what is registered here for their
parts are stand-ins. Only models are imported into this process, since a user's own network is trusted anyway; and in
the process of a plugin, or after :func:`load_plugins_here`, everything is.
"""

from __future__ import annotations

import difflib
import inspect
import sys
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from .errors import UsageError

DECIDES_NO_NUMBER = True

T = TypeVar("T")

PACKAGE = "aftershock"
# Kinds of parts in the singular, as authors and the command line name them.
PartKind = Literal["detector", "perturbation", "analysis", "model", "dataset"]


@dataclass(frozen=True)
class Origin:
    """Where a part comes from.

    Attributes:
        package: the distribution's name, ``file`` for a local file, ``session`` for a notebook or script.
        version: the distribution's version, a local file's short digest, or empty.
        path: the local file, if it is one.
    """

    package: str
    version: str = ""
    path: str | None = None

    def __str__(self) -> str:
        return f"{self.package} {self.version}".strip()

    @property
    def library(self) -> str:
        """What tables call the place: the distribution, the name of the local file, or ``session``."""
        return Path(self.path).name if self.path else self.package


@dataclass(frozen=True, eq=False)
class LaterPart:
    """A part that is imported when it is first needed.

    Attributes:
        load: imports and returns it.
    """

    load: Callable[[], Any]


class StandIn:
    """Base of what is registered for a part whose code runs in another process, where it was looked at."""


@dataclass
class Entry:
    """One name in a registry: its origin and its target, which is ``module`` or ``module:attribute`` until needed.

    ``module`` is where a built-in part is defined, without the package's name; empty for others.
    """

    name: str
    target: Any
    origin: Origin
    module: str = ""

    def load(self) -> Any:
        """Import the target where that has not happened yet, and return it."""
        if isinstance(self.target, LaterPart):
            self.target = self.target.load()
        if isinstance(self.target, str):
            module, _, attribute = self.target.partition(":")
            imported = import_module(module)
            self.target = getattr(imported, attribute) if attribute else imported
        return self.target


@dataclass
class Registry:
    """The parts of one kind.

    Args:
        kind: the plural word of the command line: ``detectors``, ``perturbations``, ...
        manifest: the module of the package whose ``BUILTIN`` names the built-in parts of this kind (name to
            ``module:attribute``), read when a name is looked up; or that mapping itself.
        here: plugins are imported into this process.
    """

    kind: str
    manifest: str | Mapping[str, str]
    here: bool = False
    _broken: dict[str, str] = field(default_factory=dict)
    _loading: Loading | None = None
    _deaf: bool = False

    @cached_property
    def builtins(self) -> Mapping[str, str]:
        """The built-in parts: name to ``module:attribute``."""
        if isinstance(self.manifest, Mapping):
            return self.manifest
        found: Mapping[str, str] = import_module(f"{PACKAGE}.{self.manifest}").BUILTIN
        return found

    @cached_property
    def _entries(self) -> dict[str, Entry]:
        own, origin = f"{PACKAGE}.", Origin(PACKAGE, version(PACKAGE))
        return {
            name: Entry(name, target, origin, target.partition(":")[0].removeprefix(own))
            for name, target in self.builtins.items()
        }

    @property
    def word(self) -> str:
        """The kind in the singular."""
        return "analysis" if self.kind == "analyses" else self.kind[:-1]

    @property
    def group(self) -> str:
        """The entry point group that plugins of this kind use."""
        return f"{PACKAGE}.{self.kind}"

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator: make a part known under ``name``.

        Raises:
            UsageError: if another origin holds the name already, or what is registered is not a part of this kind.
        """
        if not isinstance(name, str) or not name:
            given = getattr(name, "__name__", name)
            raise UsageError(f'register({given!r}): give the {self.word} a name, @register("name").')

        def decorate(part: T) -> T:
            if self._loading is None:
                self.add(name, part, origin_of(getattr(part, "__module__", "") or ""))
            elif not self._deaf:
                self.add(name, part, self._loading.origin)
                self._loading.added.append((self, name, part))
            return part

        return decorate

    def add(self, name: str, part: Any, origin: Origin) -> None:
        """Add a part; the same origin may replace its own (a notebook cell run twice).

        Raises:
            UsageError: if another origin holds the name already, or ``part`` is not a part of this kind.
        """
        wrong = _wrong_part(self.kind, part)
        if wrong:
            raise UsageError(f"{origin.path or origin} registers {self.word} {name!r} as {wrong}.")
        held = self._entries.get(name)
        if held is not None and held.origin.package != origin.package:
            raise UsageError(
                f"{origin} registers {self.word} {name!r}, but {held.origin} has that name: choose another."
            )
        if held is not None and held.origin.path != origin.path:
            raise UsageError(
                f"{origin.path} registers {self.word} {name!r}, but {held.origin.path} has that name: choose another."
            )
        self._entries[name] = Entry(name, part, origin)

    def entry(self, name: str) -> Entry:
        """Return the entry of ``name``, its target loaded.

        Raises:
            UsageError: for an unknown name, with the nearest known ones.
        """
        if name not in self._entries:
            self._read_entry_points(lambda point: point.name == name)
        if name not in self._entries:
            self._read_entry_points(lambda point: True)
        if name in self._broken and name not in self._entries:
            raise UsageError(f"The {self.word} {name!r} cannot be used: {self._broken[name]}.")
        if name not in self._entries:
            hint = ": load a file with --plugin, or name it under `plugins`" if name.endswith(".py") else ""
            hint = hint or did_you_mean(name, self._entries) or f"; `aftershock list {self.kind}` names them"
            raise UsageError(f"There is no {self.word} {name!r}{hint}.")
        found = self._entries[name]
        found.load()
        return found

    def get(self, name: str) -> Any:
        """Return the part called ``name``; raises like :meth:`entry`."""
        return self.entry(name).target

    def entries(self, later: Container[str] = ()) -> list[Entry]:
        """Every known entry by name, installed plugins included; broken ones are left out with a warning.

        Args:
            later: built-in parts that are not imported.
        """
        self._read_entry_points(lambda point: True)
        whole = []
        for entry in sorted(self._entries.values(), key=lambda e: e.name):
            try:
                if not (entry.module and entry.name in later):
                    entry.load()
            except Exception as error:
                warnings.warn(f"{self.word} {entry.name!r} of {entry.origin} is broken: {error}", stacklevel=2)
                continue
            whole.append(entry)
        return whole

    @contextmanager
    def lending(self, name: str, part: Any) -> Iterator[None]:
        """Make a part known under ``name`` inside the block, as one of this session.

        Raises:
            UsageError: like :meth:`add`.
        """
        held = self._entries.get(name)
        self.add(name, part, Origin("session"))
        try:
            yield
        finally:
            if held is None:
                self._entries.pop(name, None)
            else:
                self._entries[name] = held

    def name_of(self, part: Any) -> str | None:
        """Return the name under which a class, or the function behind one, is registered; ``None`` for no name."""
        for name, entry in self._entries.items():
            if entry.target is part or getattr(entry.target, "__wrapped__", None) is part:
                return name
        return None

    @property
    def has_foreign(self) -> bool:
        """Whether a part is known that is not built in."""
        return any(not entry.module for entry in self._entries.values())

    def is_of_session(self, name: object) -> bool:
        """Return whether a name is that of a part that this session registered."""
        entry = self._entries.get(name) if isinstance(name, str) else None
        return entry is not None and entry.origin.package == "session"

    def of(self, origin: Origin) -> list[Entry]:
        """Return the entries of one origin: a distribution, or a local file."""
        return [
            entry for entry in self._entries.values()
            if (entry.origin.package, entry.origin.path) == (origin.package, origin.path)
        ]  # fmt: skip

    def names(self) -> list[str]:
        """Return the known names, installed plugins included, without loading a built-in."""
        self._read_entry_points(lambda point: True)
        return sorted(self._entries)

    def _read_entry_points(self, wanted: Callable[[EntryPoint], bool]) -> None:
        for point in entry_points(group=self.group):
            if point.name in self._broken or not wanted(point):
                continue
            origin = Origin(point.dist.name, point.dist.version) if point.dist else Origin(point.module)
            held = self._entries.get(point.name)
            if held is not None:
                if held.origin.package != origin.package:
                    self._warn(
                        point.name, f"{held.origin} has the {self.word} {point.name!r}; that of {origin} is not used"
                    )
                continue
            try:
                if self.here:
                    with self._origin(origin):
                        part = point.load()
                    if point.name not in self._entries:
                        self.add(point.name, part, origin)
                elif self is MODELS:
                    with models_only(origin):
                        part = point.load()
                    if point.name not in self._entries:
                        self.add(point.name, part, origin)
                else:
                    plugin_host().open_distribution(origin, self.kind, point.name)
            except (Exception, SystemExit) as error:
                what = f"the plugin {origin} could not be loaded ({type(error).__name__}: {error})"
                self._warn(point.name, what)

    def _warn(self, name: str, text: str) -> None:
        """One warning for each text, however often the entry points are read and however many names it concerns."""
        if text not in self._broken.values():
            warnings.warn(f"{text}; its {self.kind} are left out", stacklevel=4)
        self._broken[name] = text

    def _origin(self, origin: Origin) -> Loading:
        return Loading([self], origin)


class Loading:
    """While a plugin is imported, what it registers belongs to that plugin; ``deaf`` registries take nothing."""

    def __init__(self, registries: Iterable[Registry], origin: Origin, deaf: Iterable[Registry] = ()) -> None:
        self.registries, self.origin, self.deaf = list(registries), origin, list(deaf)
        self.added: list[tuple[Registry, str, Any]] = []

    def __enter__(self) -> None:
        self._before = [(registry._loading, registry._deaf) for registry in self.registries]
        for registry in self.registries:
            registry._loading = self
            registry._deaf = any(registry is r for r in self.deaf)

    def __exit__(self, *error: object) -> None:
        # One plugin may look up a part of another while it is imported.
        for registry, (loading, deaf) in zip(self.registries, self._before, strict=True):
            registry._loading, registry._deaf = loading, deaf


def _wrong_part(kind: str, part: Any) -> str:
    """Return what is wrong with something that was registered; empty for a class, or a function where one will do."""
    if isinstance(part, StandIn | LaterPart):
        return ""
    if kind == "perturbations" and inspect.isroutine(part):
        return f"{part!r:.60}, a plain function: decorate it with @aftershock.register_perturbation"
    if kind in ("detectors", "perturbations", "analyses"):
        return "" if isinstance(part, type) else f"{part!r:.60}, which is not a class: register the class itself"
    return "" if callable(part) else f"{part!r:.60}, which cannot be called: register a function or a class"


def origin_of(module: str) -> Origin:
    """Return where an imported module comes from, by its name: a distribution, or ``session``."""
    top = module.partition(".")[0]
    if top == PACKAGE:
        return Origin(PACKAGE, version(PACKAGE))
    found = distributions().get(top, [])
    return Origin(found[0], version(found[0])) if found else Origin("session")


def distributions() -> Mapping[str, list[str]]:
    """Return the installed distributions by the names of their top-level modules."""
    places = (Path(place) for place in sys.path)
    return _distributions(tuple((str(place), place.stat().st_mtime_ns) for place in places if place.is_dir()))


@cache
def _distributions(places: tuple[tuple[str, int], ...]) -> Mapping[str, list[str]]:
    """Read all metadata, which takes a while: again only where something was installed or the search path changed."""
    return packages_distributions()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` with the nearest known names, or an empty string."""
    known = list(known)
    folded = {k.lower(): k for k in known}
    near = [folded[n] for n in difflib.get_close_matches(name.lower(), folded, n=2, cutoff=0.6)]
    near += [k for k in known if name and name.lower() == k.lower().rpartition(".")[2] and k not in near]
    return f" (did you mean {' or '.join(repr(n) for n in near[:3])}?)" if near else ""


DETECTORS = Registry("detectors", "detectors.builtin")
PERTURBATIONS = Registry("perturbations", "attacks.builtin")
MODELS = Registry("models", "harness.models.builtin")
DATASETS = Registry("datasets", "harness.data.builtin")
ANALYSES = Registry("analyses", "analyses.builtin")

register_detector = DETECTORS.register
register_model = MODELS.register
register_dataset = DATASETS.register
register_analysis = ANALYSES.register

REGISTRIES = {r.kind: r for r in (DETECTORS, PERTURBATIONS, MODELS, DATASETS, ANALYSES)}


class PluginHost(Protocol):
    """Opens plugins without importing them into this process, and registers what stands in for their parts."""

    def open_file(self, path: Path) -> Origin:
        """Open a local file; raises :class:`UsageError` if it is missing, is not Python, or raises."""

    def open_distribution(self, origin: Origin, kind: str, name: str) -> None:
        """Open an installed distribution; raises :class:`UsageError` if it has no part of that kind and name."""

    def allow(self, limits: Any) -> None:
        """Let every plugin use what the limits of a suite say."""


_HOSTS: list[PluginHost] = []


def host_plugins(host: PluginHost) -> None:
    """Open plugins by ``host`` from now on."""
    _HOSTS[:] = [host]


def plugin_host() -> PluginHost:
    """Return what opens plugins.

    Raises:
        UsageError: if nothing does: plugins are opened by runs and by the command line.
    """
    if not _HOSTS:
        raise UsageError("Plugins cannot be opened here: import aftershock.harness.run first.")
    return _HOSTS[0]


def allow_plugins(limits: Any) -> None:
    """Let every plugin use what the limits of a suite say, where plugins can be opened at all."""
    for host in _HOSTS:
        host.allow(limits)


def load_plugins_here() -> None:
    """From now on, import plugins into this process: to examine their code, and in their own processes."""
    for registry in REGISTRIES.values():
        registry.here = True


def models_only(origin: Origin) -> Loading:
    """While a plugin is imported, take its models alone."""
    return Loading(REGISTRIES.values(), origin, [r for r in REGISTRIES.values() if r is not MODELS])
