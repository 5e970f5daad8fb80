"""``aftershock show KIND NAME``: what a part is, where it comes from, and what it takes."""

from __future__ import annotations

import json
import tomllib
from typing import Any, Literal

import typer

from ..core.errors import UsageError
from ..core.registry import REGISTRIES, did_you_mean, load_plugins_here
from ..suite.builtin import builtin_suites
from .arguments import kind_of
from .catalogue import describe


def show_part(what: list[str], how: Literal["table", "json", "csv"]) -> None:
    """Print what a part is.

    Args:
        what: its kind and its name.
        how: as text, its parameters as CSV, or all as JSON.

    Raises:
        UsageError: for another kind, or a name that no part has.
    """
    kind, *names = what
    if len(names) != 1:
        raise UsageError(f"Name one run directory, or a kind and a part, not {' '.join(what)!r}.")
    kind = kind_of(kind)
    facts = suite_facts(names[0]) if kind == "suites" else part_facts(kind, names[0])
    if how == "json":
        typer.echo(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    from ...reports.read.run_directory import words
    from ...reports.text_tables import plain
    from .answer_text import as_csv, shown, wrapped

    rows = facts.pop("parameters", None)
    if how == "csv":
        typer.echo(as_csv(_frame(rows or [])), nl=False)
        return
    lines = [f"{facts.pop('name')}: {facts.pop('kind')}"]
    for name, value in facts.items():
        if value not in ("", None, []):
            text = ", ".join(map(str, value)) if isinstance(value, list) else words(value)
            lines += wrapped(f"{name.replace('_', ' ')}: {text}", "  ")
    if rows is not None:
        lines += ["", "Parameters:" if rows else "It has no parameters."]
        short = [{k: v for k, v in row.items() if k != "meaning"} for row in rows]
        lines += plain(shown(_frame(short))) if short else []
        for row in rows:
            lines += wrapped(f"{row['parameter']}: {row['meaning']}", "  ") if row["meaning"] else []
    typer.echo("\n".join(lines))


def _frame(rows: list[dict[str, str]]) -> Any:
    import pandas as pd

    columns = ["parameter", "type", "default", "meaning"]
    return pd.DataFrame(rows, columns=[c for c in columns if not rows or c in rows[0]])


def part_facts(kind: str, name: str) -> dict[str, Any]:
    """Return what a part says of itself: that of ``aftershock list``, ``paper``, what it reads, and its parameters.

    Args:
        kind: detectors, perturbations, analyses, models or datasets.
        name: as in a suite.

    Raises:
        UsageError: if there is no such part, or its module cannot be imported.
    """
    from ..models.factories import GIVEN
    from .part_facts import learns, parameter_rows, reads, surrogates

    registry = REGISTRIES[kind]
    registry.entry(name)
    # Its own code says what it takes: not a stand-in in another process.
    load_plugins_here()
    part = registry.get(name)
    facts = next(item for item in describe(kind) if item["name"] == name)
    info = getattr(part, "info", None)
    facts["paper"] = getattr(info, "paper", "")
    if kind == "detectors":
        facts |= {"reads": _plain(reads(part())), "learns_from": _plain(learns(part)),
                  "surrogate": _plain(surrogates(part))}  # fmt: skip
    skip = {"root"} if kind == "datasets" else set(GIVEN) if kind == "models" else set()
    columns = ("parameter", "type", "default", "meaning")
    rows = [dict(zip(columns, map(_plain, row), strict=True)) for row in parameter_rows(_factory(part))]
    return {**facts, "parameters": [row for row in rows if row["parameter"] not in skip]}


def _factory(part: Any) -> Any:
    """Return what has the signature that a suite's parameters are bound to."""
    return getattr(part, "make", part)


def suite_facts(name: str) -> dict[str, Any]:
    """Return what a built-in suite holds.

    Raises:
        UsageError: if there is no such suite.
    """
    known = builtin_suites()
    if name not in known:
        raise UsageError(f"There is no suite {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}.")
    found = next(item for item in describe("suites") if item["name"] == name)
    suite = tomllib.loads(known[name].read_text(encoding="utf-8"))
    data, threat = suite["data"], suite["threat"]
    return {
        **found,
        "file": str(known[name]),
        "data": ", ".join(f"{key} {value}" for key, value in data.items()),
        "threat": f"{threat['norm']} at most {threat['eps']}",
        "seeds": suite.get("seeds", [0]),
        **{kind: _labels(suite.get(kind, [])) for kind in ("models", "perturbations", "detectors", "analyses")},
    }


def _labels(entries: list[dict[str, Any]]) -> list[str]:
    return [str(entry.get("label", entry.get("name", entry.get("factory", "")))) for entry in entries]


def _plain(text: str) -> str:
    return text.replace("`", "")
