"""The page of a model: how perturbations propagate in it, what they did, which detector notices, attacks in detail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...harness.evaluation.csv_files import COLUMNS as TABLE_COLUMNS
from ...harness.evaluation.csv_files import csv_bytes
from ..read.run_directory import Row
from ..templates.rendering import json_block
from ..text_tables import TextTable
from .alarms import alarm_table
from .attacks import ROUNDED, rounding, winners
from .boards import Board
from .budgets import curve_data, ends, ends_table
from .costs import COSTS, cost_tables
from .distances import distance_rows
from .downloads import Downloads, Link
from .flags import BEYOND
from .groups import Group
from .leaderboard import ABLATION, PERTURBED, Table, perturbed, place
from .matrices_and_curves import DASH, MEASURES, Matrix, matrices, propagation
from .pages import PLOTLY, Pages
from .past_all import past_all_sentences
from .propagation_figures import Propagation
from .run_facts import run_title
from .shares import Conditions

# Detectors that the figures and matrices of one page show; the others are in the files and have pages of their own.
DETECTORS = 40
# Rows of a table of runs that the site holds a copy of.
_RAW = 10_000


def add_model_page(
    pages: Pages, path: str, group: Group, title: str, boards: Sequence[Board], detectors: Mapping[str, str],
    perturbations: Mapping[str, str], shift: Propagation | None, downloads: Downloads,
) -> None:  # fmt: skip
    """Make the page of a model.

    Args:
        pages: takes it.
        path: its path.
        group: the rows.
        title: a title that no other model has.
        boards: its leaderboards.
        detectors: the page of each detector.
        perturbations: the page of each perturbation.
        shift: what is shown of the propagation before the curves.
        downloads: takes the files of its tables.
    """
    stem = path.rpartition("/")[2].removesuffix(".html")
    shown, left_out = shown_of(group)
    attacks, measured, metrics = _first(group.conditions, shown), group.rows("perturbations"), group.rows("metrics")
    budgets = curve_data(title, with_distances(group, attacks, shown), group.threat)
    curves = propagation(title, group.rows("propagation"))
    drawable = bool(curves["series"])
    last = ends_table(ends(attacks))
    alarms = alarm_table(group.rows("rejection_curve"), sorted(group.ranked, key=place)[: DETECTORS + 1])
    plain, knowing = (
        linked(perturbed(rows, group.doubts), perturbations)
        for rows in ([r for r in measured if (r.text("kind") == "adaptive") == knows] for knows in (False, True))
    )
    among = shown_only(metrics, shown)
    costs = [
        (name, table, downloads.table(stem, "costs", table))
        for name, table in cost_tables(group.runs, group.dataset, group.model)
    ]
    pages.add(
        path,
        "model.html",
        plotted=PLOTLY if drawable or budgets else "",
        group={"title": title, "dataset": group.dataset, "accuracy": group.accuracy, "digest": group.digest,
               "runs": [run_title(run) for run in group.runs]},
        boards=[{"key": b.key, "threat": b.threat, "headline": b.headline, "rows": len(b.table.rows)} for b in boards],
        shift=shift,
        curves=json_block([curves]),
        has_curves=drawable,
        few=curves["few"],
        propagation_files=raw(downloads, stem, "propagation", group),
        perturbations=plain,
        perturbation_files=downloads.table(stem, "perturbations", plain),
        adaptive=Table(knowing.columns, knowing.rows[:DETECTORS]),
        adaptive_files=downloads.table(stem, "adaptive-attacks", knowing),
        perturbed=PERTURBED,
        matrices=[(m, grid_files(downloads, stem, m)) for m in matrices(among, shown, lambda kind: kind != "adaptive")],
        transfer=[
            (m, grid_files(downloads, stem, m, "transfer-"))
            for m in matrices(among, shown, lambda kind: kind == "adaptive", shown)[:1]
        ],
        measures=MEASURES,
        metric_files=raw(downloads, stem, "metrics", group),
        doubts={label: [f for f in found if f.key != BEYOND] for label, found in group.doubts.items()},
        pages=detectors,
        left_out=left_out,
        budgets=json_block([budgets]),
        has_budgets=budgets is not None,
        attack_files=raw(downloads, stem, "attacks", group),
        attacks=len(attacks.rows),
        ends=last,
        ends_files=downloads.table(stem, "budget-curves", last),
        alarms=alarms,
        alarm_files=downloads.table(stem, "false-alarms", alarms),
        past_all=past_all_sentences(group.rows("past_all"), group.ranked) if len(group.runs) == 1 else [],
        rounding=rounding(attacks),
        rounded=ROUNDED,
        winners=winners(attacks, group.threat),
        costs=costs,
        cost_columns=COSTS,
    )  # fmt: skip


def shown_of(group: Group) -> tuple[list[str], int]:
    """Return the detectors that a page about all of them shows, and how many it leaves out."""
    named = [d for d in group.order if d != ABLATION]
    if not named:
        named = list(dict.fromkeys(r.text("detector") for r in group.rows("metrics")))
    return named[:DETECTORS], max(0, len(named) - DETECTORS)


def shown_only(rows: Sequence[Row], detectors: Sequence[str]) -> list[Row]:
    """Return the rows of some detectors."""
    wanted = set(detectors)
    return [r for r in rows if r.text("detector") in wanted]


def _first(conditions: Conditions, shown: Sequence[str]) -> Conditions:
    """Return what attacks did with some detectors, and without any."""
    wanted = {*shown, ABLATION}
    rows = [r for r in conditions.rows if r.text("detector") in wanted and r.text("against") in {*wanted, ""}]
    return replace(conditions, rows=rows, order=[d for d in conditions.order if d in wanted])


def with_distances(group: Group, conditions: Conditions, detectors: Sequence[str]) -> Conditions:
    """Return conditions with one more attack: what was found at each distance."""
    own = shown_only(group.rows("radii"), [*detectors, ABLATION])
    return replace(conditions, rows=[*conditions.rows, *distance_rows(own, group.threat)])


def linked(table: Table, pages: Mapping[str, str]) -> Table:
    """Return a table whose first cells lead to the pages of what they name."""
    rows = [(kind, [replace(cells[0], href=pages.get(cells[0].text, "")), *cells[1:]]) for kind, cells in table.rows]
    return replace(table, rows=rows)


def raw(downloads: Downloads, stem: str, name: str, group: Group) -> list[Link]:
    """Add the rows of a table of runs as they are, all seeds and conditions; one of too many rows stays there."""
    rows = group.rows(name)
    if not rows or len(rows) > _RAW:
        return []
    columns = [c for c in TABLE_COLUMNS[name] if c in rows[0].texts or c in rows[0].numbers]
    cells = ([r.texts[c] if c in r.texts else r.numbers[c] for c in columns] for r in rows)
    return [downloads.file(stem, f"{name}.csv", f"{name}.csv", csv_bytes(columns, cells))]


def grid_files(downloads: Downloads, stem: str, matrix: Matrix, prefix: str = "") -> list[Link]:
    """Add a matrix, whose cells are empty where there is no number."""
    rows = [(d, *("" if c.text == DASH else c.text for c in cells)) for d, cells in matrix.rows]
    columns = ("detector", *(label for label, _ in matrix.columns))
    table = TextTable(columns, tuple(rows), caption=matrix.measure.title)
    return downloads.grid(stem, f"{prefix}{matrix.measure.key}", table)
