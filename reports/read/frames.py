"""The tables of a run directory as pandas frames, read with the care of :mod:`.run_directory`."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...harness.core.errors import UsageError
from ...harness.core.files import read_if_there
from ...harness.core.registry import did_you_mean
from ...harness.evaluation.csv_files import COLUMNS, table_file
from .run_directory import (
    TABLE_LIMIT,
    check_published,
    check_run_directory,
    check_scores,
    listed,
    mapping,
    read_facts,
    unguarded,
    words,
)
from .scores import read_all_scores

if TYPE_CHECKING:
    import pandas

# Columns of text, in whichever table; all others hold numbers.
TEXTS = frozenset(
    {
        "dataset", "model", "detector", "perturbation", "kind", "family", "library", "norm", "outcome", "fit_on",
        "seen", "negatives", "reason", "flags", "worst_perturbation", "surrogate", "not_ranked_reason", "group",
        "against", "population", "tap", "metric", "measure", "what", "name", "seeds", "protocol_digest",
        "series_digest", "parts", "surrogate_follows", "set",
    }
)  # fmt: skip


@dataclass(frozen=True)
class RunTables:
    """What a run directory says: ``run.json`` and the tables, each read when it is asked for.

    Attributes:
        folder: the run directory; it may come from an untrusted source.
        facts: ``run.json``; empty where there is none.

    Raises:
        UsageError: by every attribute, if its file is missing, malformed, too large, leads out of the run, or is not
            the one that the run wrote.
    """

    folder: Path
    facts: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path | str) -> RunTables:
        """Return the tables of a run directory.

        Raises:
            UsageError: if it is none, or its ``run.json`` cannot be read.
        """
        path = Path(folder)
        check_run_directory(path)
        return cls(path, read_facts(path))

    @property
    def name(self) -> str:
        """The suite's name, or else the directory's."""
        return words(self.facts.get("name")) or self.folder.resolve().name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers; empty where the run does not say."""
        return tuple(words(name) for name in listed(self.facts.get("classes")))

    @cached_property
    def leaderboard(self) -> pandas.DataFrame:
        """One row per data set, model and detector, best first."""
        return self.table("leaderboard")

    @cached_property
    def metrics(self) -> pandas.DataFrame:
        """One row per detector, perturbation and outcome."""
        return self.table("metrics")

    @cached_property
    def perturbations(self) -> pandas.DataFrame:
        """One row per perturbation."""
        return self.table("perturbations")

    @cached_property
    def attacks(self) -> pandas.DataFrame:
        """One row per attack and detector."""
        return self.table("attacks")

    @cached_property
    def propagation(self) -> pandas.DataFrame:
        """One row per perturbation, population, tap and measure."""
        return self.table("propagation")

    @cached_property
    def radii(self) -> pandas.DataFrame:
        """One row per detector and image: how far it has to be moved."""
        return self.table("radii")

    @cached_property
    def rejection_curve(self) -> pandas.DataFrame:
        """One row per detector and budget."""
        return self.table("rejection_curve")

    @cached_property
    def past_all(self) -> pandas.DataFrame:
        """What passes all detectors at once."""
        return self.table("past_all")

    @cached_property
    def timings(self) -> pandas.DataFrame:
        """One row per part that was timed."""
        return self.table("timings")

    @cached_property
    def scores(self) -> pandas.DataFrame:
        """One row per detector and image."""
        check_scores(self.folder, self.facts)
        found = read_all_scores(self.folder)
        if found is None:
            raise UsageError(f"{self.folder} holds no scores.csv.gz with the columns of this version: run it again.")
        for name in ("dataset", "model", "perturbation", "detector", "set"):
            found[name] = _cleaned(found[name])
        return found[list(COLUMNS["scores"])]

    def has_rows(self, name: str) -> bool:
        """Return whether a table is there and has a row; runs of earlier versions lack some."""
        return (self.folder / "tables" / table_file(name)).exists() and len(self.table(name)) > 0

    def table(self, name: str) -> pandas.DataFrame:
        """Return a table by name, like the attribute of that name.

        Raises:
            UsageError: also for a name that no table has.
        """
        if name not in COLUMNS:
            raise UsageError(
                f"There is no table {name!r}{did_you_mean(name, COLUMNS)}; there are {', '.join(COLUMNS)}."
            )
        if name == "scores":
            return self.scores
        file = f"tables/{name}.csv"
        content = read_if_there(self.folder / file, TABLE_LIMIT, within=self.folder)
        digest = None if content is None else hashlib.sha256(content).hexdigest()
        check_published(self.folder, self.facts, file, digest)
        if content is None:
            raise UsageError(f"{self.folder} has no {file}: run its suite again to write it.")
        return _frame(content, self.folder / file)


def _frame(content: bytes, file: Path) -> pandas.DataFrame:
    import pandas as pd

    try:
        # A name may be "NA" or "null": only an empty cell is empty.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = pd.read_csv(
                io.BytesIO(content), dtype=dict.fromkeys(TEXTS, "str"), keep_default_na=False, na_values=[""],
                index_col=False, encoding="utf-8",
            )  # fmt: skip
    except (ValueError, OverflowError, Warning) as error:
        why = " ".join(str(error).split())[:200]
        raise UsageError(f"{file} is not a table that can be read ({why}): run the suite again.") from error
    for name in found.columns:
        if name in TEXTS:
            found[name] = _cleaned(found[name])
        elif found.empty:
            found[name] = found[name].astype("float64")
        elif not np.issubdtype(found[name].to_numpy().dtype, np.number):
            raise UsageError(
                f"{file} has text in column {words(name)[:40]}, where numbers belong: run the suite again."
            )
    return found


def _cleaned(column: pandas.Series[Any]) -> pandas.Series[Any]:
    """Return a column of texts without what guards spreadsheets and without control characters."""
    different = column.dropna().unique()
    return column.map({text: unguarded(text) for text in different}, na_action="ignore")


def only(found: pandas.DataFrame, **wanted: object) -> pandas.DataFrame:
    """Return the rows in which columns have some values; ``None`` stands for any."""
    for name, value in wanted.items():
        if value is not None:
            found = found[found[name] == value]
    return found


def facts_of(facts: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """Return an object inside others, empty where any of them is none."""
    for name in names:
        facts = mapping(facts.get(name))
    return facts
