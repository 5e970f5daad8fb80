"""The page of a board's entries: who stands for each row, who computed it again, and which files are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .pages import ENTRIES, Pages

HELP = (
    "claimed: the entry agrees with itself, which anybody can check and which does not prove that it is true",
    "recomputed: somebody else ran it again, and the keeper of the board wrote that down",
)


@dataclass(frozen=True)
class EntryLine:
    """One entry, in words.

    Attributes:
        dataset, model, detector: the row.
        contributor: who stands for it.
        date: when it was made.
        standing: ``claimed``, or who computed it again.
        credit: who lowered it with which images.
        reason: why it has no rank; empty for a ranked row.
        file: the entry's name.
    """

    dataset: str
    model: str
    detector: str
    contributor: str
    date: str
    standing: str
    credit: str
    reason: str
    file: str


def add_entries_page(pages: Pages, entries: Sequence[EntryLine], refused: Sequence[tuple[str, str]]) -> None:
    """Make the page.

    Args:
        pages: takes it.
        entries: all rows.
        refused: files that are on no board, and why.
    """
    pages.add(ENTRIES, "entries.html", entries=entries, refused=refused, help=HELP)
