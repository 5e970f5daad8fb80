"""Every number of :mod:`~aftershock.analyses.departure`, and what others may want to compute with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from ....harness.statistics.multiple_testing import holm
from ... import Table
from ...findings import Value
from ..events import FEWEST, Comparison, IntArray, Interval, beyond, compare, cumulative, half, share
from ..examples import Example, example_table
from ..study import CONTROL, FAILED, SUCCESS, TARGET, Crowd, Study
from .figures import lost, pooled_control, quantiles

FIRST, GOOD, ARRIVAL = "first change", "left for good", "arrived"


def events(crowd: Crowd) -> dict[str, IntArray]:
    """What can happen to a population, by name."""
    if crowd.population == TARGET:
        return {ARRIVAL: crowd.arrival}
    found = {FIRST: crowd.first, GOOD: crowd.good}
    if crowd.population == SUCCESS:
        found[ARRIVAL] = crowd.arrival
    return found


def tables(study: Study, shown: Sequence[Example]) -> list[Table]:
    """In the order in which they are shown."""
    found = [
        _depths(study),
        _shares(study),
        _verdicts(study),
        _margins(study),
        _beyond(study),
        _readers(study),
        _order(study),
    ]
    if shown:
        found.append(example_table(study, shown))
    found.append(_images(study))
    return found


def comparisons(study: Study) -> list[Comparison]:
    """Each pair of perturbations, on the images that both move, by their departure for good."""
    found = []
    for first, second in combinations(study.perturbations, 2):
        sides = [study.crowd(p, SUCCESS) for p in (first, second)]
        by_row = [{r: int(g) for r, g in zip(c.rows.tolist(), c.good, strict=True) if g >= 0} for c in sides]
        both = sorted(by_row[0].keys() & by_row[1].keys())
        a, b = (np.array([side[r] for r in both], dtype=np.int64) for side in by_row)
        found.append(compare(first, second, a, b))
    corrected = holm([c.p_value for c in found])
    return [Comparison(**{**vars(c), "holm": p}) for c, p in zip(found, corrected, strict=True)]


def _of(interval: Interval) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(v) else float(v) for v in interval)


def _all(study: Study) -> Iterator[tuple[str, str, Crowd]]:
    for (label, population), crowd in study.crowds.items():
        yield label, population, crowd


def _depths(study: Study) -> Table:
    rows: list[tuple[Value, ...]] = []
    for label, population, crowd in _all(study):
        for event, found in events(crowd).items():
            middle = half(found)
            never = int((found == len(study.taps)).sum())
            tap = None
            if middle.median is not None:
                tap = study.taps[middle.median] if middle.median < len(study.taps) else "none"
            rows.append((
                label, population, event, len(crowd), middle.images, len(crowd) - middle.images, tap,
                *(study.depth(v) for v in (middle.median, middle.low, middle.high)), never,
                never / middle.images if middle.images else None,
            ))  # fmt: skip
    return Table(
        "departure-depths",
        "By which depth half of the images of a population have changed for the first time, left for good or arrived, "
        "with the 95 % interval of that median (order statistics); a depth one above the last tap's stands for none. "
        "Unjudged: no tap reads the clean code as the true class. Never: no tap shows it (a success: the output "
        "alone).",
        (
            "perturbation", "population", "event", "images", "judged", "unjudged", "median_tap", "median_depth", "low",
            "high", "never", "share_never",
        ),
        rows,
    )  # fmt: skip


def _shares(study: Study) -> Table:
    rows: list[tuple[Value, ...]] = []
    for label, population, crowd in _all(study):
        for event, found in events(crowd).items():
            n = int((found >= 0).sum())
            if n:
                rows += [
                    (tap, study.depths[t], label, population, event, n, int((found == t).sum()), *_of(v))
                    for t, (tap, v) in enumerate(zip(study.taps, cumulative(found, len(study.taps)), strict=True))
                ]
    drawn = [p for p in study.perturbations if study.enough(p, SUCCESS, FEWEST)]
    pool = pooled_control(study, drawn) if drawn else np.empty(0, dtype=np.int64)
    n = int((pool >= 0).sum())
    if n:
        rows += [
            (tap, study.depths[t], "all of these", CONTROL, GOOD, n, int((pool == t).sum()), float(v[0]), None, None)
            for t, (tap, v) in enumerate(zip(study.taps, cumulative(pool, len(study.taps)), strict=True))
        ]
    return Table(
        "departure-shares",
        "Images whose event lies at a tap, and the share for which it lies there or before; Wilson 95 % interval (none "
        "where an image counts once for each perturbation).",
        ("tap", "depth", "perturbation", "population", "event", "images", "here", "share", "low", "high"),
        rows,
    )


def _verdicts(study: Study) -> Table:
    rows: list[tuple[Value, ...]] = []
    for label, population, crowd in _all(study):
        if not len(crowd) or population == TARGET:
            continue
        reached = (crowd.read == crowd.reached.numpy()[:, None]) & crowd.judged
        for t, (n, interval) in enumerate(share(crowd.changed, crowd.judged)):
            to = float(reached[:, t].sum()) / n if n else None
            rows.append((study.taps[t], study.depths[t], label, population, len(crowd), n, *_of(interval), to))
    return Table(
        "departure-verdicts",
        "Of the images whose clean code a tap reads as the true class (judged), the share whose perturbed code is read "
        "as another one, with its Wilson 95 % interval, and the share read as the class that the network predicts (of "
        "failed images: the runner-up).",
        ("tap", "depth", "perturbation", "population", "images", "judged", "changed", "low", "high", "reached"),
        rows,
    )


def _margins(study: Study) -> Table:
    rows: list[tuple[Value, ...]] = []
    for label, population, crowd in _all(study):
        sides = {population: crowd.margins}
        if population == SUCCESS:
            sides["clean"] = crowd.clean_margins
        for name, margins in sides.items():
            if not len(margins):
                continue
            for t, found in enumerate(quantiles(margins)):
                known = int(np.isfinite(margins[:, t]).sum())
                values = (None if np.isnan(v) else v for v in found)
                rows.append((study.taps[t], study.depths[t], label, name, known, *values))
    return Table(
        "departure-margins",
        "Margin between the centroids of the own and of the reached class (of failed images: the runner-up), in "
        "[-1, 1], 1 at the own class's: mean and quantiles over images; clean: the originals of the successes.",
        ("tap", "depth", "perturbation", "population", "images", "mean", "q05", "q50", "q95"),
        rows,
    )


def _beyond(study: Study) -> Table:
    rows: list[tuple[Value, ...]] = []
    for label in study.perturbations:
        success, where, control = study.pair(label)
        if len(where):
            shares = beyond(success.changed[where], control.changed, control.judged)
            for t, ((n, found), margin) in enumerate(zip(shares, lost(study, label), strict=True)):
                rows.append((study.taps[t], study.depths[t], label, len(where), n, *_of(found), *_of(margin)))
    return Table(
        "departure-beyond-noise",
        "Successes against noise of the same size on the same images: the difference of the shares read as another "
        "class, among images whose clean code the tap reads as the true class (judged), and how much less margin the "
        "success has, over all; 95 % intervals of the paired differences.",
        (
            "tap", "depth", "perturbation", "images", "judged", "changed_beyond", "changed_low", "changed_high",
            "margin_lost", "lost_low", "lost_high",
        ),
        rows,
    )  # fmt: skip


def _readers(study: Study) -> Table:
    rows = [
        (tap, study.depths[t], network, study.reader, study.fitted, study.checked, *values[t], study.chance,
         int(study.usable[t]))
        for network, values in study.accuracy.items()
        for t, tap in enumerate(study.taps)
    ]  # fmt: skip
    return Table(
        "departure-readers",
        "Accuracy of each tap's reader on clean evaluate images that the model gets right, with its Wilson 95 % "
        "interval; chance: the share of the most frequent class; used: the trained network's reader is above it.",
        ("tap", "depth", "network", "reader", "fitted_on", "images", "accuracy", "low", "high", "chance", "used"),
        rows,
    )


def _order(study: Study) -> Table:
    return Table(
        "departure-order",
        "Depth of departure for good under two perturbations, on the images that both move: how many leave earlier or "
        "later under the first, the mean difference (first minus second) in studied taps, Wilcoxon's signed rank test "
        "and its p-value after Holm's correction.",
        ("first", "second", "images", "earlier", "later", "same", "mean_difference", "p_value", "p_holm"),
        [
            (c.first, c.second, c.images, c.earlier, c.later, c.images - c.earlier - c.later, c.difference, c.p_value,
             c.holm)
            for c in comparisons(study)
        ],
    )  # fmt: skip


def _images(study: Study) -> Table:
    rows: list[tuple[Value, ...]] = []
    for label, population, crowd in _all(study):
        if population == TARGET:
            continue
        found = events(crowd)
        for i, row in enumerate(crowd.rows.tolist()):
            own, reached = (study.classes[int(c[i])] for c in (crowd.own, crowd.reached))
            depths = [study.depth(int(found[e][i])) if e in found else None for e in (FIRST, GOOD, ARRIVAL)]
            rows.append((label, population, row, own, reached, *depths))
    return Table(
        "departure-images",
        "The depths of every image (its position among the evaluate images); empty: no tap can judge it; one above the "
        "last tap: at no tap. Reached class: of failed images the runner-up.",
        ("perturbation", "population", "image", "true_class", "reached_class", "first_change", "left", "arrived"),
        rows,
    )


def arrays(study: Study) -> dict[str, Tensor]:
    """What the codes of each population are read as, their margins, and which images they are."""
    found = {}
    for label, population, crowd in _all(study):
        if population in (SUCCESS, FAILED, CONTROL) and len(crowd):
            head = f"{label}.{population}"
            found[f"{head}.image"] = crowd.rows.clone()
            found[f"{head}.read"] = torch.from_numpy(crowd.read).to(torch.int16)
            found[f"{head}.margin"] = torch.from_numpy(crowd.margins).clone()
    return found
