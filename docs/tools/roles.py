"""Docstrings are read as Markdown: a role such as :class:`Need` becomes code, a literal block loses its mark."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|meth|func|mod|data|attr):`~?([^`]+)`")
_LITERAL = re.compile(r"^[ \t]*::[ \t]*$\n?", re.MULTILINE)


def _short(found: re.Match[str]) -> str:
    return f"`{found[1].removeprefix('aftershock.').rpartition('.')[2] if '.' in found[1] else found[1]}`"


class Roles(griffe.Extension):
    """Rewrites every docstring once, when its object has been read."""

    def on_instance(self, *, obj: griffe.Object, **rest: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = _LITERAL.sub("", _ROLE.sub(_short, obj.docstring.value))
