"""What the detectors of runs cost, as a table: read from ``run.json``, means over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..read.run_directory import Run, objects, quantity, words
from .leaderboard import SPACE, Cell, Column, Table
from .matrices_and_curves import mean
from .run_facts import run_title

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


def cost_tables(runs: Sequence[Run], dataset: str, model: str) -> list[tuple[str, Table]]:
    """Return the costs of a model's detectors: a title and a table for each run that tells them.

    Runs are not joined: their parameters and machines may differ.
    """
    found = []
    for number, run in enumerate(runs):
        detectors: dict[str, list[Mapping[str, object]]] = {}
        for row in objects(run.facts.get("costs")):
            if (words(row.get("dataset")), words(row.get("model"))) == (dataset, model):
                detectors.setdefault(words(row.get("detector")), []).append(row)
        if detectors:
            title = run_title(run) if len(runs) == 1 else f"{run_title(run)} ({number + 1})"
            found.append((title, Table(COSTS, [("", _cells(name, rows)) for name, rows in detectors.items()])))
    return found


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
