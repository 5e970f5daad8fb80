"""What ``aftershock list`` says of built-in parts without importing them: ``harness/core/builtin_parts.json``.

``python docs/tools/catalogue.py`` writes it anew, from the parts; a test fails where the file says something else.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any
from unittest import mock

from aftershock.harness.cli.catalogue import describe
from aftershock.harness.core.registry import PACKAGE, REGISTRIES, Entry

FILE = Path(__file__).parents[2] / "harness" / "core" / "builtin_parts.json"
# Known of every built-in part, or depends on what is installed.
_ELSEWHERE = ("name", "kind", "origin", "available", "reason")


def builtin_parts() -> dict[str, dict[str, dict[str, Any]]]:
    """Return what is to be written, by kind and name."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for kind, registry in REGISTRIES.items():
        entries = [e for e in registry.entries() if e.origin.package == PACKAGE]
        # Their modules are imported by now: each describes itself.
        described = {item["name"]: item for item in describe(kind)}
        found[kind] = {
            e.name: {name: value for name, value in described[e.name].items() if name not in _ELSEWHERE}
            | ({"missing": missing} if (missing := _missing(e)) else {})
            for e in entries
        }
    return found


def _missing(entry: Entry) -> dict[str, str]:
    """Return what a part says where a package that it needs is not installed, by package."""
    installed, sentences = {PACKAGE}, {}
    read = importlib.metadata.version

    def version(package: str) -> str:
        if package not in installed:
            raise importlib.metadata.PackageNotFoundError(package)
        return read(PACKAGE)

    with mock.patch("aftershock.attacks.libraries.declare.version", version):
        while text := getattr(entry.load(), "missing", lambda: None)():
            package = re.findall(r"run 'pip install (\S+)'", text)[0]
            installed.add(package)
            sentences[package] = text
    return sentences


def text() -> str:
    """Return the file as it is to be."""
    return json.dumps(builtin_parts(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
