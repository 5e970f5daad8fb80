"""A finished run as a value: what was computed, and the answers to questions about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ...reports.read.frames import RunTables
from ...reports.read.run_directory import objects, words
from ..core.errors import UsageError
from .roots import data_root

if TYPE_CHECKING:
    import pandas

    from ...reports.answers.comparison import Comparison
    from ...reports.answers.figures import Figures
    from ...reports.answers.roc import Roc
    from ...reports.answers.selection import Outcome
    from .images import ImageReader, PerturbedImages


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: the run directory.
        failed: reasons of cells, tables and pages that failed, by name.
        skipped: reasons of cells that cannot work here, by name.
        computed: how many cells this call computed; 0 where no cell was missing.
        renewed: whether this call wrote tables and pages; ``False`` where nothing at all was missing.
        data: the root of the data sets; ``None`` for ``AFTERSHOCK_DATA`` or the user's data directory.
    """

    folder: Path
    failed: Mapping[str, str]
    skipped: Mapping[str, str]
    computed: int
    renewed: bool = False
    data: Path | None = field(default=None, compare=False)

    @property
    def report(self) -> Path:
        """The page to open."""
        return self.folder / "site" / "index.html"

    @cached_property
    def tables(self) -> RunTables:
        """All tables, and ``run.json``; what is damaged or was changed raises a :class:`UsageError`."""
        return RunTables.read(self.folder)

    @property
    def leaderboard(self) -> pandas.DataFrame:
        """One row per data set, model and detector, best first."""
        return self.tables.leaderboard

    @property
    def metrics(self) -> pandas.DataFrame:
        """One row per detector, perturbation and outcome."""
        return self.tables.metrics

    @property
    def scores(self) -> pandas.DataFrame:
        """One row per detector and image."""
        return self.tables.scores

    @property
    def propagation(self) -> pandas.DataFrame:
        """One row per perturbation, population, tap and measure."""
        return self.tables.propagation

    @property
    def perturbations(self) -> pandas.DataFrame:
        """One row per perturbation."""
        return self.tables.perturbations

    @property
    def attacks(self) -> pandas.DataFrame:
        """One row per attack and detector."""
        return self.tables.attacks

    @property
    def radii(self) -> pandas.DataFrame:
        """One row per detector and image: how far it has to be moved to fool the model, and to pass the detector."""
        return self.tables.radii

    @property
    def rejection_curve(self) -> pandas.DataFrame:
        """One row per detector and share of the budget."""
        return self.tables.rejection_curve

    @property
    def past_all(self) -> pandas.DataFrame:
        """What passes all detectors at once."""
        return self.tables.past_all

    @property
    def timings(self) -> pandas.DataFrame:
        """One row per part that was timed: seconds, and milliseconds per image."""
        return self.tables.timings

    @cached_property
    def _reader(self) -> ImageReader:
        from .images import ImageReader

        return ImageReader(self.folder, data_root(self.data))

    def images(
        self,
        perturbation: str,
        *,
        missed_by: str | None = None,
        cls: str | int | None = None,
        model: str | None = None,
        seed: int | None = None,
        outcome: Outcome = "success",
        limit: int | None = None,
    ) -> PerturbedImages:
        """Return perturbed images as arrays, with predictions, scores and flags; nothing is computed.

        ::

            found = run.images("pgd", missed_by="mahalanobis", limit=16)
            found.perturbed, found.difference, found.scores["mahalanobis"]

        Args:
            perturbation: its label; ``pgd`` means ``pgd[eps=0.2]`` where 0.2 is the budget of the threat model.
            missed_by: keep what this detector does not flag.
            cls: keep images of this true class, by name or number.
            model: its label; may be left out where there is one.
            seed: by default the first one.
            outcome: ``success``: images that fool the model; ``failed``: images that do not; ``all``.
            limit: maximum number of images.

        Raises:
            UsageError: for a name that the run does not have, and if its images are missing or damaged. Where only the
                clean images are not at hand, ``clean`` is ``None`` and ``note`` says why.
        """
        from ...reports.answers.selection import select

        found = select(
            self.tables, perturbation, missed_by=missed_by, cls=cls, model=model, seed=seed, outcome=outcome,
            limit=limit,
        )  # fmt: skip
        return self._reader.read(found, self.tables.classes)

    def roc(self, detector: str, perturbation: str, *, model: str | None = None, seed: int | None = None) -> Roc:
        """Return the ROC curve of a detector on a perturbation, and the point of its calibrated threshold.

        Args:
            detector: its label.
            perturbation: its label.
            model: its label; may be left out where there is one.
            seed: by default the first one.

        Raises:
            UsageError: for a name that the run does not have, or fewer than 30 images on either side.
        """
        from ...reports.answers.roc import roc

        return roc(self.tables, detector, perturbation, model, seed)

    def compare(self, first: str | Run | Path, second: str | None = None, *, model: str | None = None) -> Comparison:
        """Compare two detectors of this run, or this run with another one, image by image.

        ::

            run.compare("mahalanobis", "lid").frame
            run.compare(aftershock.load("runs/other")).sentences

        Args:
            first: a detector's label and, without ``second``, another run or its directory.
            second: the other detector's label.
            model: the model that detectors are compared on; by default all.

        Raises:
            UsageError: for a name that the run does not have, or a directory that is no run.
        """
        from ...reports.answers.detectors import compare_detectors
        from ...reports.answers.runs import compare_runs

        if second is not None:
            return compare_detectors(self.tables, str(first), second, model)
        return compare_runs(self.tables, first.tables if isinstance(first, Run) else RunTables.read(first))

    @property
    def figures(self) -> Figures:
        """Figures as plotly objects: ``propagation()``, ``roc()``, ``scores()``, ``budget()``."""
        from ...reports.answers.figures import Figures

        return Figures(self.tables)

    def to_latex(self) -> str:
        """Return the leaderboard as a LaTeX table (booktabs), with the columns that papers print."""
        from ...reports.published import published
        from ...reports.text_tables import latex

        return latex(published(self.leaderboard), f"tab:{self.tables.name}")

    def to_markdown(self) -> str:
        """Return the leaderboard as a Markdown table, with the columns that papers print."""
        from ...reports.published import published
        from ...reports.text_tables import markdown

        return markdown(published(self.leaderboard))

    def to_bibtex(self) -> str:
        """Return the references of the run as BibTeX: the tool, and every attack, detector and analysis used."""
        from ...reports.answers.bibliography import bibtex

        return bibtex(self.tables)

    def _repr_html_(self) -> str:
        from html import escape

        from ...reports.published import published

        try:
            found = published(self.leaderboard)
        except UsageError as error:
            return f"<p>{escape(str(self.folder))}: {escape(str(error))}</p>"
        head = "".join(f"<th>{escape(name)}</th>" for name in found.columns)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in found.rows
        )  # fmt: skip
        notes = "".join(f"<p>{escape(note)}</p>" for note in found.notes)
        failed = f"<p>{len(self.failed)} cells or tables failed: see <code>failed</code>.</p>" if self.failed else ""
        about = f"<p><b>{escape(self.tables.name)}</b>: {escape(found.caption)}</p>"
        return f"{about}<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{notes}{failed}"


def load(folder: Path | str, *, data: Path | str | None = None) -> Run:
    """Return a run from its directory, as :func:`aftershock.run` returned it; nothing is computed or executed.

    Args:
        folder: as given to ``aftershock run --out``; the run may be a part of its suite (``--only``).
        data: the root of the data sets, for clean images; by default ``AFTERSHOCK_DATA`` or the user's data directory.

    Raises:
        UsageError: if it is no run directory, or its ``run.json`` is missing, damaged or of another version.
    """
    place = Path(folder).expanduser().absolute()
    tables = RunTables.read(place)
    found: dict[str, dict[str, str]] = {"failed": {}, "skipped": {}}
    for failure in objects(tables.facts.get("failures")):
        found.get(words(failure.get("status")), {})[words(failure.get("cell"))] = words(failure.get("reason"))
    return Run(place, found["failed"], found["skipped"], 0, data=None if data is None else Path(data))
