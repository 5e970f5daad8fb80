"""The end of a run: its leaderboard for a person, or as data for another program."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from ...reports.published import published
from ...reports.read.run_directory import TABLES
from ...reports.text_tables import latex, markdown
from ..evaluation.csv_files import number_of, text_of
from ..evaluation.verdict import verdicts
from .board import piped_board, terminal_board
from .console import show_reasons

if TYPE_CHECKING:
    from ..run.result import Run

Format = Literal["table", "json", "csv", "markdown", "latex"]
Rows = Sequence[Mapping[str, str]]

# Columns of text; all others hold numbers.
TEXT_COLUMNS = {name for name, kind in TABLES["leaderboard"].items() if kind == "text" and name != "eps"} | {
    "not_ranked_reason",
    "series_digest",
}


def leaderboard_of(run: Run) -> Rows:
    """Return the rows of a run's leaderboard as they are read back; none where it is among what failed."""
    try:
        with (run.folder / "tables" / "leaderboard.csv").open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))
    except FileNotFoundError:
        return []


def show_run(run: Run, how: Format, quiet: bool) -> None:
    """Print what a run came to.

    Args:
        run: that ended.
        how: as a table for people, or as data; then nothing else is printed on standard output.
        quiet: leave out what stands around the table, but for what failed.
    """
    rows = leaderboard_of(run)
    if how != "table":
        typer.echo(_as_data(run, rows, how), nl=False)
        if how != "json":
            show_reasons(lambda text: typer.echo(text, err=True), run.failed, {} if quiet else run.skipped)
        return
    _print_board(rows)
    if quiet:
        show_reasons(lambda text: typer.echo(text, err=True), run.failed, {})
        return
    typer.echo("")
    show_reasons(typer.echo, run.failed, run.skipped)
    if not run.computed and not run.failed:
        typer.echo(
            "No cell was missing; tables and pages were written again." if run.renewed else "Nothing was missing."
        )
    typer.echo(
        f"Report: {_from_here(run.report)}\n"
        f"Next: open the report in a browser, or see single images: aftershock show {_from_here(run.folder)}"
    )


def _print_board(rows: Rows) -> None:
    if not rows:
        typer.echo("There is no leaderboard: the suite has no detectors, or --only leaves them out.")
        return
    if not sys.stdout.isatty():
        typer.echo("\n".join(piped_board(rows)))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for line in terminal_board(rows, console.width):
        # Text, not str: a name is never read as markup. What does not fit is left to the terminal.
        console.print(Text(line.text, style="bold" if line.bold else ""), soft_wrap=True)


def _as_data(run: Run, rows: Rows, how: Format) -> str:
    if how == "csv":
        path = run.folder / "tables" / "leaderboard.csv"
        return path.read_text(encoding="utf-8") if rows else ""
    if how == "markdown":
        return markdown(published(rows))
    if how == "latex":
        return latex(published(rows), label=f"tab:{run.folder.name}")
    found = {
        "folder": str(run.folder),
        "report": str(run.report),
        "computed": run.computed,
        "failed": dict(run.failed),
        "skipped": dict(run.skipped),
        "verdicts": verdicts(rows),
        "leaderboard": [{name: _value(name, cell) for name, cell in row.items()} for row in rows],
    }
    return json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _value(column: str, cell: str) -> str | int | float | None:
    if column in TEXT_COLUMNS:
        return text_of(cell)
    return int(cell) if cell.isdecimal() else number_of(cell)


def _from_here(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
