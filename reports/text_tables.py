"""Tables as text that others use: Markdown, LaTeX (booktabs), and plain columns aligned by spaces.

:func:`.published.published` gives the leaderboard's columns as papers print them; any other pandas frame is written
as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

DASH = "–"
# What a cell of numbers looks like: 22.5, ≤ 22.5 [10.0, 37.5], 61.2 %, 1e-05.
_NUMBER = re.compile(r"([≤≥] )?[-+−]?\d[\d.,]*(e[-+]?\d+)?( ?%|[kMG])?( \[.*\])?")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~$&])")
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "`": r"\textasciigrave{}", '"': "''", "–": "--", "—": "---",
    "−": "$-$", "∞": r"$\infty$", "≤": r"$\leq$", "≥": r"$\geq$", "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$",
    "ε": r"$\varepsilon$", "→": r"$\rightarrow$", "…": r"\ldots{}",
}  # fmt: skip


@dataclass(frozen=True)
class TextTable:
    """A table of text.

    Attributes:
        columns: the headings.
        rows: as many cells each as there are columns; an empty cell is written as a dash.
        best: places of the rows that LaTeX and Markdown print bold.
        caption: what the table is about, in a line.
        notes: sentences that stand below it.

    Raises:
        ValueError: if a row does not fit the columns.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[int] = frozenset()
    caption: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row has {len(row)} cells, its table {len(self.columns)} columns")

    def is_right(self, column: int) -> bool:
        """Return whether a column is aligned to the right: all its cells are numbers, and there is one."""
        cells = [cell for row in self.rows if (cell := row[column].strip()) not in ("", DASH)]
        return bool(cells) and all(_NUMBER.fullmatch(cell) for cell in cells)


def text_table(frame: pandas.DataFrame) -> TextTable:
    """Return a frame's cells as text: numbers to four significant digits, missing ones empty; the index is left out."""
    rows = tuple(tuple(_text(v) for v in row) for row in frame.itertuples(index=False, name=None))
    return TextTable(tuple(line(c) for c in frame.columns), rows)


def markdown(table: TextTable | pandas.DataFrame) -> str:
    """Return a Markdown table (GitHub's), ended by a newline; caption and notes are paragraphs around it.

    Whatever a cell holds is shown as it is: characters that mean anything to Markdown or HTML are escaped.
    """
    given = _table(table)
    rights = [given.is_right(i) for i in range(len(given.columns))]
    lines = [
        _piped(map(_markdown, given.columns)),
        _piped("---:" if right else "---" for right in rights),
    ]
    for i, row in enumerate(given.rows):
        cells = [_markdown(cell or DASH) for cell in row]
        lines.append(_piped(f"**{cell}**" for cell in cells) if i in given.best else _piped(cells))
    blocks = [_markdown(given.caption), "\n".join(lines), *(_markdown(note) for note in given.notes)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def latex(table: TextTable | pandas.DataFrame, label: str = "") -> str:
    r"""Return a LaTeX table, ended by a newline; it needs ``\usepackage{booktabs}``.

    With a caption or a label it floats (``table``); else it is a ``tabular`` alone. Notes follow in small print.
    Whatever a cell holds is shown as it is: characters that mean anything to LaTeX are escaped.

    Args:
        table: what to write.
        label: for ``\ref``; letters, digits and ``:.-`` of it are kept.
    """
    given = _table(table)
    rights = "".join("r" if given.is_right(i) else "l" for i in range(len(given.columns)))
    lines = [f"\\begin{{tabular}}{{@{{}}{rights}@{{}}}}", r"\toprule", _row(map(_latex, given.columns)), r"\midrule"]
    for i, row in enumerate(given.rows):
        cells = [_latex(cell or DASH) for cell in row]
        lines.append(_row([rf"\textbf{{{cell}}}" for cell in cells] if i in given.best else cells))
    lines += [r"\bottomrule", r"\end{tabular}"]
    notes = [rf"\par\smallskip{{\footnotesize {' '.join(map(_latex, given.notes))}\par}}"] if given.notes else []
    if not given.caption and not label:
        return "\n".join([*lines, *notes]) + "\n"
    head = [r"\begin{table}", r"\centering", *([rf"\caption{{{_latex(given.caption)}}}"] if given.caption else [])]
    head += [rf"\label{{{''.join(re.findall(r'[A-Za-z0-9:.-]', label))}}}"] if label else []
    return "\n".join([*head, *lines, *notes, r"\end{table}"]) + "\n"


def plain(table: TextTable | pandas.DataFrame, gap: int = 2) -> list[str]:
    """Return a table's lines, the headings first, with columns that spaces align; caption and notes are left out.

    Args:
        table: what to write.
        gap: number of spaces between two columns.
    """
    given = _table(table)
    lines = [list(given.columns), *([cell or DASH for cell in row] for row in given.rows)]
    widths = [max(map(width, column)) for column in zip(*lines, strict=True)]
    rights = [given.is_right(i) for i in range(len(given.columns))]
    shown = []
    for cells in lines:
        padded = (
            " " * (w - width(cell)) + cell if right else cell + " " * (w - width(cell))
            for cell, w, right in zip(cells, widths, rights, strict=True)
        )  # fmt: skip
        shown.append((" " * gap).join(padded).rstrip())
    return shown


def width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    from rich.cells import cell_len

    return cell_len(text)


def line(value: object) -> str:
    """Return one printable line: no text of a table controls a terminal or ends a row."""
    return "".join(c for c in " ".join(str(value).split()) if c.isprintable())


def _table(table: TextTable | pandas.DataFrame) -> TextTable:
    return table if isinstance(table, TextTable) else text_table(table)


def _text(value: object) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value + 0.0:.4g}" if math.isfinite(value) else str(value)
    return line(value)


def _piped(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    # A backslash in front of a letter or a digit would be shown.
    return _MARKDOWN.sub(r"\\\1", line(text))


def _latex(text: str) -> str:
    # Two hyphens in a row would print as a dash.
    return "".join(_LATEX.get(c, c) for c in re.sub("-(?=-)", "-\0", line(text))).replace("\0", "{}")


def _row(cells: Iterable[str]) -> str:
    joined = " & ".join(cells)
    # A bracket or star after the end of a row would be an argument of it.
    return f"{'{}' if joined[:1] in '[*' else ''}{joined} \\\\"
