"""Which perturbations of a suite are left out, and what follows for the detectors.

Left out is what is not defined for the shape of the task and what needs a package that is not installed: the results,
and the protocol digest, are those of the suite without it. An attack that raises or exceeds its limits has failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..core.interrupts import contained
from ..data.types import TaskShape
from ..suite.instances import make_perturbation
from ..suite.resolved import PerturbationPart, Suite

if TYPE_CHECKING:
    from ...attacks.base.perturbation import Perturbation

DECIDES_NO_NUMBER = True


@dataclass(frozen=True)
class Applicability:
    """What the shape of a task and the installed packages leave of a suite.

    Attributes:
        inapplicable: by label, why a perturbation is left out: it is not defined for the task, or lacks a package.
        reduced: by label, which parts a perturbation leaves out on the task.
        unfitted: by label, why a detector is not fitted: it learns from a perturbation that is left out.
        sentences: all of this for a person.
    """

    inapplicable: Mapping[str, str] = field(default_factory=dict)
    reduced: Mapping[str, str] = field(default_factory=dict)
    unfitted: Mapping[str, str] = field(default_factory=dict)
    sentences: tuple[str, ...] = ()


def make_perturbations(suite: Suite) -> dict[str, Perturbation]:
    """Return the perturbations of a suite by label."""
    return {p.label: make_perturbation(p) for p in suite.perturbations}


def applicability(suite: Suite, perturbations: Mapping[str, Perturbation], task: TaskShape | None) -> Applicability:
    """Decide what of a suite applies to a task on this installation.

    Args:
        suite: resolved and checked.
        perturbations: by label.
        task: shape of the images and number of classes; ``None`` where it is not known yet, and only packages count.
    """
    missing, undefined, reduced = {}, {}, {}
    for label, perturbation in perturbations.items():
        try:
            with contained():
                if lacks := perturbation.missing():
                    missing[label] = lacks
                elif task is not None:
                    reason, less = perturbation.inapplicable(*task), perturbation.reduced(*task)
                    if reason:
                        undefined[label] = reason
                    elif less:
                        reduced[label] = less
        except Exception:  # noqa: S112 (its cells fail by the same error, where it can be attributed)
            continue
    unfitted: dict[str, str] = {}
    for detector in suite.detectors:
        sources = (*detector.fit_on, *detector.fit_negatives)
        for what, reasons in (("is left out", missing), ("does not apply", undefined)):
            source = next((label for label in sources if label in reasons), None)
            if source is not None:
                unfitted.setdefault(detector.label, f"it learns from {source}, which {what}: {reasons[source]}")
    sentences = [f"{label} is left out: {reason}" for label, reason in _by_group(suite.perturbations, missing)]
    if task is not None:
        where = f"{suite.data.name} ({' x '.join(map(str, task.image))}, {_counted(task.classes, 'class', 'classes')})"
        sentences += [
            f"{label} does not apply to {where} and is left out: {reason}"
            for label, reason in _by_group(suite.perturbations, undefined)
        ]
        sentences += [
            f"{label} is reduced on {where}: {less}." for label, less in _by_group(suite.perturbations, reduced)
        ]
    sentences += [f"The detector {label} is not fitted: {reason}" for label, reason in unfitted.items()]
    return Applicability(missing | undefined, reduced, unfitted, tuple(sentences))


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _by_group(parts: Iterable[PerturbationPart], texts: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """Each text once for all budgets and detectors of an entry of the suite."""
    return dict.fromkeys((p.group, texts[p.label]) for p in parts if p.label in texts)
