"""Which perturbations of a suite are defined for its task, and what follows for the detectors.

The shape of the task decides, nothing else: an attack that raises, exceeds its limits or lacks a package has failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..data.types import TaskShape
from ..suite.instances import make_perturbation
from ..suite.resolved import PerturbationPart, Suite

if TYPE_CHECKING:
    from ...attacks.base.perturbation import Perturbation

DECIDES_NO_NUMBER = True


@dataclass(frozen=True)
class Applicability:
    """What the shape of a task leaves of a suite.

    Attributes:
        inapplicable: by label, why a perturbation is not defined for the task.
        reduced: by label, which parts a perturbation leaves out on the task.
        unfitted: by label, why a detector is not fitted: it learns from a perturbation that is not defined.
        sentences: all of this for a person.
    """

    inapplicable: Mapping[str, str] = field(default_factory=dict)
    reduced: Mapping[str, str] = field(default_factory=dict)
    unfitted: Mapping[str, str] = field(default_factory=dict)
    sentences: tuple[str, ...] = ()


def make_perturbations(suite: Suite) -> dict[str, Perturbation]:
    """Return the perturbations of a suite by label."""
    return {p.label: make_perturbation(p) for p in suite.perturbations}


def applicability(suite: Suite, perturbations: Mapping[str, Perturbation], task: TaskShape) -> Applicability:
    """Decide what of a suite applies to a task.

    Args:
        suite: resolved and checked.
        perturbations: by label.
        task: shape of the images and number of classes.
    """
    inapplicable, reduced, unfitted = {}, {}, {}
    for label, perturbation in perturbations.items():
        try:
            reason, less = perturbation.inapplicable(*task), perturbation.reduced(*task)
        except Exception:  # noqa: S112 (its cells fail by the same error, where it can be attributed)
            continue
        if reason:
            inapplicable[label] = reason
        elif less:
            reduced[label] = less
    for detector in suite.detectors:
        source = next((label for label in (*detector.fit_on, *detector.fit_negatives) if label in inapplicable), None)
        if source is not None:
            unfitted[detector.label] = f"it learns from {source}, which does not apply: {inapplicable[source]}"
    where = f"{suite.data.name} ({' x '.join(map(str, task.image))}, {task.classes} class{'es' * (task.classes != 1)})"
    sentences = [
        f"{label} does not apply to {where} and is left out: {reason}"
        for label, reason in _by_group(suite.perturbations, inapplicable)
    ]
    sentences += [f"{label} is reduced on {where}: {less}." for label, less in _by_group(suite.perturbations, reduced)]
    sentences += [f"The detector {label} is not fitted: {reason}" for label, reason in unfitted.items()]
    return Applicability(inapplicable, reduced, unfitted, tuple(sentences))


def _by_group(parts: Iterable[PerturbationPart], texts: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """Each text once for all budgets and detectors of an entry of the suite."""
    return dict.fromkeys((p.group, texts[p.label]) for p in parts if p.label in texts)
