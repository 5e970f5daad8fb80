"""``aftershock export --to latex``, ``markdown`` and ``bibtex``: tables and references as text."""

from __future__ import annotations

from typing import Literal

from ...reports.answers.bibliography import bibtex
from ...reports.published import published
from ...reports.read.frames import only
from ...reports.text_tables import latex, markdown
from ..run.result import Run

# More rows than that are no table of a paper.
_MOST_ROWS = 5000


def exported_text(run: Run, to: Literal["latex", "markdown", "bibtex"], table: str, model: str | None) -> str:
    """Return a table of a run, or the references of its parts.

    Args:
        run: the run.
        to: the form.
        table: its name; the leaderboard has the columns that papers print.
        model: only the rows of this model.

    Raises:
        UsageError: if the run has no such table.
    """
    if to == "bibtex":
        return bibtex(run.tables)
    frame = run.tables.table(table)
    if model is not None:
        from ...reports.answers.names import model_of

        frame = only(frame, model=model_of(run.tables, model))
    label = f"tab:{run.tables.name}"
    if table == "leaderboard":
        made = published(frame)
        return markdown(made) if to == "markdown" else latex(made, label)
    kept = frame.head(_MOST_ROWS).dropna(axis=1, how="all")
    return markdown(kept) if to == "markdown" else latex(kept, label)
