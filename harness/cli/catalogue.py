"""What can be named in a suite, described for people and programs.

What built-in parts say of themselves is written (:mod:`..core.part_descriptions`), so that a list does not import them.
"""

from __future__ import annotations

import re
import tomllib
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..core.part_descriptions import Described, builtin_parts
from ..core.registry import REGISTRIES, Entry
from ..suite.builtin import builtin_suites


def describe(kind: str) -> list[Described]:
    """Every part of a kind (or every built-in suite), as JSON values.

    Each has ``name``, ``kind``, ``origin`` (package and version), ``available``, ``reason`` (empty where available)
    and ``summary``; perturbations and detectors have more.
    """
    if kind == "suites":
        return [_suite(name, path) for name, path in builtin_suites().items()]
    written = builtin_parts()[kind]
    found = []
    for entry in REGISTRIES[kind].entries(later=written):
        try:
            is_imported = not isinstance(entry.target, str)
            found.append(_part(kind, entry) if is_imported else _written(kind, entry, written[entry.name]))
        except Exception as error:
            # A plugin's info may be anything; the other parts are listed all the same.
            warnings.warn(f"{entry.name!r} of {entry.origin} does not describe itself: {error}", stacklevel=2)
    return found


def _written(kind: str, entry: Entry, facts: Described) -> Described:
    missing = facts.get("missing", {})
    reason = next((text for package, text in missing.items() if not _is_installed(package)), "")
    return _identity(kind, entry, reason) | {name: value for name, value in facts.items() if name != "missing"}


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _suite(name: str, path: Any) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    summary = text.splitlines()[0].lstrip("# ").strip()
    data = tomllib.loads(text)["data"]["name"]
    return {
        "name": name, "kind": "suite", "origin": str(REGISTRIES["datasets"].entry(data).origin), "available": True,
        "reason": "", "summary": summary,
    }  # fmt: skip


def _identity(kind: str, entry: Entry, reason: str) -> Described:
    return {
        "name": entry.name, "kind": REGISTRIES[kind].word, "origin": str(entry.origin), "available": not reason,
        "reason": reason,
    }  # fmt: skip


def _part(kind: str, entry: Entry) -> Described:
    part = entry.load()
    info = getattr(part, "info", None)
    reason = str(getattr(part, "missing", lambda: None)() or "")
    described = _identity(kind, entry, reason) | {"summary": _summary(part, info)}
    if kind == "perturbations" and info is not None:
        described |= {
            "perturbation_kind": info.kind, "family": info.family, "norm": info.norm or "",
            "library": info.library or entry.origin.library,
            "box": info.box, "stochastic": info.stochastic, "cost": info.cost,
        }  # fmt: skip
    if kind == "detectors" and info is not None:
        described |= {"supervised": info.supervised, "surrogate": info.surrogate, "paper": info.paper}
    return described


def _summary(part: Any, info: Any) -> str:
    if info is not None and (info.summary or info.title):
        return str(info.summary or info.title)
    text = (getattr(part, "__doc__", "") or "").strip()
    # Roles and doubled backticks are for readers of the source.
    plain = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text.split("\n\n")[0]).replace("``", "")
    return " ".join(plain.split())
