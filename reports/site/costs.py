"""What the detectors of runs cost, as a table: read from ``run.json``, means over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..read.run_directory import Run, objects, quantity, words
from .leaderboard import SPACE, Cell, Column, Table
from .matrices_and_curves import mean

COSTS = (
    Column("detector", "Detector", "The detector's label in the suite.", kind="text", first="asc"),
    Column("fit_seconds", "Fit", "Time to learn from the fit images, whose traces are there already.", "seconds",
           first="asc"),
    Column("fit_peak_mib", "Peak memory", "By how much the process's memory rose while it was fitted, traces that it "
           "read included; only Linux reports it.", "MiB", first="asc"),
    Column("state_mib", "Kept", "Size of what it learned, as stored in the run and in an exported guard.", "MiB",
           first="asc"),
    Column("score_ms_per_image", "Score", "Time to score one image in batches. The forward pass, which all detectors "
           "share, and extra passes that a detector asks for are not counted.", "ms per image", first="asc"),
)  # fmt: skip
_DIGITS = 3


def cost_tables(runs: Sequence[Run]) -> list[tuple[str, Table]]:
    """Return the title (data set, model, and the run where there are several) and table of every model of every run.

    Runs are not joined: their parameters and machines may differ.
    """
    found: dict[tuple[str, ...], dict[str, list[Mapping[str, object]]]] = {}
    for number, run in enumerate(runs):
        several = (f"{run.name} ({number + 1})",) if len(runs) > 1 else ()
        for row in objects(run.facts.get("costs")):
            models = found.setdefault((words(row.get("dataset")), words(row.get("model")), *several), {})
            models.setdefault(words(row.get("detector")), []).append(row)
    return [
        (" / ".join(t for t in title if t), Table(COSTS, [("", _cells(name, rows)) for name, rows in models.items()]))
        for title, models in found.items()
    ]


def _cells(detector: str, rows: Sequence[Mapping[str, object]]) -> list[Cell]:
    cells = [Cell(detector, detector)]
    for column in COSTS[1:]:
        value = mean([quantity(row.get(column.key)) for row in rows])
        cells.append(Cell(title="The run does not tell.") if value is None else Cell(_short(value), repr(value)))
    return cells


def _short(value: float) -> str:
    """Three digits that mean something, without an exponent: 1 204, 13.2, 0.0143."""
    if abs(value) >= 10 ** (_DIGITS - 1):
        return f"{value:,.0f}".replace(",", SPACE)
    return f"{float(f'{value:.{_DIGITS}g}'):f}".rstrip("0").rstrip(".")
