"""Gates for continuous integration: least values that rows of a leaderboard must reach, and a JUnit report of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import typer

from ..core.errors import AftershockError, UsageError
from ..core.files import why, write_atomic
from ..core.registry import did_you_mean
from ..evaluation.csv_files import COLUMNS, number_of, text_of
from ..evaluation.rankability import ABLATION
from .results import TEXT_COLUMNS, leaderboard_of

if TYPE_CHECKING:
    from ..run.result import Run

# What people write for a column whose name says more.
_SHORT = {
    "robust_accuracy": "robust_accuracy_at_fpr_5",
    "adaptive_undetected": "adaptive_undetected_at_fpr_5",
    "control_flagged": "control_flagged_at_fpr_5",
    "benign_flagged": "benign_flagged_at_fpr_5",
}


@dataclass(frozen=True)
class Gate:
    """A least value of a column.

    Attributes:
        written: as the user wrote it.
        column: of ``leaderboard.csv``.
        least: the value below which a row fails.
        detector: the row that it is about; empty for every row with a detector.
    """

    written: str
    column: str
    least: float
    detector: str = ""

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Read ``[DETECTOR:]COLUMN=NUMBER``.

        Raises:
            UsageError: for anything else, and for a column that there is not or that holds text.
        """
        name, equals, number = text.partition("=")
        detector, _, column = name.rpartition(":")
        try:
            least = float(number)
        except ValueError:
            least = math.nan
        if not equals or not math.isfinite(least):
            raise UsageError(
                f"--fail-under {text!r}: write COLUMN=NUMBER, as in robust_accuracy=0.4, or DETECTOR:COLUMN=NUMBER."
            )
        column = _SHORT.get(column.strip(), column.strip())
        numbers = [c for c in COLUMNS["leaderboard"] if c not in TEXT_COLUMNS]
        if column not in numbers:
            raise UsageError(
                f"--fail-under {text!r}: the leaderboard has no column {column!r} of numbers"
                f"{did_you_mean(column, [*_SHORT, *numbers])}."
            )
        return cls(text, column, least, detector.strip())


@dataclass(frozen=True)
class Checked:
    """A row beside a gate.

    Attributes:
        row: what the row is called: ``digits / cnn / msp``.
        gate: the gate.
        problem: a sentence; empty where the row reaches the least value.
    """

    row: str
    gate: Gate
    problem: str


def parse_gates(written: Sequence[str], junit: Path | None) -> list[Gate]:
    """Read what the command line asks of rows, before anything is computed.

    Raises:
        UsageError: for a mistake in it, and for a report of nothing.
    """
    if junit is not None and not written:
        raise UsageError("--junit reports what --fail-under checks: give at least one, as in robust_accuracy=0.4.")
    return [Gate.parse(text) for text in written]


def has_failed(run: Run, gates: Sequence[Gate], junit: Path | None) -> bool:
    """Say on standard error what is wrong with rows, write the report, and return whether anything is."""
    if not gates:
        return False
    checked = check_gates(leaderboard_of(run), gates)
    problems = [one.problem for one in checked if one.problem]
    for text in problems:
        typer.echo(f"--fail-under: {text}", err=True)
    if junit is not None:
        write_junit(junit, run.folder.name, checked, run.failed)
    return bool(problems)


def check_gates(rows: Sequence[Mapping[str, str]], gates: Sequence[Gate]) -> list[Checked]:
    """Return every row beside every gate that is about it; the row without a detector is asked only by its name."""
    found = []
    for gate in gates:
        own = [row for row in rows if text_of(row["detector"]) == gate.detector] if gate.detector else [
            row for row in rows if text_of(row["detector"]) != ABLATION
        ]  # fmt: skip
        if not own:
            what = f"has no detector {gate.detector!r}" if gate.detector else "is empty"
            found.append(Checked(gate.detector or "leaderboard", gate, f"The leaderboard {what}."))
        found += [_checked(row, gate) for row in own]
    return found


def _checked(row: Mapping[str, str], gate: Gate) -> Checked:
    name = " / ".join(text_of(row[column]) for column in ("dataset", "model", "detector"))
    value = number_of(row[gate.column])
    if value is None:
        reason = text_of(row["not_ranked_reason"])
        return Checked(name, gate, f"{name} has no {gate.column}{f' ({reason})' if reason else ''}.")
    if value < gate.least:
        return Checked(name, gate, f"{name}: {gate.column} is {value:.6g}, less than {gate.least:g}.")
    return Checked(name, gate, "")


def write_junit(path: Path, suite: str, checked: Sequence[Checked], failed: Mapping[str, str]) -> None:
    """Write what was checked as a JUnit report: a test for each row and gate, an error for each cell that failed.

    Raises:
        AftershockError: if the file cannot be written.
    """
    problems = sum(bool(one.problem) for one in checked)
    numbers = {"tests": len(checked) + len(failed), "failures": problems, "errors": len(failed)}
    counts = {name: str(count) for name, count in numbers.items()}
    root = ElementTree.Element("testsuites", counts)
    group = ElementTree.SubElement(root, "testsuite", {"name": f"aftershock {suite}", **counts})
    for one in checked:
        case = _case(group, one.row, f"{one.gate.column} >= {one.gate.least:g}")
        if one.problem:
            ElementTree.SubElement(case, "failure", {"message": _xml(one.problem)}).text = _xml(one.problem)
    for name, reason in failed.items():
        ElementTree.SubElement(_case(group, "cells", name), "error", {"message": _xml(reason)}).text = _xml(reason)
    ElementTree.indent(root)
    try:
        write_atomic(path, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
    except OSError as error:
        raise AftershockError(f"--junit {path} cannot be written ({why(error)}).") from error


def _case(group: ElementTree.Element, row: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(group, "testcase", {"classname": _xml(row), "name": _xml(name)})


def _xml(text: str) -> str:
    """Return text without the characters that XML has no form for."""
    return "".join(c if c.isprintable() else " " for c in text)
