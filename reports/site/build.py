"""The site: HTML pages about one or more runs that anybody can open from a folder, without a network.

It reads the run directories' ``run.json``, tables and analyses and nothing else, so a report can be made anew from a
published run. Every name in it may come from an untrusted source: the templates escape, and the page's own policy
forbids loading anything from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...harness.core.errors import AftershockError, UsageError, described
from ..findings.pages import Study, analysis_page, cards, studies
from ..read.gallery import Sheet, read_gallery
from ..read.run_directory import Run, check_scores, read_run
from ..templates.rendering import asset, json_text
from .boards import ROWS_FILE, boards_of, later_rows, room_for
from .cite import bibtex, references_of
from .detector_pages import Standing, add_detector_page, detectors_with_pages, standing_of
from .downloads import Downloads, Link
from .entry_pages import EntryLine, add_entries_page
from .galleries import Galleries, Gallery
from .groups import Group, apart, groups_of, title_among
from .leaderboard import BOARD
from .lists import LISTS, add_lists
from .matrices_and_curves import grouped
from .model_pages import add_model_page
from .pages import ENTRIES, INDEX, PLOTLY, PLOTLY_3D, READING, RUNS, MenuItem, Pages, page_names, page_paths
from .parts import Part, parts_of
from .perturbation_pages import add_perturbation_page, perturbation_groups
from .propagation_figures import Propagation, propagation_of
from .run_facts import run_page
from .run_pages import add_reading_page, add_runs_page, failures_of, warnings_of
from .scores_drawn import ScoreTables
from .writing import site_files, write_site

__all__ = ["build_site", "site_files", "site_of"]

ASSETS = ("style.css", "site.js", "board.js", "propagation.js", "budgets.js", "analyses.js", "figures.js", "gallery.js")
# Models whose propagation the front page tells of; the first one is drawn.
_SHIFTS = 6


def build_site(runs: Sequence[Path], out: Path) -> Path:
    """Write the site of some runs, from what is in their directories.

    Args:
        runs: run directories; rows of the same data set, model and protocol digest share a leaderboard.
        out: the folder of the site, made if need be. It may be a link, but not one that lies in one of the runs.

    Returns:
        ``out/index.html``; all that it needs lies below ``out``.

    Raises:
        UsageError: if there is no run, a run cannot be read, or ``out`` cannot be written.
        AftershockError: if the disk is full or broken (each file is then the old one, the new one, or not there), or if
            the page of an analysis cannot be made; it is named, and everything else is written.
    """
    if not runs:
        raise UsageError("Name at least one run directory to report on.")
    read = [read_run(Path(path)) for path in runs]
    if len(read) > 1:
        for run in read:
            check_scores(run.path, run.facts)
    found, problems = studies(read)
    sheets: dict[Path, Sequence[Sheet]] = {}
    for run in read:
        sheets[run.path], left_out = read_gallery(run)
        problems += left_out
    out = Path(out)
    files, failed = site_of(read, found, problems, sheets=sheets)
    write_site(out, files, runs)
    if failed:
        raise AftershockError(" ".join(failed))
    return out / INDEX


def site_of(
    runs: Sequence[Run],
    found: Sequence[Study] = (),
    problems: Sequence[str] = (),
    entries: Sequence[EntryLine] = (),
    refused: Sequence[tuple[str, str]] = (),
    sheets: Mapping[Path, Sequence[Sheet]] | None = None,
) -> tuple[dict[str, bytes], list[str]]:
    """Return the files of a site by path, and a sentence for each page that could not be made.

    Nothing is read but published scores, where a run's directory has them: rows that were made from other sources than
    a run directory are shown alike.

    Args:
        runs: facts and tables.
        found: the analyses.
        problems: why others cannot be shown.
        entries: of a board, whose rows come from files of several people.
        refused: files that are on no board, and why.
        sheets: pictures, by run directory.
    """
    groups = groups_of(runs)
    names = list(dict.fromkeys(run.name for run in runs))
    published = bool(entries or refused)
    menu = _menu(bool(found or problems), published)
    pages = Pages(names[0] if len(names) == 1 else f"{len(names)} suites", menu)
    downloads, paths = Downloads(), _paths(groups)
    failed = _add_analyses(pages, found, downloads)
    galleries = Galleries(sheets or {}, downloads)
    standings, shifts = _add_models(pages, groups, paths, downloads, len(runs) > 1)
    cited = _add_parts(pages, runs, found, standings, paths, galleries, downloads)
    if published:
        add_entries_page(pages, entries, refused)
    else:
        add_runs_page(pages, runs)
    add_reading_page(pages, groups)
    shown = _examples(standings, shifts, galleries)
    _add_front_page(pages, runs, standings, shifts, shown, found, [*problems, *failed], [cited])
    files = {path: text.encode() for path, text in pages.made.items()} | downloads.files
    later = later_rows([board for standing in standings for board in standing.boards], pages.top)
    if later:
        files[ROWS_FILE] = f"window.laterRows={json_text(later)};\n".encode()
    return files | _assets(pages), failed


@dataclass(frozen=True)
class _Paths:
    """Where pages are.

    Attributes:
        models: of each group.
        detectors: by label.
        attacks: of perturbations with all their budgets.
        group_of: the perturbation that each label belongs to.
        without: how many detectors have no page.
    """

    models: Sequence[str]
    detectors: Mapping[str, str]
    attacks: Mapping[str, str]
    group_of: Mapping[str, str]
    without: int

    @cached_property
    def perturbations(self) -> Mapping[str, str]:
        """The page of every perturbation's label."""
        return {label: self.attacks[name] for label, name in self.group_of.items()}


def _paths(groups: Sequence[Group]) -> _Paths:
    detectors, without = detectors_with_pages(groups)
    kinds = perturbation_groups(groups)
    return _Paths(
        page_paths("models", [group.title for group in groups]), page_names("detectors", detectors),
        page_names("perturbations", kinds.values()), kinds, without,
    )  # fmt: skip


def _add_models(
    pages: Pages, groups: Sequence[Group], paths: _Paths, downloads: Downloads, several: bool
) -> tuple[list[Standing], list[Propagation]]:
    """Make the pages of models; return what other pages look up in them, and what the front page shows of each."""
    room = room_for(sum(len(grouped(g.rows("leaderboard"), "norm", "eps")) for g in groups))
    standings, shifts = [], []
    for group, page in zip(groups, paths.models, strict=True):
        title = title_among(group, groups)
        boards = boards_of(group, title, page, paths.detectors, downloads, several, room)
        shift = propagation_of(group, title, page, paths.perturbations, downloads)
        shifts += [] if shift is None else [shift]
        add_model_page(pages, page, group, title, boards, paths.detectors, paths.perturbations, shift, downloads)
        standings.append(standing_of(group, title, boards, page))
    return standings, shifts


def _add_parts(
    pages: Pages, runs: Sequence[Run], found: Sequence[Study], standings: Sequence[Standing], paths: _Paths,
    galleries: Galleries, downloads: Downloads,
) -> Link:  # fmt: skip
    """Make the pages of detectors and perturbations, and all lists; return the file of their sources."""
    detectors, perturbations = (parts_of(runs, kind) for kind in ("detectors", "perturbations"))
    scores = ScoreTables()
    for label, path in paths.detectors.items():
        add_detector_page(pages, path, label, standings, detectors, paths.perturbations, scores, galleries, downloads)
    for name, path in paths.attacks.items():
        labels = [label for label, own in paths.group_of.items() if own == name]
        part = perturbations.get(name) or Part(name)
        add_perturbation_page(pages, path, name, labels, standings, part, paths.detectors, galleries, downloads)
    add_lists(pages, standings, (paths.detectors, detectors), (paths.attacks, perturbations), paths.without)
    papers = [(study.first.text("label"), study.first.text("paper")) for study in found]
    works = references_of([*detectors.values(), *perturbations.values()], papers)
    return downloads.file("sources", "references.bib", "BibTeX of every detector, attack and analysis", works.encode())


def _examples(
    standings: Sequence[Standing], shifts: Sequence[Propagation], galleries: Galleries
) -> Sequence[Gallery]:  # fmt: skip
    """Return what the front page shows of the first model that has pictures, of the attack that its figure is about."""
    about = {shift.title: shift.about for shift in shifts}
    for standing in standings:
        if shown := galleries.front(standing.group, about.get(standing.title, "")):
            return shown
    return ()


def _add_front_page(
    pages: Pages, runs: Sequence[Run], standings: Sequence[Standing], shifts: Sequence[Propagation],
    galleries: Sequence[Gallery], found: Sequence[Study], problems: Sequence[str],
    references: Sequence[Link],
) -> None:  # fmt: skip
    groups = [standing.group for standing in standings]
    made = [study for study in found if f"analyses/{study.slug}.html" in pages.made]
    pages.add(
        INDEX,
        "index.html",
        title=pages.title,
        runs=[run_page(run) for run in runs],
        models=list(dict.fromkeys((g.model or "unnamed", g.accuracy) for g in groups)),
        boards=[board for standing in standings for board in standing.boards],
        bare=[(standing.title, standing.page) for standing in standings if not standing.boards],
        columns=BOARD,
        shifts=shifts[:_SHIFTS],
        galleries=galleries,
        has_charts=bool(shifts),
        apart=apart(groups),
        analyses=cards(made),
        analysis_problems=problems,
        warnings=list(dict.fromkeys(text for run in runs for text in warnings_of(run))),
        failures=sum(f[3] != "skipped" for run in runs for f in failures_of(run)),
        bibtex=bibtex(),
        references=references,
    )


def _add_analyses(pages: Pages, found: Sequence[Study], downloads: Downloads) -> list[str]:
    """Make the pages of analyses; return a sentence for each that cannot be made: they hold what others found."""
    failed = []
    for study in found:
        name = f"{study.slug}.html"
        try:
            # Its card is part of the front page, which nothing may keep from being made.
            cards([study])
            context = analysis_page(study, lambda place, name, content: downloads.file(place, name, "", content).path)
            plotted = PLOTLY_3D if context["solid"] else PLOTLY if context["has_figures"] else ""
            pages.add(f"analyses/{name}", "analysis.html", plotted=plotted, **context)
        except Exception as error:
            failed.append(f"The page analyses/{name} could not be made: {described(error)}.")
    return failed


def _menu(analyses: bool, published: bool) -> list[MenuItem]:
    lists = [MenuItem(text, f"{folder}/{INDEX}") for text, folder in LISTS]
    shown = [MenuItem("Analyses", f"{INDEX}#analyses")] if analyses else []
    return [
        MenuItem("Leaderboard", INDEX),
        *lists,
        *shown,
        MenuItem("How to read this", READING),
        MenuItem("Entries", ENTRIES) if published else MenuItem("Runs", RUNS),
    ]


def _assets(pages: Pages) -> dict[str, bytes]:
    """Return style, scripts and what plotting needs, without what no page loads."""
    files = {f"assets/{name}": asset(name).encode() for name in ASSETS}
    if PLOTLY in pages.scripts:
        files[f"assets/{PLOTLY}"] = asset(PLOTLY).encode()
        files["assets/plotly-LICENSE.txt"] = asset("plotly-LICENSE.txt").encode()
    if PLOTLY_3D in pages.scripts:
        from plotly.offline import get_plotlyjs

        files[f"assets/{PLOTLY_3D}"] = str(get_plotlyjs()).encode()
    return files
