"""The front page's leaderboards: what their tables, tabs and downloads show, and rows that are loaded when needed.

Everything here is a plain value made of rows, wherever these come from: a run directory, or a folder of entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..threats import budget
from .downloads import Downloads, Link
from .groups import Group
from .headlines import headline
from .leaderboard import Cell, Table, leaderboard, place
from .matrices_and_curves import grouped
from .reasons import missing_reasons
from .run_facts import labels

if TYPE_CHECKING:
    from jinja2 import Environment

# Rows of all tables together that are part of the front page; the others are a script that is loaded when asked for.
ROWS = 200
_LEAST = 5
ROWS_FILE = "data/board.js"


@dataclass(frozen=True)
class Board:
    """One leaderboard: a data set, model, protocol and threat.

    Attributes:
        key: its name in the address, made of letters, digits and hyphens.
        title: ``digits / cnn``, with what tells it from others of that name.
        threat: ``L∞ ≤ 8/255``.
        page: the model's page.
        accuracy: clean accuracy; empty where it is not known.
        origin: the runs that its rows come from, in words; empty where there is only one.
        digest: of the protocol.
        headline: the verdict with its numbers.
        best: the row of the best ranked detector, as cells by column; empty without one.
        table: all rows.
        shown: how many of them the page holds.
        rowless: detectors without a row, and why.
        files: the table as files.
    """

    key: str
    title: str
    threat: str
    page: str
    accuracy: str
    origin: str
    digest: str
    headline: Mapping[str, str]
    best: Mapping[str, Cell]
    table: Table
    shown: int
    rowless: Sequence[tuple[str, str]]
    files: Sequence[Link]

    @property
    def rest(self) -> int:
        """How many rows the page does not hold."""
        return len(self.table.rows) - self.shown


def boards_of(
    group: Group, title: str, page: str, detectors: Mapping[str, str], downloads: Downloads, several: bool, room: int
) -> list[Board]:
    """Return the leaderboards of a group, one for each threat.

    Args:
        group: its rows.
        title: a title that no other group has.
        page: the model's page.
        detectors: the page of each detector.
        downloads: takes the tables' files.
        several: whether the site is about several runs.
        room: how many rows of each table the front page may hold.
    """
    reasons = missing_reasons(group.runs, group.model, group.rows("metrics"))
    stem = page.rpartition("/")[2].removesuffix(".html")
    made = []
    for number, ((norm, eps), rows) in enumerate(grouped(group.ranked, "norm", "eps").items()):
        table = leaderboard(rows, reasons, detectors)
        first = next((cells for kind, cells in table.rows if kind not in ("ablation", "unranked")), None)
        best = {} if first is None else {c.key: cell for c, cell in zip(table.columns, first, strict=True)}
        made.append(Board(
            f"{stem}-{number + 1}" if number else stem, title, budget(norm, eps), page, group.accuracy,
            group.origin if several else "", group.digest, headline(rows), best, table, min(room, len(table.rows)),
            rowless(group, reasons) if number == 0 else [],
            downloads.leaderboard(stem, sorted(rows, key=place)),
        ))  # fmt: skip
    return made


def rowless(group: Group, reasons: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the detectors of the suites that have no row, and why."""
    named = dict.fromkeys(d for run in group.runs for d in labels(run, "detectors"))
    held = set(group.order)
    return [(d, reasons.get(d, "")) for d in named if d not in held]


def room_for(tables: int) -> int:
    """Return how many rows of each table the front page holds."""
    return max(_LEAST, ROWS // max(1, tables))


def later_rows(boards: Sequence[Board], templates: Environment) -> dict[str, list[dict[str, Any]]]:
    """Return the rows that the front page does not hold: for each its HTML, what it sorts by, and what is searched."""
    macros: Any = templates.get_template("_tables.html").module
    found = {}
    for board in boards:
        columns = board.table.columns
        found[board.key] = [
            {
                "h": str(macros.table_row(kind, cells, columns, board.table.reference)),
                "k": {c.key: cell.sort for c, cell in zip(columns, cells, strict=True)},
                "f": " ".join([cells[1].text, *(flag.full for cell in cells for flag in cell.flags)]),
                "n": sum(len(cell.flags) for cell in cells),
            }
            for kind, cells in board.table.rows[board.shown :]
        ]
    return {key: rows for key, rows in found.items() if rows}
