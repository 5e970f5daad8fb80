"""What can be named in a suite, described for people and programs."""

from __future__ import annotations

import re
import tomllib
import warnings
from typing import Any

from ..core.registry import REGISTRIES, Entry
from ..suite.resolve import builtin_suites


def describe(kind: str) -> list[dict[str, Any]]:
    """Every part of a kind (or every built-in suite), as JSON values.

    Each has ``name``, ``kind``, ``origin`` (package and version), ``available``, ``reason`` (empty where available)
    and ``summary``; perturbations and detectors have more.
    """
    if kind == "suites":
        return [_suite(name, path) for name, path in builtin_suites().items()]
    found = []
    for entry in REGISTRIES[kind].entries():
        try:
            found.append(_part(kind, entry))
        except Exception as error:
            # A plugin's info may be anything; the other parts are listed all the same.
            warnings.warn(f"{entry.name!r} of {entry.origin} does not describe itself: {error}", stacklevel=2)
    return found


def _suite(name: str, path: Any) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    summary = text.splitlines()[0].lstrip("# ").strip()
    data = tomllib.loads(text)["data"]["name"]
    return {
        "name": name, "kind": "suite", "origin": str(REGISTRIES["datasets"].entry(data).origin), "available": True,
        "reason": "", "summary": summary,
    }  # fmt: skip


def _part(kind: str, entry: Entry) -> dict[str, Any]:
    part = entry.load()
    info = getattr(part, "info", None)
    reason = str(getattr(part, "missing", lambda: None)() or "")
    described: dict[str, Any] = {
        "name": entry.name,
        "kind": kind[:-1] if kind != "analyses" else "analysis",
        "origin": str(entry.origin),
        "available": not reason,
        "reason": reason,
        "summary": _summary(part, info),
    }
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
