"""What built-in parts say of themselves, for whoever must not import them: a list, a report, a bibliography.

``python docs/tools/catalogue.py`` writes ``builtin_parts.json``, and a test compares it with the parts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

DECIDES_NO_NUMBER = True

Described = dict[str, Any]


@cache
def builtin_parts() -> Mapping[str, Mapping[str, Described]]:
    """Return what is written of built-in parts, by kind and name.

    Each value has at least ``summary``; ``missing`` holds, by the package that a part needs, the sentence where that is
    not installed.
    """
    found: Mapping[str, Mapping[str, Described]] = json.loads(
        (files(__package__) / "builtin_parts.json").read_text(encoding="utf-8")
    )
    return found
