"""Pages about the whole site: what failed and where it was computed, and how to read the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from ..read.run_directory import ADDED, TABLES, Run, listed, objects, words
from .flags import Explained, Flag, explained, flags
from .groups import Group
from .leaderboard import BOARD, PERTURBED
from .matrices_and_curves import MEASURES
from .pages import READING, RUNS, Pages
from .run_facts import run_page, run_title


def add_runs_page(pages: Pages, runs: Sequence[Run]) -> None:
    """Make the page of the runs: failed cells, warnings, versions, hardware."""
    failures = [f for run in runs for f in failures_of(run)]
    pages.add(
        RUNS,
        "runs.html",
        runs=[run_page(run) for run in runs],
        failures=[f[:3] for f in failures if f[3] != "skipped"],
        skipped=[f[:3] for f in failures if f[3] == "skipped"],
        warnings=[*((run_title(run), text) for run in runs for text in (*warnings_of(run), *_texts(run, "notes")))],
        missing=[(run_title(run), t) for run in runs for t in TABLES if t not in run.tables and t not in ADDED],
    )  # fmt: skip


def add_reading_page(pages: Pages, groups: Sequence[Group]) -> None:
    """Make the page that explains columns, measures, the protocol, and every flag that a row carries."""
    pages.add(
        READING,
        "reading.html",
        board=BOARD,
        perturbed=PERTURBED,
        measures=MEASURES,
        problems=_problems(groups),
        models=len(groups),
    )


def warnings_of(run: Run) -> list[str]:
    """What is doubtful about a whole run, in sentences."""
    return _texts(run, "warnings")


def _texts(run: Run, name: str) -> list[str]:
    return [text for said in listed(run.facts.get(name)) if (text := words(said))]


def failures_of(run: Run) -> list[tuple[str, str, str, str]]:
    """Run, cell, reason and status (failed or skipped) of every cell without a result."""
    return [(run_title(run), words(f.get("cell")) or "a cell", words(f.get("reason")) or "no reason was recorded",
             words(f.get("status")))
            for f in objects(run.facts.get("failures"))]  # fmt: skip


def _problems(groups: Sequence[Group]) -> list[Explained]:
    """Every flag of the site once, with what it means and the detectors and perturbations that carry it."""
    carried: list[tuple[str, str, Flag]] = []
    for group in groups:
        for row in group.rows("leaderboard"):
            carried += [(group.title, row.text("detector"), flag) for flag in flags(row.text("flags"))]
        for label, doubts in group.doubts.items():
            carried += [(group.title, label, flag) for flag in doubts]
    return explained(carried)
