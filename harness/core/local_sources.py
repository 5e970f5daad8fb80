"""What a user's Python file depends on beside itself, read from its source without running anything.

The modules that it imports and the data files that it names decide what it does as much as its own lines do. What a
program composes while it runs (a module's name from parts, a search path from the environment) cannot be seen.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

DECIDES_NO_NUMBER = True

# Files of these types decide results when a source names them; others are as likely to be written as read.
DATA_SUFFIXES = frozenset(
    (".py", ".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".npz", ".npy", ".pkl", ".joblib", ".onnx", ".h5", ".mat",
     ".json", ".yaml", ".yml", ".toml")
)  # fmt: skip
_INSTALLED = frozenset(("site-packages", "dist-packages"))
_OWN = "aftershock"


@dataclass(frozen=True)
class Sources:
    """What a Python file depends on.

    Attributes:
        files: the file itself, then the local modules and data files behind it, ordered by path.
        packages: top-level names of installed packages that they import.
        unknown: names that are imported but were not found: what they mean is decided while the file runs.
    """

    files: tuple[Path, ...]
    packages: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Read:
    """What one file says: imported modules (level, dotted name, names taken from it), text, and whether it searches."""

    imports: tuple[tuple[int, str, tuple[str, ...]], ...] = ()
    texts: tuple[str, ...] = ()
    searches: bool = False


def local_sources(path: Path) -> Sources:
    """Return what a file depends on, transitively; one that cannot be read stands for itself alone."""
    path = path.resolve()
    found: set[Path] = set()
    packages: set[str] = set()
    unknown: set[str] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        read = _read(file) if file.suffix == ".py" else _Read()
        places = _places(file, path, read)
        for level, module, names in read.imports:
            waiting += _imported(file, places, level, module, names, packages, unknown)
        waiting += _named_files(places, read.texts)
    return Sources((path, *sorted(found - {path})), tuple(sorted(packages)), tuple(sorted(unknown)))


def _read(file: Path) -> _Read:
    try:
        state = file.stat()
        return _parsed(file, state.st_size, state.st_mtime_ns, state.st_ino)
    except OSError:
        return _Read()


@lru_cache(maxsize=1024)
def _parsed(file: Path, *stamp: int) -> _Read:
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return _Read()
    imports: list[tuple[int, str, tuple[str, ...]]] = []
    texts: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(0, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports.append((node.level, node.module or "", tuple(alias.name for alias in node.names)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
        elif isinstance(node, ast.Call) and _calls_import(node):
            imports += [(0, name, ()) for name in _module_names(node)]
    searches = any(
        isinstance(n, ast.Attribute) and n.attr == "path" and isinstance(n.value, ast.Name) and n.value.id == "sys"
        for n in ast.walk(tree)
    )
    return _Read(tuple(imports), tuple(texts), searches)


def _calls_import(node: ast.Call) -> bool:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in ("import_module", "__import__")


def _module_names(node: ast.Call) -> list[str]:
    """Return the first argument of a call, where it is written out and names a module."""
    values = [a.value for a in node.args[:1] if isinstance(a, ast.Constant)]
    return [v for v in values if isinstance(v, str) and all(part.isidentifier() for part in v.split("."))]


def _places(file: Path, root: Path, read: _Read) -> list[Path]:
    """Folders in which a file's imports are looked for; one that changes the search path may mean those above it."""
    places = [file.parent, root.parent]
    if read.searches:
        places += list(file.parents)[1:3]
        places += [file.parent / text for text in read.texts if _fits(text) and (file.parent / text).is_dir()]
    return list(dict.fromkeys(places))


def _imported(
    file: Path, places: Iterable[Path], level: int, module: str, names: tuple[str, ...], packages: set[str],
    unknown: set[str],
) -> list[Path]:  # fmt: skip
    """Return the files of one import; what is installed or not found goes into ``packages`` and ``unknown``."""
    parts = module.split(".") if module else []
    if level:
        base = file.parents[min(level, len(file.parents)) - 1]
        found = _below(base, parts, names)
        if not found:
            unknown.add("." * level + module)
        return found
    top = parts[0]
    if top in sys.stdlib_module_names or top == _OWN:
        return []
    found = [f for place in places for f in _below(place, parts, names)]
    if found:
        return found
    folder = _folder_of(top)
    if folder is None:
        unknown.add(top)
    elif _INSTALLED & set(folder.parts):
        packages.add(top)
    else:
        return _below(folder, parts, names)
    return []


def _below(folder: Path, parts: list[str], names: tuple[str, ...]) -> list[Path]:
    """The files that importing ``parts`` from a folder, and names from that, would run; nothing if it is not there."""
    found: list[Path] = []
    for number, part in enumerate(parts):
        folder = folder / part
        module = folder.with_name(f"{part}.py")
        if module.is_file() and not (folder / "__init__.py").is_file():
            return [*found, module] if number == len(parts) - 1 else found
        if not folder.is_dir() or (number == 0 and not any(folder.glob("*.py")) and not any(folder.glob("*/*.py"))):
            return found
        found += _initial(folder)
    for name in names:
        if name == "*":
            found += sorted(folder.glob("*.py"))
        elif (folder / f"{name}.py").is_file():
            found.append(folder / f"{name}.py")
        elif (folder / name).is_dir():
            found += _initial(folder / name)
    return found if found or not parts else list(folder.glob("*.py"))


def _initial(folder: Path) -> list[Path]:
    return [folder / "__init__.py"] if (folder / "__init__.py").is_file() else []


def _folder_of(top: str) -> Path | None:
    """Return the folder in which a top-level module or package lies; ``None`` where there is none."""
    try:
        spec = find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).parent
    return Path(spec.origin).parent if spec.origin and Path(spec.origin).is_file() else None


def _named_files(places: Iterable[Path], texts: Iterable[str]) -> Iterator[Path]:
    """Return the data files that a source names: beside it, where the command runs, or by an absolute path."""
    around = [*places, Path.cwd()]
    for text in texts:
        if _fits(text) and Path(text).suffix.lower() in DATA_SUFFIXES:
            for place in around:
                file = place / Path(text).expanduser() if text.startswith("~/") else place / text
                if file.is_file():
                    yield file.resolve()


def _fits(text: str) -> bool:
    return 0 < len(text) < 256 and text.isprintable()
