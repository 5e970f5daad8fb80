"""Digests of the code that a result depends on: what is computed, not how it is written down.

The code behind a module is its own and that of the modules of this package that it imports, directly or not. Comments,
docstrings, layout and the texts of errors count for nothing, so that an edit of a sentence computes nothing again.

A module that decides no number (where files lie, what a mistake is called) says so itself with
``DECIDES_NO_NUMBER = True``; neither it nor what it imports counts. So does every module of a package called
``report``, by its place: it puts into words, tables and figures what others computed.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import types
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from functools import cache, partial
from importlib import import_module
from importlib.resources import files
from pathlib import Path

from .content_keys import distribution_digest, distribution_files, sources_digest
from .local_sources import local_sources
from .registry import PACKAGE, Entry, origin_of

DECIDES_NO_NUMBER = True
_MARK = "DECIDES_NO_NUMBER"
_REPORT = "report"
# Of a syntax tree: what says how it was written, or for whom.
_UNSAID = frozenset(("ctx", "kind", "type_comment", "type_ignores"))
# Runs whatever a plugin's part computes.
_ELSEWHERE = "harness.run.answering.kinds"


def code_digest(*modules: str) -> str:
    """Digest of modules of the package (``harness.taps``) and of all that they import of it.

    Raises:
        FileNotFoundError: for a module that is not there.
    """
    return _digest(tuple(sorted(code_behind(*modules))))


@cache
def code_behind(*modules: str) -> frozenset[str]:
    """Return the modules whose code counts for some: they themselves, and what they import, directly or not."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in found and not _read(module).silent:
            found.add(module)
            waiting += _read(module).imports
    return frozenset(found)


def part_digest(entry: Entry, contract: str) -> str:
    """Digest of the code behind a registered part.

    A built-in part is its module. The code of others is that of their distribution, of their local file (with the local
    modules and data files behind it), or of what a session registered; to it belongs what it imports of this package,
    and ``contract``, the module with the base class of its kind.
    """
    if entry.module:
        return code_digest(entry.module)
    foreign, sources = _foreign(entry)
    ours = code_digest(contract, *_imported_by(tuple(sources)), *([_ELSEWHERE] if sources else []))
    return hashlib.sha256((foreign + ours).encode()).hexdigest()


def foreign_digest(part: type) -> str:
    """Digest of the code of a class that no registry holds: its distribution and version, or the code of a session."""
    origin = origin_of(part.__module__)
    if origin.package != "session":
        return str(origin)
    return _foreign(Entry(part.__qualname__, part, origin))[0]


def _foreign(entry: Entry) -> tuple[str, list[Path]]:
    """Digest of a part's own code, and its Python files where these are known."""
    origin = entry.origin
    if origin.path is not None:
        return sources_digest(Path(origin.path)), _python(local_sources(Path(origin.path)).files)
    if origin.package != "session":
        return distribution_digest(origin), _python(distribution_files(origin.package))
    part = inspect.unwrap(entry.load())
    while isinstance(part, partial):
        part = inspect.unwrap(part.func)
    name = getattr(part, "__qualname__", type(part).__name__)
    # The whole file, since a class leans on what stands beside it; in a notebook, which has none, its own lines.
    path = _file_of(part)
    if path is not None:
        text, sources = sources_digest(path), _python(local_sources(path).files)
    else:
        text, sources = _lines_of(part), []
    return hashlib.sha256((name + text).encode("utf-8", "surrogatepass")).hexdigest(), sources


def _file_of(part: object) -> Path | None:
    try:
        path = inspect.getsourcefile(part)  # type: ignore[arg-type]  # TypeError for what has no source
    except (OSError, TypeError):
        return None
    return Path(path) if path and Path(path).is_file() else None


def _lines_of(part: object) -> str:
    """The source of something without a file; of a class, whose lines Python finds in files alone, of its functions."""
    try:
        return inspect.getsource(part)  # type: ignore[arg-type]  # likewise
    except (OSError, TypeError):
        pass
    if isinstance(part, type):
        bases = [_lines_of(base) for base in part.__bases__ if base.__module__ == part.__module__]
        values = [_value_of(name, value) for name, value in vars(part).items()]
        return "\n".join([*bases, *sorted(filter(None, values))])
    code = getattr(part, "__code__", None)
    return _instructions(code) if isinstance(code, types.CodeType) else ""


def _value_of(name: str, value: object) -> str:
    """Return what one name in a class says."""
    value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    if inspect.isfunction(value):
        return f"{name}: {_lines_of(value)}"
    plain = isinstance(value, str | int | float | tuple | list | dict) or is_dataclass(value)
    return f"{name} = {value!r}" if plain and not name.startswith("__") else ""


def _instructions(code: types.CodeType) -> str:
    inner = [_instructions(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {inner}"


def _python(found: Iterable[Path]) -> list[Path]:
    return [path for path in found if path.suffix == ".py"]


@cache
def _imported_by(sources: tuple[Path, ...]) -> tuple[str, ...]:
    """The modules of this package that files of others import; of names that a package passes on, where they are."""
    found: set[str] = set()
    for path in sources:
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {name for alias in node.names if (name := _own(alias.name)) is not None}
            elif isinstance(node, ast.ImportFrom) and not node.level and (base := _own(node.module or "")) is not None:
                for alias in node.names:
                    found.add(_home(base, alias.name))
    return tuple(sorted(name for name in found if name and _path(name) is not None))


def _own(module: str) -> str | None:
    """Return the name of a module within the package; empty for the package itself, ``None`` for those of others."""
    if module == PACKAGE:
        return ""
    return module.removeprefix(f"{PACKAGE}.") if module.startswith(f"{PACKAGE}.") else None


def _home(base: str, name: str) -> str:
    """Return where ``name``, imported from ``base``, is defined."""
    inner = f"{base}.{name}" if base else name
    if _path(inner) is not None:
        return inner
    try:
        value = getattr(import_module(f"{PACKAGE}.{base}" if base else PACKAGE), name)
    except (ImportError, AttributeError):
        return base
    return _own(str(getattr(value, "__module__", ""))) or base


class _Code:
    """What one module of the package says: what it imports of the package, and a digest of its own code.

    Attributes:
        imports: names of modules within the package; those that only type checkers import are left out.
        silent: it says that it decides no number.
        digest: of its code alone.
    """

    def __init__(self, module: str) -> None:
        path = _path(module)
        if path is None:
            raise FileNotFoundError(f"{PACKAGE} has no module {module}")
        tree = ast.parse(_source(path))
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        self.imports = tuple(sorted(set(_imports(tree, package))))
        self.silent = _REPORT in package.split(".") or any(
            isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == _MARK for t in node.targets)
            for node in tree.body
        )
        self.digest = hashlib.sha256("\0".join(_tokens(tree, [])).encode("utf-8", "surrogatepass")).hexdigest()


def _source(path: Path) -> bytes:
    return path.read_bytes()


@cache
def _read(module: str) -> _Code:
    return _Code(module)


@cache
def _digest(modules: tuple[str, ...]) -> str:
    # Names are left out: where a module lies decides nothing.
    return hashlib.sha256("".join(sorted(_read(module).digest for module in modules)).encode()).hexdigest()


@cache
def _path(module: str) -> Path | None:
    """Return the file of a module within the package; ``None`` where there is none."""
    place = Path(str(files(PACKAGE))).joinpath(*module.split("."))
    for path in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
        if path.is_file():
            return path
    return None


def _imports(node: ast.AST, package: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and _for_types(child.test):
            yield from _imports(ast.Module(child.orelse, []), package)
        elif isinstance(child, ast.Import):
            yield from (name for alias in child.names if (name := _own(alias.name)))
        elif isinstance(child, ast.ImportFrom):
            base = _base(child, package)
            for alias in child.names if base is not None else ():
                inner = f"{base}.{alias.name}" if base else alias.name
                name = inner if _path(inner) is not None else base
                if name:
                    yield name
        else:
            yield from _imports(child, package)


def _base(node: ast.ImportFrom, package: str) -> str | None:
    if not node.level:
        return _own(node.module or "")
    parts = package.split(".") if package else []
    parts = parts[: len(parts) - (node.level - 1)]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _for_types(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _tokens(node: ast.AST, tokens: list[str], in_error: bool = False) -> list[str]:
    """Add the code of a syntax tree to ``tokens``, whatever the version of Python, without docstrings and error texts.

    Where an imported module lies is left out, for it is followed; under which name it is known is not.
    """
    kind = type(node)
    tokens.append(kind.__name__)
    in_error = in_error or kind is ast.Raise
    for field in node._fields:
        value = getattr(node, field, None)
        if value is None or field in _UNSAID or (kind is ast.ImportFrom and field in ("module", "level")):
            continue
        items = value if isinstance(value, list) else [value]
        if field == "body":
            items = [item for item in items if not _does_nothing(item)]
        if items:
            tokens.append(field)
        for item in items:
            if isinstance(item, ast.AST):
                if not (in_error and isinstance(item, ast.JoinedStr)):
                    _tokens(item, tokens, in_error)
            elif not (in_error and kind is ast.Constant and isinstance(item, str)):
                tokens.append(f"{type(item).__name__} {item!r}")
    tokens.append(".")
    return tokens


def _does_nothing(node: ast.AST) -> bool:
    """Return whether a statement is ``pass``, or a text alone, as docstrings are."""
    if isinstance(node, ast.Pass):
        return True
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
