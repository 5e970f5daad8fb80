"""A suite as it is written, before anything is checked."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.files import is_file
from .builtin import builtin_suites

DECIDES_NO_NUMBER = True


def glance(suite: object) -> tuple[Mapping[str, Any] | None, Path, str]:
    """Return a suite as written, its folder and name, without checking anything.

    Args:
        suite: a path, the name of a built-in suite, or a mapping; for anything else, and for what cannot be read, there
            is neither a mapping nor a name.
    """
    nothing = (None, Path.cwd(), "")
    if isinstance(suite, Mapping):
        return suite, Path.cwd(), str(suite.get("name", ""))
    if not isinstance(suite, str | Path):
        return nothing
    path = Path(suite)
    if not is_file(path):
        known = builtin_suites()
        if str(suite) not in known:
            return nothing
        path = known[str(suite)]
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return nothing
    return raw, path.resolve().parent, str(raw.get("name", ""))
