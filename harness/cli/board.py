"""The leaderboard in a terminal or a pipe: a line for each row, as many columns as there is room for."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...reports.published import (
    AT_LEAST,
    AT_MOST,
    COLUMNS,
    Doubts,
    about,
    best_rows,
    doubts,
    letter,
    shown_columns,
)
from ...reports.site.flags import FLAGS
from ...reports.text_tables import TextTable, plain, width
from ..evaluation.verdict import standings, verdict_text

# Long lines of text are hard to read, however wide a terminal is.
_WIDEST_TEXT = 100
_GAP = 2
# Where the column of flags comes in when there is little room: right after the number that they doubt.
_FLAGS = "flags"


@dataclass(frozen=True)
class Line:
    """A line of the board, and whether it is set off: a heading, or a row that the verdict names as best."""

    text: str
    bold: bool = False


def piped_board(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the lines of the board for a pipe: one table with all its columns, then sentences, a line each."""
    doubtful = doubts(rows)
    lines = plain(_table(rows, [*shown_columns(rows)], doubtful, range(len(rows))))
    for places in _tables(rows).values():
        own = [rows[i] for i in places]
        lines.append(f"{about(own)}: {_verdict(own)}")
    return [*lines, *(f"{mark}: {text}" if mark else text for mark, text in _notes(rows, doubtful))]


def terminal_board(rows: Sequence[Mapping[str, object]], columns: int) -> list[Line]:
    """Return the lines of the board for a terminal: a table for each data set and model, and its verdict below.

    Columns are left out, the least important first, until a row fits; names are never cut.

    Args:
        rows: of ``leaderboard.csv``.
        columns: width of the terminal.
    """
    doubtful = doubts(rows)
    tables = _tables(rows)
    names = [name for name in shown_columns(rows) if name not in ("dataset", "model")]
    every = range(len(rows))
    order = sorted(names, key=lambda name: COLUMNS[name].order)
    while True:
        kept = [name for name in names if name in order]
        text = plain(_table(rows, kept, doubtful, every), _GAP)
        if max(map(width, text), default=0) <= columns or len(order) <= len(_always(order)):
            break
        order.pop()
    head, body = text[0], text[1:]
    lines: list[Line] = []
    for places in tables.values():
        own = [rows[i] for i in places]
        best = best_rows(own)
        lines += [*([Line("")] if lines else []), Line(about(own), bold=True), Line(head)]
        lines += [Line(body[i], bold=at in best) for at, i in enumerate(places)]
        lines += [Line(part) for part in _wrapped(_verdict(own), columns)]
    notes = _notes(rows, doubtful)
    if notes:
        lines.append(Line(""))
    indent = max((len(mark) for mark, _ in notes), default=0) + 2
    for mark, text_below in notes:
        first = f"{mark:<{indent}}" if mark else ""
        lines += [Line(part) for part in _wrapped(text_below, columns, first, " " * len(first))]
    return lines


def _always(order: Sequence[str]) -> list[str]:
    return [name for name in order if COLUMNS[name].order == 0]


def _table(
    rows: Sequence[Mapping[str, object]], names: Sequence[str], doubtful: Doubts, places: Sequence[int] | range
) -> TextTable:
    """Return the table of some columns; flags stand beside the number that they doubt."""
    titles = [COLUMNS[name].short for name in names]
    by_column = [_aligned([COLUMNS[name].cell(rows[i]) for i in places]) for name in names]
    cells = [list(row) for row in zip(*by_column, strict=True)]
    if doubtful.marked:
        at = names.index("robust") + 1
        titles.insert(at, _FLAGS)
        for i, row in zip(places, cells, strict=True):
            row.insert(at, doubtful.marks(i) or " ")
    return TextTable(tuple(titles), tuple(map(tuple, cells)))


def _aligned(cells: Sequence[str]) -> list[str]:
    """Return cells with their numbers below each other, and so their intervals; others as they are."""
    parts = [cell.partition(" [") for cell in cells]
    if not any(interval for _, interval, _ in parts):
        return list(cells)
    left, right = (max(width(part[at]) for part in parts) for at in (0, 2))
    return [
        f"{' ' * (left - width(number))}{number}{sign or '  '}{rest}{' ' * (right - width(rest))}"
        for number, sign, rest in parts
    ]


def _tables(rows: Sequence[Mapping[str, object]]) -> dict[str, list[int]]:
    return {title: [place for place, _ in own] for title, own in standings(rows).items()}


def _verdict(rows: Sequence[Mapping[str, object]]) -> str:
    """Return the verdict on the rows of one data set and model, without saying again which."""
    ((_, own),) = standings(rows).items()
    return verdict_text([standing for _, standing in own])


def _notes(rows: Sequence[Mapping[str, object]], doubtful: Doubts) -> list[tuple[str, str]]:
    """Return what signs and letters mean: the mark, and a sentence."""
    notes = [(letter(i), _meaning(flag)) for i, flag in enumerate(doubtful.marked)]
    notes = [("", f"All detectors: {_meaning(flag)}") for flag in doubtful.common] + notes
    cells = [column.text(row) for row in rows for column in (COLUMNS["robust"], COLUMNS["price"])]
    signs = [note for note in (AT_MOST, AT_LEAST) if any(cell.startswith(note[0]) for cell in cells)]
    return notes + [(sign[0], sign[3:]) for sign in signs]


def _meaning(flag: str) -> str:
    """``control-flagged: More than half ...``; a sentence that explains itself stays alone."""
    return f"{flag}: {FLAGS[flag][1]}" if flag in FLAGS else flag


def _wrapped(text: str, columns: int, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(
        text, min(columns, _WIDEST_TEXT), initial_indent=first, subsequent_indent=rest, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
