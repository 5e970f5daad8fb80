"""A finished run as a value: what was computed, and the answers to questions about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ...reports.read.frames import RunTables
from ...reports.read.run_directory import objects, words
from .roots import data_root

if TYPE_CHECKING:
    import pandas

    from ...reports.answers.selection import Outcome
    from .images import PerturbedImages


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
        from .images import perturbed_images

        found = select(
            self.tables, perturbation, missed_by=missed_by, cls=cls, model=model, seed=seed, outcome=outcome,
            limit=limit,
        )  # fmt: skip
        return perturbed_images(self.folder, found, self.tables.classes, data_root(self.data))


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
