"""False alarms under attack: how many images are flagged after a small change, and what is left of robust accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from ...harness.evaluation.rejection_curve import SHARES
from ..read.run_directory import Row
from .leaderboard import ABLATION, Cell, Column, Table, percent
from .matrices_and_curves import grouped, mean


def alarm_table(curve: Sequence[Row], board: Sequence[Row]) -> Table:
    """Return a row for each detector; none where no search for false alarms was planned.

    Args:
        curve: rows of ``rejection_curve.csv``.
        board: rows of ``leaderboard.csv``, in the order of the page.
    """
    known = {row.number("alpha") for row in curve}
    shares = [alpha for alpha in SHARES if alpha in known]
    of = {label: own for (label,), own in grouped(curve, "detector").items()}
    columns = [
        Column("detector", "Detector", "The detector's label; none flags nothing.", kind="text", first="asc"),
        Column("false_alarm", "False alarms", "Of the images that the model gets right and the detector lets pass, the "
               "share that a change of at most a quarter of the budget makes it flag, with the prediction unchanged.",
               "within ε/4", first="asc"),
        *(Column(f"left_{number}", "Left over", "The share of images with neither an undetected success within the "
                 f"budget ε nor a rejection within {_part(alpha)}.", _part(alpha))
          for number, alpha in enumerate(shares)),
    ]  # fmt: skip
    rows = []
    for row in board if curve else ():
        label = row.text("detector")
        own = of.get(label, [])
        why = next((r.text("reason") for r in own if r.text("reason")), "") or "too few images, or not measured"
        cells = [Cell(label, label, "flags nothing" if label == ABLATION else "")]
        cells.append(_cell(row.number("false_alarm_at_quarter_eps"), "", why))
        for alpha in shares:
            at = [r for r in own if r.number("alpha") == alpha]
            low, high = (mean(r.number(end) for r in at) for end in ("low", "high"))
            interval = "" if low is None or high is None else f"95 % interval {percent(low)} to {percent(high)}"
            cells.append(_cell(mean(r.number("share") for r in at), interval, why))
        rows.append(("ablation" if label == ABLATION else "", cells))
    return Table(columns, rows)


def _part(alpha: float) -> str:
    """Return a part of the budget: ``0``, ``ε/8``, ``ε``."""
    part = Fraction(alpha).limit_denominator(64)
    if not part:
        return "0"
    number = "" if part.numerator == 1 else str(part.numerator)
    return f"{number}ε" if part.denominator == 1 else f"{number}ε/{part.denominator}"


def _cell(value: float | None, title: str, why: str) -> Cell:
    return Cell(title=why) if value is None else Cell(percent(value), repr(value), title=title)
