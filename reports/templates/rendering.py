"""What every page is rendered with: the templates, which escape, data for a page's scripts, and the files beside it."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_PACKAGE = "aftershock.reports.templates"


@cache
def environment(root: str = "") -> Environment:
    """Return the templates; whatever they are given is escaped, and a name that is missing is an error.

    They are compiled once in a process, which takes longer than rendering the pages of a small run.

    Args:
        root: the way from a page to the site's folder: empty, or ``../`` for a page in a folder of its own.
    """
    from importlib.metadata import version

    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("aftershock.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"root": root, "version": version("aftershock")}
    return made


def asset(name: str) -> str:
    """Return a style sheet, a script or a licence as text."""
    return (files(_PACKAGE) / name).read_text("utf-8")


def json_text(data: object) -> str:
    """Return JSON that is also JavaScript, in ASCII, in which no sign means anything to HTML."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # ASCII only, U+2028 included
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def json_block(data: object) -> Markup:
    """JSON that may stand inside a ``<script type="application/json">``: nothing in it can end or open a tag."""
    from markupsafe import Markup

    return Markup(json_text(data))  # noqa: S704 - the three signs that mean anything to HTML are gone
