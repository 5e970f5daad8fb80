"""Cross-references in docstrings and comments lead somewhere; they are resolved from the source, without imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("analyses", "attacks", "detectors", "harness", "reports")
MODULES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))
ROLE = re.compile(r":(?:mod|func|class|data|attr|meth|exc):`~?([^`]+)`")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def defined(node: ast.Module | ast.ClassDef) -> dict[str, ast.AST]:
    """Names that a module or class binds: by definition, assignment, annotation or import."""
    found: dict[str, ast.AST] = {}
    for part in ast.walk(node):
        if isinstance(part, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.setdefault(part.name, part)
        elif isinstance(part, ast.Import | ast.ImportFrom):
            found.update({(alias.asname or alias.name).partition(".")[0]: part for alias in part.names})
        elif isinstance(part, ast.Name | ast.Attribute) and isinstance(part.ctx, ast.Store):
            found.setdefault(part.id if isinstance(part, ast.Name) else part.attr, part)
    return found


def source(dotted: str) -> Path | None:
    """The file of a module ``aftershock.…``; ``None`` where there is none."""
    path = ROOT.joinpath(*dotted.split(".")[1:])
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def leads_somewhere(target: str, path: Path) -> bool:
    """Whether a role's target is a name of the module, or a module or name of the package, absolute or relative."""
    if target.startswith("."):
        name = target.lstrip(".")
        package = ("aftershock", *path.relative_to(ROOT).parts[:-1])
        target = ".".join((*package[: len(package) - (len(target) - len(name) - 1)], name))
    if not target.startswith("aftershock."):
        first, *rest = target.split(".")
        names = defined(tree(path))
        # Attributes of what is imported or inherited are not followed.
        return first in names and (
            not rest or not isinstance(names[first], ast.ClassDef) or _has(names[first], rest[0])
        )
    parts = target.split(".")
    for length in range(len(parts), 0, -1):
        module = source(".".join(parts[:length]))
        if module is not None:
            rest = parts[length:]
            names = defined(tree(module))
            return not rest or (rest[0] in names and (len(rest) == 1 or _has(names[rest[0]], rest[1])))
    return False


def _has(node: ast.AST, name: str) -> bool:
    if not isinstance(node, ast.ClassDef):
        return True
    return name in defined(node) or bool(node.bases)


def roles() -> Iterator[tuple[Path, int, str]]:
    for path in MODULES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for found in ROLE.finditer(line):
                yield path, number, found[1]


def test_every_cross_reference_leads_somewhere() -> None:
    found = list(roles())
    assert len(found) > 100
    lost = [f"{p.relative_to(ROOT)}:{n}: {t}" for p, n, t in found if not leads_somewhere(t, p)]
    assert not lost, "\n".join(lost)


@pytest.mark.parametrize(
    "target", ["aftershock.harness.nowhere.x", "nothing_of_this_name", "aftershock.harness.core.errors.No"]
)
def test_a_lost_reference_would_be_noticed(target: str) -> None:
    assert not leads_somewhere(target, ROOT / "harness" / "core" / "errors.py")
