"""The page of a detector: what it is, its rows, what it notices, its scores, its budget curve and price, its costs."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any

from ..read.run_directory import Row, listed, words
from .boards import Board
from .budget_charts import budget_chart
from .budgets import curve_data
from .costs import COSTS, cost_tables
from .downloads import Downloads
from .drawing import drawn
from .flags import Flag
from .galleries import Galleries
from .groups import Group
from .leaderboard import ABLATION, Cell, Column, Table, percent
from .matrices_and_curves import Matrix, grouped, matrices, mean
from .model_pages import grid_files, with_distances
from .pages import Pages
from .parts import Part
from .scores_drawn import Scores, ScoreTables, chosen, class_table, histogram_charts, roc_chart
from .shares import Conditions

# A site with more detectors has pages for the first of each leaderboard; the others are rows and lines of files.
PAGES = 100
# Detectors of one method in one matrix.
_ALIKE = 20
# Attacks on other detectors that its page shows.
_TRANSFER = 40
TESTED = (
    Column("perturbation", "Perturbation", "Its label in the suite; under it its kind.", kind="text", first="asc"),
    Column("seen", "Seen", "Whether the detector learned from this perturbation, or from one of its family.",
           kind="text", first="asc"),
    Column("n", "Fooling", "Perturbed images that fool the model, the mean over seeds.", "images"),
    Column("auroc", "AUROC", "How well the score separates them from clean images, with its 95 % interval.",
           "against clean"),
    Column("control", "AUROC", "The same against random noise of the same norm that changes no prediction.",
           "against control"),
    Column("tpr", "TPR", "The share of them that is flagged at the threshold at which 5 % of clean images are.",
           "at FPR 5 %"),
    Column("undetected", "Undetected", "The share of attacked images that fool the model and evade the detector.",
           "success", first="asc"),
)  # fmt: skip


def detectors_with_pages(groups: Sequence[Group]) -> tuple[list[str], int]:
    """Return the detectors that have pages, the first of each leaderboard first, and how many have none."""
    named: list[list[str]] = []
    for group in groups:
        known = dict.fromkeys([*group.order, *(r.text("detector") for r in group.rows("metrics"))])
        named.append([d for d in known if d not in ("", ABLATION)])
    every = list(dict.fromkeys(d for at in zip_longest(*named) for d in at if d is not None))
    return every[:PAGES], max(0, len(every) - PAGES)


@dataclass
class Rows:
    """The rows of one group by detector: looked up once, however many detectors there are."""

    group: Group
    tables: dict[str, dict[tuple[str, ...], list[Row]]] = field(default_factory=dict)

    def of(self, table: str, detector: str) -> list[Row]:
        """Return a detector's rows of a table."""
        if table not in self.tables:
            self.tables[table] = grouped(self.group.rows(table), "detector")
        return self.tables[table].get((detector,), [])


@dataclass
class Standing:
    """A group, its leaderboards, and what pages of its detectors look up in it."""

    group: Group
    title: str
    boards: Sequence[Board]
    page: str
    rows: Rows
    costs: Mapping[str, Sequence[tuple[Column, Cell]]]
    cells: Mapping[str, Sequence[tuple[Board, Sequence[Cell]]]]

    @cached_property
    def bare(self) -> Conditions:
        """What attacks that know no detector did to the model alone."""
        rows = [r for r in self.group.rows("attacks") if r.text("detector") == ABLATION and not r.text("against")]
        return replace(self.group.conditions, rows=rows)

    def perturbed(self, labels: Container[str]) -> list[Row]:
        """Return the rows of ``metrics.csv`` about some perturbations."""
        found = self._by_perturbation
        return [row for label in found if label in labels for row in found[label]]

    @cached_property
    def _by_perturbation(self) -> dict[str, list[Row]]:
        return {label: rows for (label,), rows in grouped(self.group.rows("metrics"), "perturbation").items()}


def standing_of(group: Group, title: str, boards: Sequence[Board], page: str) -> Standing:
    """Return what pages of a group's detectors look up."""
    cells: dict[str, list[tuple[Board, Sequence[Cell]]]] = {}
    for board in boards:
        for _, row in board.table.rows:
            cells.setdefault(row[1].text, []).append((board, row))
    costs: dict[str, list[tuple[Column, Cell]]] = {}
    for _, table in cost_tables(group.runs, group.dataset, group.model):
        for _, row in table.rows:
            costs.setdefault(row[0].text, [*zip(COSTS[1:], row[1:], strict=True)])
    return Standing(group, title, boards, page, Rows(group), costs, cells)


def add_detector_page(
    pages: Pages, path: str, label: str, standings: Sequence[Standing], parts: Mapping[str, Part],
    perturbations: Mapping[str, str], scores: ScoreTables, galleries: Galleries, downloads: Downloads,
) -> None:  # fmt: skip
    """Make the page of a detector, with a section for each model that it was measured on.

    Args:
        pages: takes it.
        path: its path.
        label: the detector.
        standings: the models.
        parts: what is known of the detectors of the suites, by label.
        perturbations: the page of each perturbation.
        scores: of the runs.
        galleries: of the runs' pictures.
        downloads: takes the files of its tables.
    """
    stem = path.rpartition("/")[2].removesuffix(".html")
    origin = next((s.group.origins[label][1] for s in standings if label in s.group.origins), label)
    part = parts.get(label) or parts.get(origin) or Part(label)
    sections = [
        _section(f"detector-{stem}", number, label, standing, part, parts, perturbations, scores, galleries, downloads)
        for number, standing in enumerate(standings)
        if label in standing.cells or standing.rows.of("metrics", label)
    ]
    pages.add(path, "detector.html", title=label, part=part, sections=sections, has_charts=True)


def _section(
    place: str, number: int, label: str, standing: Standing, part: Part, parts: Mapping[str, Part],
    perturbations: Mapping[str, str], scores: ScoreTables, galleries: Galleries, downloads: Downloads,
) -> dict[str, Any]:  # fmt: skip
    group = standing.group
    metrics = standing.rows.of("metrics", label)
    own = group.origins.get(label)
    known_to = own[1] if own else label
    direct = [r for r in metrics if r.text("kind") != "adaptive" or r.text("perturbation").endswith(f"@{known_to}")]
    tested, about_it = tested_table(metrics, perturbations), {r.text("perturbation") for r in direct}
    found = scores.of(own[0], group.dataset, group.model, own[1]) if own else None
    curve = _budget_curve(label, standing)
    alike = _alike(label, part, parts, standing)
    classes = None if found is None else class_table(found, known_to, _classes(group))
    figures = _figures(found, known_to, direct)
    return {
        "id": f"model-{number}",
        "title": standing.title,
        "page": standing.page,
        "rows": [_facts(board, cells) for board, cells in standing.cells.get(label, ())],
        "flags": _flags(standing.cells.get(label, ())),
        "tested": Table(TESTED, [row for row in tested.rows if row[1][0].text in about_it]),
        "transfer": Table(TESTED, [r for r in tested.rows if r[1][0].text not in about_it][:_TRANSFER]),
        "tested_files": downloads.table(place, f"tested-{number + 1}", tested),
        "alike": alike,
        "alike_files": grid_files(downloads, place, alike, f"fitted-{number + 1}-") if alike else [],
        "doubts": group.doubts,
        "roc": figures[0],
        "legend": figures[1],
        "histograms": figures[2],
        "seed": found.seed if found else "",
        "classes": classes,
        "class_files": downloads.table(place, f"classes-{number + 1}", classes) if classes else [],
        "budget": curve,
        "worst": galleries.worst(group, label),
        "costs": standing.costs.get(label, ()),
    }


def tested_table(metrics: Sequence[Row], pages: Mapping[str, str]) -> Table:
    """Return what a detector did against each perturbation, the mean over seeds.

    Args:
        metrics: the detector's rows of ``metrics.csv``.
        pages: the page of each perturbation.
    """
    return Table(TESTED, [
        ("", [Cell(name, name, every[0].text("kind"), href=pages.get(name, "")), *measured(every)])
        for (name,), every in grouped(metrics, "perturbation").items()
    ])  # fmt: skip


def measured(rows: Sequence[Row]) -> list[Cell]:
    """Return what one detector did against one perturbation: the columns of :data:`TESTED` after the first.

    Args:
        rows: its rows of ``metrics.csv``, of all seeds, outcomes and negatives.
    """
    by = grouped(rows, "negatives", "outcome")
    clean, control = by.get(("clean", "success"), []), by.get(("control", "success"), [])
    why = next((r.text("reason") for r in rows if r.text("reason")), "") or "not computed"
    low, high = (mean(r.number(end) for r in clean) for end in ("auroc_low", "auroc_high"))
    interval = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
    seen = {"exact": "yes", "family": "family"}.get((clean or rows)[0].text("seen"), "no")
    undetected = mean(r.number("undetected_success_at_fpr_5") for r in clean)
    if undetected is None:
        undetected = mean(r.number("undetected_success_at_fpr_5") for r in by.get(("clean", "all"), []))
    return [
        Cell(seen, seen),
        _number(mean(r.number("n_positive") for r in clean), "{:.0f}", why),
        replace(_number(mean(r.number("auroc") for r in clean), "{:.3f}", why), note=interval),
        _number(mean(r.number("auroc") for r in control), "{:.3f}", why),
        _share(mean(r.number("tpr_at_fpr_5") for r in clean), why),
        _share(undetected, why),
    ]


def _number(value: float | None, pattern: str, why: str) -> Cell:
    return Cell(title=why) if value is None else Cell(pattern.format(value), repr(value))


def _share(value: float | None, why: str) -> Cell:
    return Cell(title=why) if value is None else Cell(percent(value), repr(value))


def _facts(board: Board, cells: Sequence[Cell]) -> dict[str, Any]:
    shown = [(c, cell) for c, cell in zip(board.table.columns, cells, strict=True) if c.key != "detector"]
    return {"threat": board.threat, "key": board.key, "cells": shown}


def _flags(rows: Sequence[tuple[Board, Sequence[Cell]]]) -> list[Flag]:
    return list(dict.fromkeys(flag for _, cells in rows for cell in cells for flag in cell.flags))


def _classes(group: Group) -> list[str]:
    return next((names for run in group.runs if (names := [words(c) for c in listed(run.facts.get("classes"))])), [])


def _figures(
    scores: Scores | None, label: str, metrics: Sequence[Row]
) -> tuple[Any, list[tuple[str, int, bool]], list[Any]]:
    """ROC curves, their legend and the histograms."""
    if scores is None:
        return None, [], []
    by: dict[str, float] = {}
    intervals = {}
    fooling = [r for r in metrics if r.text("outcome") == "success" and r.text("negatives") == "clean"]
    for (name,), rows in grouped(fooling, "perturbation").items():
        value, low, high = (mean(r.number(c) for r in rows) for c in ("auroc", "auroc_low", "auroc_high"))
        if value is not None:
            by[name] = value
            intervals[name] = f"AUROC {value:.3f}" + (
                "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
            )
    shown = chosen(scores, label, sorted(by, key=lambda name: by[name]))
    roc = roc_chart(scores, shown, intervals)
    histograms = [drawn(chart, 380, 220) for chart in histogram_charts(scores, shown)]
    legend = [(line.note or line.name, line.tone, line.dashed) for line in roc.lines] if roc else []
    return (drawn(roc, 460, 400) if roc else None), legend, histograms


def _alike(label: str, part: Part, parts: Mapping[str, Part], standing: Standing) -> Matrix | None:
    """Return fitted on by tested on: detectors of the same method that learned from other perturbations."""
    if not part.name:
        return None
    same = [d for d in standing.cells if (other := parts.get(d)) is not None and other.name == part.name]
    if len(same) < 2 or label not in same:
        return None
    kept = [label, *(d for d in same if d != label)][:_ALIKE]
    rows = [row for d in kept for row in standing.rows.of("metrics", d)]
    found = matrices(rows, kept, lambda kind: kind != "adaptive")
    if not found:
        return None
    fitted = {d: " ".join(v for k, v in parts[d].params if k == "fit_on") for d in kept}
    first = found[0]
    if not any(fitted.values()):
        return None
    named = [(f"{d} (fitted on {fitted[d]})" if fitted[d] else d, cells) for d, cells in first.rows]
    return replace(first, rows=named) if not first.empty else None


def _budget_curve(label: str, standing: Standing) -> dict[str, Any] | None:
    """Return undetected success by budget, of every attack with several budgets."""
    own = replace(standing.group.conditions, rows=standing.rows.of("attacks", label), order=[label])
    data = curve_data(label, with_distances(standing.group, own, [label]), standing.group.threat)
    return budget_chart(data, 0, 0, f"Undetected success of attacks on {label} by budget", "undetected success")
