"""Two runs compared: what was run, what came out, and what of that is beyond chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...harness.evaluation.rankability import ABLATION
from ...harness.statistics.detection import auroc
from ...harness.statistics.paired import delong, normal_difference
from ..read.frames import RunTables, facts_of, only
from ..read.run_directory import words
from .comparison import DELONG, MCNEMAR, Comparison, Figure, paired_share
from .detectors import ROBUST_TEST, compared_rows, robust_difference
from .measured import ATTACKS, Side
from .names import listed

# Facts that say what was run; everything else in run.json follows from them or is about this machine.
_FACTS = ("suite", "limit", "only", "protocol", "protocol_digest", "digests", "seeds", "versions", "hardware")
_MOST_CHANGES = 1000
_UNPAIRED = "normal approximation, not paired"


def compare_runs(first: RunTables, second: RunTables) -> Comparison:
    """Compare two runs: suite, versions, digests, and every figure that both have.

    Figures are paired by image where the images are the same (positions and classes of evaluate and calibrate images),
    else compared by their intervals.

    Args:
        first: of one run.
        second: of another one.

    Raises:
        UsageError: if a file of a run cannot be read.
    """
    changes = tuple(_changes(first, second))
    rows = [compared_rows(tables) for tables in (first, second)]
    figures: list[Figure] = []
    notes: list[str] = []
    unpaired = False
    for model in dict.fromkeys(model for model, _ in rows[0]):
        sides = [
            (Side(first, model, d), Side(second, model, d)) for m, d in rows[0] if m == model and (m, d) in rows[1]
        ]
        for a, b in sides:
            paired = a.sources == b.sources and a.seeds == b.seeds
            unpaired |= not paired
            figures += [f for f in (_robust(a, b, paired),) if f is not None]
            if a.detector != ABLATION:
                figures += _aurocs(a, b, paired)
        scored = [(a, b) for a, b in sides if a.detector != ABLATION]
        if scored:
            figures += _successes(*scored[0])
    for names, other, tables in ((rows[0], rows[1], first), (rows[1], rows[0], second)):
        alone = [f"{d} on {m}" for m, d in names if (m, d) not in other]
        notes += [f"Only {tables.folder} has {listed(alone)}."] if alone else []
    if unpaired:
        notes.append("The images or seeds of the two runs differ: such figures are compared by their intervals.")
    return Comparison(str(first.folder), str(second.folder), tuple(figures), changes, tuple(notes))


def _robust(a: Side, b: Side, paired: bool) -> Figure | None:
    ends = [
        tuple(side.number(f"robust_accuracy_{end}") for end in ("at_fpr_5", "low", "high")) for side in (a, b)
    ]  # fmt: skip
    if not np.isfinite([x for side in ends for x in side]).all():
        return None
    name, values = "robust_accuracy_at_fpr_5", (ends[0][0], ends[1][0])
    if paired or a.detector == ABLATION:
        one, other = a.sample, b.sample
        if one is not None and other is not None and one.robust.shape == other.robust.shape and _same_images(a, b):
            difference, n = robust_difference(one, other), one.robust.shape[1]
            return Figure(a.model, name, a.detector, *values, difference, ROBUST_TEST, n)
    (x, x_low, x_high), (y, y_low, y_high) = ends
    difference = normal_difference((x, x_low, x_high), (y, y_low, y_high))
    return Figure(a.model, name, a.detector, *values, difference, _UNPAIRED, int(a.number("n_images")))


def _same_images(a: Side, b: Side) -> bool:
    """Return whether two rows are about the same images; a row without a detector has those of the others."""
    if a.detector != ABLATION:
        return True
    sides = [Side(side.tables, side.model, str(side.scores["detector"].iloc[0])) for side in (a, b) if len(side.scores)]
    return len(sides) == 2 and sides[0].sources == sides[1].sources


def _aurocs(a: Side, b: Side, paired: bool) -> Iterator[Figure]:
    for label in a.kinds:
        if label not in b.kinds or ("@" in label and label.rpartition("@")[2] != a.detector):
            continue
        about = f"{a.detector} on {label}"
        first, second = a.scored(label), b.scored(label)
        if first is None or second is None:
            continue
        one, other = (float(np.mean([auroc(s.positive, s.negative) for s in side])) for side in (first, second))
        n = sum(len(s.positive) for s in first) // len(first)
        if paired:
            yield Figure(a.model, "auroc", about, one, other, delong(first, second), DELONG, n)
            continue
        ends = [_interval(side, label, area) for side, area in ((a, one), (b, other))]
        yield Figure(a.model, "auroc", about, one, other, normal_difference(*ends), _UNPAIRED, n)


def _interval(side: Side, perturbation: str, area: float) -> tuple[float, float, float]:
    """Return an AUROC with the mean of the intervals that its table has, by seed."""
    rows = only(side.tables.metrics, model=side.model, detector=side.detector, perturbation=perturbation)
    rows = only(rows, outcome="success", negatives="clean")
    return area, float(rows["auroc_low"].mean()), float(rows["auroc_high"].mean())


def _successes(a: Side, b: Side) -> Iterator[Figure]:
    """Yield the success rates of the perturbations that both runs have: detectors have no part in them."""
    same = a.sources[0] == b.sources[0] and a.seeds == b.seeds
    for label, kind in a.kinds.items():
        if kind not in ATTACKS or label not in b.kinds:
            continue
        if same:
            share_a, share_b, found, n = paired_share(a.per_image(label, "success"), b.per_image(label, "success"))
            if n:
                yield Figure(a.model, "success_rate", label, share_a, share_b, found, MCNEMAR, n)


def _changes(first: RunTables, second: RunTables) -> Iterator[tuple[str, str, str]]:
    """Yield the facts that differ."""
    flat = [_flat({name: tables.facts.get(name) for name in _FACTS}) for tables in (first, second)]
    found = 0
    for name in dict.fromkeys([*flat[0], *flat[1]]):
        before, after = (side.get(name, "–") for side in flat)
        if before != after:
            found += 1
            if found > _MOST_CHANGES:
                return
            yield name, before, after


def _flat(value: Any, name: str = "", depth: int = 0) -> dict[str, str]:
    """Return the leaves of a JSON value by their path; entries of a suite by their label, not by their place."""
    if isinstance(value, Mapping) and depth < 20:
        found: dict[str, str] = {}
        for key, inner in value.items():
            found |= _flat(inner, f"{name}.{words(key)}" if name else words(key), depth + 1)
        return found
    if isinstance(value, list) and depth < 20:
        if not any(isinstance(v, Mapping) for v in value):
            return {name: ", ".join(words(v) for v in value)}
        found = {}
        for i, inner in enumerate(value):
            label = words(inner.get("label") or inner.get("name")) if isinstance(inner, Mapping) else ""
            place = f"{name}[{label or i}]"
            found |= _flat(inner, place if f"{place}.name" not in found else f"{place}#{i}", depth + 1)
        return found
    return {} if value is None else {name: words(value)}


def worth_knowing(tables: RunTables) -> Mapping[str, Any]:
    """Return what identifies a run: name, when it was started, protocol and data digests."""
    facts = tables.facts
    data = words(facts_of(facts, "digests").get("data"))
    return {
        "name": tables.name, "started": words(facts.get("started")), "status": words(facts.get("status")),
        "protocol_digest": words(facts.get("protocol_digest")), "data": data,
    }  # fmt: skip
