"""The page of a perturbation, with all its budgets: what it is, what it did to each model, who notices it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..read.run_directory import Row
from .budget_charts import budget_chart
from .budgets import curve_data
from .detector_pages import TESTED, Standing, measured
from .downloads import Downloads
from .galleries import Galleries
from .groups import Group
from .leaderboard import ABLATION, Cell, Column, Table, perturbed
from .matrices_and_curves import grouped
from .pages import Pages
from .parts import Part
from .shares import group_of

# Rows of a table of a page.
_ROWS = 60
# Galleries of a model: one for each budget, or each detector that the attack knows.
_GALLERIES = 12
# And of its files: all are in metrics.csv of the model.
_MOST = 200
NOTICED = (
    Column("detector", "Detector", "The detector's label in the suite.", kind="text", first="asc"),
    Column("perturbation", "Perturbation", "With its budget.", kind="text", first="asc"),
    *TESTED[1:],
)


def perturbation_groups(groups: Sequence[Group]) -> dict[str, str]:
    """Return the perturbations of some groups: by label, the label before budgets and detectors were added."""
    found: dict[str, str] = {}
    for group in groups:
        known = {r.text("perturbation"): group_of(r) for r in group.rows("attacks")}
        for row in group.rows("perturbations"):
            label = row.text("perturbation")
            plain = label.partition("@")[0] if row.text("kind") == "adaptive" else label
            found.setdefault(label, known.get(label) or plain.partition("[eps=")[0] or label)
    return {label: name for label, name in found.items() if label}


def add_perturbation_page(
    pages: Pages, path: str, name: str, labels: Sequence[str], standings: Sequence[Standing], part: Part,
    detectors: Mapping[str, str], galleries: Galleries, downloads: Downloads,
) -> None:  # fmt: skip
    """Make the page of a perturbation.

    Args:
        pages: takes it.
        path: its path.
        name: the perturbation.
        labels: its labels in tables: one for each budget, or each detector that it knows.
        standings: the models.
        part: what is known of it.
        detectors: the page of each detector.
        galleries: the pictures.
        downloads: takes the files of its tables.
    """
    stem = path.rpartition("/")[2].removesuffix(".html")
    wanted = set(labels)
    sections = [
        section
        for number, standing in enumerate(standings)
        if (
            section := _section(f"perturbation-{stem}", number, name, wanted, standing, detectors, galleries, downloads)
        )
    ]
    pages.add(path, "perturbation.html", title=name, part=part, sections=sections, has_charts=True)


def _section(
    place: str, number: int, name: str, wanted: set[str], standing: Standing, detectors: Mapping[str, str],
    galleries: Galleries, downloads: Downloads,
) -> dict[str, Any] | None:  # fmt: skip
    group = standing.group
    rows = [r for r in group.rows("perturbations") if r.text("perturbation") in wanted]
    if not rows:
        return None
    did = perturbed(rows, group.doubts)
    noticed = noticed_table(standing.perturbed(wanted), group.order, detectors)
    data = curve_data(name, standing.bare, group.threat)
    at = len(data["detectors"]) - 1 if data else 0  # type: ignore[arg-type]
    return {
        "id": f"model-{number}",
        "title": standing.title,
        "page": standing.page,
        "did": Table(did.columns, did.rows[:_ROWS]),
        "did_files": downloads.table(place, f"effect-{number + 1}", did),
        "noticed": Table(noticed.columns, noticed.rows[:_ROWS]),
        "noticed_files": downloads.table(place, f"noticed-{number + 1}", noticed),
        "left_out": max(0, len(noticed.rows) - _ROWS),
        "galleries": galleries.examples(group, wanted)[:_GALLERIES],
        "budget": budget_chart(data, at, 1, f"Success of {name} by budget", "success", name),
    }


def noticed_table(metrics: Sequence[Row], order: Sequence[str], pages: Mapping[str, str]) -> Table:
    """Return who notices a perturbation: a row for each detector and budget, the detectors in the board's order.

    Args:
        metrics: rows of ``metrics.csv`` about it; of an attack that knows a detector, its own alone count.
        order: the detectors, as the leaderboard has them.
        pages: the page of each detector.
    """
    place = {detector: i for i, detector in enumerate(order)}
    found = grouped([r for r in metrics if not _knows_another(r)], "detector", "perturbation")
    shown = sorted(found.items(), key=lambda item: place.get(item[0][0], len(place)))
    rows = [
        ("", [Cell(detector, detector, href=pages.get(detector, "")), Cell(label, label), *measured(rows)])
        for (detector, label), rows in shown[:_MOST] if detector != ABLATION
    ]  # fmt: skip
    return Table(NOTICED, rows)


def _knows_another(row: Row) -> bool:
    return row.text("kind") == "adaptive" and not row.text("perturbation").endswith(f"@{row.text('detector')}")
