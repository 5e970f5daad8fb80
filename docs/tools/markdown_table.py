"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table; cells hold no line ends, and a pipe outside code is escaped."""
    titles = list(head)
    lines = [titles, ["---"] * len(titles), *(list(r) for r in rows)]
    return "".join("| " + " | ".join(_cell(c) for c in line) + " |\n" for line in lines)


def _cell(text: str) -> str:
    parts = " ".join(text.split()).split("`")
    return "`".join(part.replace("|", "\\|") if place % 2 == 0 else part for place, part in enumerate(parts))
