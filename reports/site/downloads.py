"""Every table of the site as files that others use: CSV, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ...harness.evaluation.csv_files import COLUMNS, csv_bytes
from ..published import published
from ..read.run_directory import Row
from ..text_tables import TextTable, latex, markdown
from .leaderboard import Cell, Column, Table
from .matrices_and_curves import DASH

FOLDER = "data"
# A table of more rows is for programs: no paper prints it.
PRINTED = 200


@dataclass(frozen=True)
class Link:
    """A file that a page offers: its words, its path from the site's folder."""

    text: str
    path: str


@dataclass
class Downloads:
    """The files of tables, by path from the site's folder; two tables of one name get two files."""

    files: dict[str, bytes] = field(default_factory=dict)

    def table(self, place: str, name: str, table: Table, caption: str = "") -> list[Link]:
        """Add a table of cells: numbers in full in the CSV file, as they are shown in the others.

        Args:
            place: folder below ``data``; made of letters, digits and hyphens.
            name: file name without its ending, made of the same.
            table: the table.
            caption: what it is about, in a line.
        """
        if not table.rows:
            return []
        columns = [c for c in table.columns if c.kind != "flags"]
        values = [_values(table.columns, cells) for _, cells in table.rows]
        names = [c.key for c in columns]
        if any(row[-1] for row in values):
            names.append("flags")
        else:
            values = [row[:-1] for row in values]
        return self._add(place, name, names, values, lambda: _printed(table, caption))

    def leaderboard(self, place: str, rows: Sequence[Row]) -> list[Link]:
        """Add the rows of a leaderboard, in their order: all columns as CSV, and what papers print."""
        known = [c for c in COLUMNS["leaderboard"] if any(c in r.texts or c in r.numbers for r in rows[:1])]
        mappings = [{c: r.texts[c] if c in r.texts else r.numbers[c] for c in known} for r in rows]
        return self._add(place, "leaderboard", known, mappings, lambda: published(mappings)) if rows else []

    def grid(self, place: str, name: str, table: TextTable) -> list[Link]:
        """Add a table of text."""
        return self._add(place, name, table.columns, table.rows, lambda: table)

    def file(self, place: str, name: str, text: str, content: bytes) -> Link:
        """Add any other file, under the next free name."""
        path = self._free(place, *name.rsplit(".", 1))
        self.files[path] = content
        return Link(text, path)

    def _add(
        self, place: str, name: str, columns: Sequence[str], rows: Sequence[Sequence[object] | Mapping[str, object]],
        printed: Callable[[], TextTable],
    ) -> list[Link]:  # fmt: skip
        made = [self.file(place, f"{name}.csv", "CSV", csv_bytes(tuple(columns), rows))]
        if len(rows) <= PRINTED:
            table = printed()
            made.append(self.file(place, f"{name}.md", "Markdown", markdown(table).encode()))
            made.append(self.file(place, f"{name}.tex", "LaTeX", latex(table).encode()))
        return made

    def _free(self, place: str, stem: str, ending: str) -> str:
        path, count = f"{FOLDER}/{place}/{stem}.{ending}", 2
        while path in self.files:
            path, count = f"{FOLDER}/{place}/{stem}-{count}.{ending}", count + 1
        return path


def _printed(table: Table, caption: str) -> TextTable:
    columns = [c for c in table.columns if c.kind != "flags"]
    heads = [f"{c.title} ({c.note})" if c.note else c.title for c in columns]
    texts = [tuple(_text(cell) for column, cell in zip(table.columns, cells, strict=True) if column.kind != "flags")
             for _, cells in table.rows]  # fmt: skip
    return TextTable(tuple(heads), tuple(texts), caption=caption)


def _values(columns: Sequence[Column], cells: Sequence[Cell]) -> list[object]:
    values: list[object] = []
    flags = []
    for column, cell in zip(columns, cells, strict=True):
        flags += [f.full for f in cell.flags]
        if column.kind != "flags":
            values.append(_number(cell.sort) if column.kind == "number" else cell.sort)
    return [*values, "; ".join(dict.fromkeys(flags))]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _text(cell: Cell) -> str:
    return "" if cell.text == DASH else f"{cell.text} ({cell.note})" if cell.note else cell.text
