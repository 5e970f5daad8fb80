"""Why a detector's numbers are missing: what its cells, or those of the attacks that are made against it, failed of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..read.run_directory import Row, Run, mapping, objects, words
from .matrices_and_curves import grouped

# Cells whose part is a detector.
_OWN = ("fit", "score", "view", "gradient")


def missing_reasons(runs: Sequence[Run], model: str, metrics: Sequence[Row]) -> dict[str, str]:
    """Return why something of a detector is missing, by its label.

    Args:
        runs: the runs that are shown together.
        model: label of the model.
        metrics: rows of ``metrics.csv`` for this model: the reason of a detector of which no row has a number.
    """
    reasons: dict[str, str] = {}
    for run in runs:
        for detector, reason in _failed(run, model):
            reasons.setdefault(detector, f"failed: {reason or 'no reason was recorded'}")
    for (detector,), rows in grouped(metrics, "detector").items():
        if all(r.number("auroc") is None for r in rows):
            reasons.setdefault(detector, next((r.text("reason") for r in rows if r.text("reason")), "not computed"))
    return reasons


def _failed(run: Run, model: str) -> Iterator[tuple[str, str]]:
    """Detector and reason of each failed cell of a model that a detector's row depends on alone."""
    target = _targets(run)
    for failure in objects(run.facts.get("failures")):
        if words(failure.get("model")) == model:
            part = words(failure.get("part"))
            detector = part if words(failure.get("kind")) in _OWN else target.get(part, "")
            if detector:
                yield detector, words(failure.get("reason"))


def _targets(run: Run) -> Mapping[str, str]:
    """Return the detector that each adaptive attack is made against, by the attack's label."""
    entries = objects(mapping(run.facts.get("resolved")).get("perturbations"))
    return {words(p.get("label")): words(p.get("against")) for p in entries}
