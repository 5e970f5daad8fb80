"""Answers as text: tables that fit a terminal, and data."""

from __future__ import annotations

import io
import json
import math
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import typer

from ...reports.answers.comparison import Comparison
from ...reports.answers.summaries import SHARES, Answer
from ...reports.text_tables import DASH, TextTable, line, plain
from ..evaluation.csv_files import write_rows

if TYPE_CHECKING:
    import pandas

WIDTH = 80
# Differences of shares and AUROCs are told to three digits, p-values to two.
_MOST_CHANGES = 40


def print_answer(found: Answer, how: Literal["table", "json", "csv"]) -> None:
    """Print an answer: for people all of it, as CSV the first table, as JSON title, tables and notes."""
    if how == "csv":
        typer.echo(as_csv(found.sections[0].frame), nl=False)
    elif how == "json":
        value = {"title": found.title, **{s.name: plain_values(s.frame) for s in found.sections}, "notes": found.notes}
        typer.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        typer.echo("\n".join(answer_text(found)))


def answer_text(found: Answer) -> list[str]:
    """Return the lines of an answer."""
    lines = wrapped(found.title)
    for section in found.sections:
        lines += ["", *wrapped(section.title)]
        lines += _by_model(section.frame) if len(section.frame) else ["none"]
    for note in found.notes:
        lines += ["", *wrapped(note)]
    return lines


def _by_model(frame: pandas.DataFrame) -> list[str]:
    """Return the lines of a table, of several models a table each."""
    if "model" not in frame.columns:
        return plain(shown(frame))
    lines: list[str] = []
    for model, own in frame.groupby("model", sort=False):
        lines += [*([""] if lines else []), f"{line(model)}:", *plain(shown(own.drop(columns="model")))]
    return lines


def comparison_text(found: Comparison, everything: bool) -> list[str]:
    """Return the lines of a comparison: what was run otherwise, the figures, and what follows."""
    lines = wrapped(f"A: {found.first}") + wrapped(f"B: {found.second}")
    if found.changes:
        kept = found.changes[:_MOST_CHANGES]
        lines += ["", "What differs:"]
        for what, first, second in kept:
            lines += wrapped(f"{what}: {_cut(first)} -> {_cut(second)}", "  ")
        more = len(found.changes) - len(kept)
        lines += [f"  and {more} more: --format json has them all"] if more else []
    frame = found.frame
    if not everything:
        # What is the same in both says nothing.
        frame = frame[frame["first"] != frame["second"]]
    if len(frame):
        lines += ["", *plain(_figures(frame))]
    lines += [""]
    for text in found.sentences:
        lines += wrapped(text)
    return lines


def _figures(frame: pandas.DataFrame) -> TextTable:
    several = frame["model"].nunique() > 1
    rows = [
        (
            *([line(f.model)] if several else []), line(f.about) or "all attacks",
            _SHORT.get(str(f.figure), line(f.figure)), _number(f.first), _number(f.second), _number(f.difference, True),
            _p(f.p_holm),
        )
        for f in frame.itertuples()
    ]  # fmt: skip
    return TextTable((*(["model"] if several else []), "about", "figure", "A", "B", "A - B", "p (Holm)"), tuple(rows))


_SHORT = {
    "robust_accuracy_at_fpr_5": "robust accuracy",
    "flagged_at_fpr_5": "flagged",
    "undetected_success_at_fpr_5": "undetected",
    "success_rate": "fooled",
    "auroc": "AUROC",
}


def shown(frame: pandas.DataFrame) -> TextTable:
    """Return a frame as people read it: shares in percent, numbers to four digits."""
    columns = [f"{_heading(name)} %" if name in SHARES else _heading(name) for name in frame.columns]
    rows = [
        tuple(_cell(name, value) for name, value in zip(frame.columns, row, strict=True))
        for row in frame.itertuples(index=False, name=None)
    ]
    return TextTable(tuple(columns), tuple(rows))


def _heading(name: object) -> str:
    return _SHORT.get(str(name), line(name).replace("_", " "))


def _cell(name: str, value: Any) -> str:
    if value is None or value != value:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return f"{100 * value:.1f}" if name in SHARES else f"{value:.3f}" if name == "auroc" else f"{value:.4g}"
    return line(value)


def _number(value: float, signed: bool = False) -> str:
    return DASH if not math.isfinite(value) else f"{value + 0.0:{'+' if signed else ''}.3f}"


def _p(value: float) -> str:
    return DASH if not math.isfinite(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def _cut(text: str) -> str:
    clean = line(text)
    return clean if len(clean) <= 60 else f"{clean[:57]}..."


def wrapped(text: str, indent: str = "") -> list[str]:
    """Return a sentence in lines of at most 80 columns."""
    return textwrap.wrap(
        line(text), WIDTH, initial_indent=indent, subsequent_indent=indent + "  " if indent else "",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def as_csv(frame: pandas.DataFrame) -> str:
    """Return a frame as CSV; text that a spreadsheet would run as a formula gets an apostrophe in front."""
    text = io.BytesIO()
    write_rows(text, list(frame.columns), frame.itertuples(index=False, name=None))
    return text.getvalue().decode()


def plain_values(frame: pandas.DataFrame) -> list[Mapping[str, Any]]:
    """Return the rows of a frame as JSON values; numbers that are not finite are ``None``."""
    return [
        {str(name): _plain(value) for name, value in zip(frame.columns, row, strict=True)}
        for row in frame.itertuples(index=False, name=None)
    ]


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if value != value or (isinstance(value, float) and not math.isfinite(value)) else value
