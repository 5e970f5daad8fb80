"""Analyses that are part of every run: what they measure of each perturbation is a cell of its own."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

from .base import Analysis, Measured, returned_class
from .common.inputs import ImageSet

Prepared = TypeVar("Prepared")


class StandingAnalysis(Analysis[Measured], Generic[Prepared, Measured]):
    """Looks at every perturbation of every run, one at a time; no suite names it.

    What it learns of a model once is a cell (:meth:`prepare`), and so is what it measures of each perturbation: another
    one in a suite measures nothing again. :meth:`~.base.Analysis.measure` is given one perturbation then, what was
    learned (``given.prepared``) and the seed of the run; it works with several and without what was learned too. The
    rows of the one table that it reports, with the data set, model and seed before them, are a table of the run.

    Only built-in analyses are looked for: a plugin that is installed changes no run that does not name it.

    Attributes:
        prepared_as: what the cell is called that holds what it learned.
    """

    prepared_as: ClassVar[str]
    reads_perturbed = True

    @abstractmethod
    def prepare(self, fit: ImageSet) -> Prepared:
        """Learn from clean fit images; returns a frozen dataclass, named in the annotation, as ``measure`` does."""


def prepared_class(analysis: StandingAnalysis[Any, Any]) -> type[Any]:
    """The class of what an analysis learns, by the annotation of its ``prepare``."""
    return returned_class(type(analysis).prepare)
