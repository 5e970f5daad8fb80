"""What people call the rows of a run: models, seeds, detectors, perturbations and classes, found by name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ...harness.core.errors import UsageError
from ...harness.core.registry import did_you_mean
from ...harness.evaluation.rankability import ABLATION
from ..read.frames import RunTables, only

if TYPE_CHECKING:
    import pandas

# Budgets that differ by less are one: a table holds six digits.
_SAME_BUDGET = 1e-5
_SHOWN = 12


def listed(names: Iterable[object]) -> str:
    """Return names in a row, the first dozen of many."""
    found = [str(name) for name in names]
    more = len(found) - _SHOWN
    return ", ".join(found[:_SHOWN]) + (f" and {more} more" if more > 0 else "") if found else "none"


def chosen(tables: RunTables, what: str, wanted: str | None, known: Iterable[str]) -> str:
    """Return the name that is meant; the only one where none was named.

    Raises:
        UsageError: if there is no such one, or several and none was named.
    """
    names = list(dict.fromkeys(known))
    if wanted is None:
        if len(names) == 1:
            return names[0]
        ask = f"say which, with --{what} or {what}=" if names else "there is nothing to choose"
        raise UsageError(f"{tables.folder} has {len(names)} {what}s ({listed(names)}): {ask}.")
    if wanted not in names:
        hint = did_you_mean(wanted, names)
        raise UsageError(f"{tables.folder} has no {what} {wanted!r}{hint}; it has {listed(names)}.")
    return wanted


def model_of(tables: RunTables, model: str | None) -> str:
    """Return the label of a model of a run; errors are those of :func:`chosen`."""
    return chosen(tables, "model", model, tables.perturbations["model"])


def seed_of(tables: RunTables, seed: int | None) -> int:
    """Return a seed of a run, the first one where none is named.

    Raises:
        UsageError: if the run has no such seed.
    """
    seeds = [int(s) for s in dict.fromkeys(tables.perturbations["seed"])]
    if not seeds:
        raise UsageError(f"{tables.folder} has no row in tables/perturbations.csv.")
    if seed is not None and seed not in seeds:
        raise UsageError(f"{tables.folder} has no seed {seed}; it has {listed(seeds)}.")
    return seeds[0] if seed is None else seed


def detector_of(tables: RunTables, detector: str) -> str:
    """Return the label of a detector of a run; errors are those of :func:`chosen`."""
    return chosen(tables, "detector", detector, (d for d in tables.leaderboard["detector"] if d != ABLATION))


def perturbation_of(tables: RunTables, perturbation: str, against: str | None = None) -> str:
    """Return the label of a perturbation.

    Args:
        tables: of the run.
        perturbation: a label, or the label before budgets were expanded (``pgd`` for ``pgd[eps=0.2]``): of several
            budgets the one of the threat model; of adaptive attacks the one against ``against``.
        against: a detector's label.

    Raises:
        UsageError: if there is no such perturbation, or several may be meant.
    """
    labels = list(dict.fromkeys(tables.perturbations["perturbation"]))
    if perturbation in labels:
        return perturbation
    rows = only(tables.attacks, group=perturbation)
    if against is not None and rows["against"].notna().any():
        rows = only(rows, against=against)
    meant = list(dict.fromkeys(rows["perturbation"]))
    if len(meant) > 1:
        budgets = {float(e) for e in tables.leaderboard["eps"].dropna()}
        at_budget = [name for name in meant if _has_budget(only(rows, perturbation=name), budgets)]
        meant = at_budget if len(at_budget) == 1 else meant
    if len(meant) > 1:
        raise UsageError(f"{perturbation!r} may mean {listed(meant)}: name one of them.")
    if not meant:
        names = [*labels, *dict.fromkeys(tables.attacks["group"].dropna())]
        hint = did_you_mean(perturbation, names)
        raise UsageError(f"{tables.folder} has no perturbation {perturbation!r}{hint}; it has {listed(labels)}.")
    return str(meant[0])


def _has_budget(rows: pandas.DataFrame, budgets: set[float]) -> bool:
    return any(math.isclose(float(e), b, rel_tol=_SAME_BUDGET) for e in rows["eps"].dropna() for b in budgets)


def class_of(tables: RunTables, cls: str | int) -> int:
    """Return the number of a class.

    Args:
        tables: of the run.
        cls: its number or its name; a name counts before a number that looks like it.

    Raises:
        UsageError: if there is no such class.
    """
    names = tables.classes
    if str(cls) in names:
        return names.index(str(cls))
    if re.fullmatch(r"[0-9]{1,9}", str(cls)) and (not names or int(cls) < len(names)):
        return int(cls)
    raise UsageError(
        f"{tables.folder} has no class {str(cls)!r}{did_you_mean(str(cls), names)}; it has {listed(names)}."
    )


def class_name(tables: RunTables, number: int) -> str:
    """Return the name of a class, its number where the run does not name it."""
    return tables.classes[number] if 0 <= number < len(tables.classes) else str(number)
