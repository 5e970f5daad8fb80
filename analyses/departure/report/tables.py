"""Every number of :mod:`~aftershock.analyses.departure`, and arrays for further computations."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from ....harness.statistics.multiple_testing import holm
from ...common.populations import CONTROL, FAILED, SUCCESS, TARGET
from ...common.text import ends, known
from ...findings import Table, Value
from ..events import Comparison, IntArray, beyond, compare, cumulative, half, share
from ..measured import Departed, Followed
from .figures import lost, pooled_control, quantiles

FIRST, GOOD, ARRIVAL = "first change", "left for good", "arrived"


def events(followed: Followed) -> dict[str, IntArray]:
    """What can happen to a population, by name."""
    if followed.population == TARGET:
        return {ARRIVAL: followed.arrival}
    found = {FIRST: followed.first, GOOD: followed.good}
    if followed.population == SUCCESS:
        found[ARRIVAL] = followed.arrival
    return found


def tables(measured: Departed) -> list[Table]:
    """In the order in which they are shown."""
    found = [
        _depths(measured),
        _shares(measured),
        _verdicts(measured),
        _margins(measured),
        _beyond(measured),
        _readers(measured),
        _order(measured),
    ]
    if measured.examples:
        found.append(_examples(measured))
    found.append(_images(measured))
    return found


def comparisons(measured: Departed) -> list[Comparison]:
    """Each pair of perturbations, on the images that both move, by their departure for good."""
    found = []
    for first, second in combinations(measured.perturbations, 2):
        sides = [measured.of(p, SUCCESS) for p in (first, second)]
        by_row = [{r: int(g) for r, g in zip(c.rows.tolist(), c.good, strict=True) if g >= 0} for c in sides]
        both = sorted(by_row[0].keys() & by_row[1].keys())
        a, b = (np.array([side[r] for r in both], dtype=np.int64) for side in by_row)
        found.append(compare(first, second, a, b))
    corrected = holm([c.p_value for c in found])
    return [Comparison(**{**vars(c), "holm": p}) for c, p in zip(found, corrected, strict=True)]


def _all(measured: Departed) -> Iterator[tuple[str, str, Followed]]:
    for (label, population), followed in measured.populations.items():
        yield label, population, followed


def _depths(measured: Departed) -> Table:
    rows: list[tuple[Value, ...]] = []
    for label, population, followed in _all(measured):
        for event, found in events(followed).items():
            middle = half(found)
            never = int((found == len(measured.taps)).sum())
            tap = None
            if middle.median is not None:
                tap = measured.taps[middle.median] if middle.median < len(measured.taps) else "none"
            rows.append((
                label, population, event, len(followed), middle.images, len(followed) - middle.images, tap,
                *(measured.depth(v) for v in (middle.median, middle.low, middle.high)), never,
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


def _shares(measured: Departed) -> Table:
    rows: list[tuple[Value, ...]] = []
    for label, population, followed in _all(measured):
        for event, found in events(followed).items():
            n = int((found >= 0).sum())
            if n:
                rows += [
                    (tap, measured.depths[t], label, population, event, n, int((found == t).sum()), *ends(v))
                    for t, (tap, v) in enumerate(zip(measured.taps, cumulative(found, len(measured.taps)), strict=True))
                ]
    drawn = measured.drawn()
    pool = pooled_control(measured, drawn) if drawn else np.empty(0, dtype=np.int64)
    n = int((pool >= 0).sum())
    if n:
        rows += [
            (tap, measured.depths[t], "all of these", CONTROL, GOOD, n, int((pool == t).sum()), v.value, None, None)
            for t, (tap, v) in enumerate(zip(measured.taps, cumulative(pool, len(measured.taps)), strict=True))
        ]
    return Table(
        "departure-shares",
        "Images whose event lies at a tap, and the share for which it lies there or before; Wilson 95 % interval (none "
        "where an image counts once for each perturbation).",
        ("tap", "depth", "perturbation", "population", "event", "images", "here", "share", "low", "high"),
        rows,
    )


def _verdicts(measured: Departed) -> Table:
    rows: list[tuple[Value, ...]] = []
    for label, population, followed in _all(measured):
        if not len(followed) or population == TARGET:
            continue
        reached = (followed.read == followed.reached.numpy()[:, None]) & followed.judged
        for t, (n, interval) in enumerate(share(followed.changed, followed.judged)):
            to = float(reached[:, t].sum()) / n if n else None
            where = (measured.taps[t], measured.depths[t], label, population)
            rows.append((*where, len(followed), n, *ends(interval), to))
    return Table(
        "departure-verdicts",
        "Of the images whose clean code a tap reads as the true class (judged), the share whose perturbed code is read "
        "as another one, with its Wilson 95 % interval, and the share read as the class that the network predicts (of "
        "failed images: the runner-up).",
        ("tap", "depth", "perturbation", "population", "images", "judged", "changed", "low", "high", "reached"),
        rows,
    )


def _margins(measured: Departed) -> Table:
    rows: list[tuple[Value, ...]] = []
    for label, population, followed in _all(measured):
        sides = {population: followed.margins}
        if population == SUCCESS:
            sides["clean"] = followed.clean_margins
        for name, margins in sides.items():
            if not len(margins):
                continue
            for t, found in enumerate(quantiles(margins)):
                known = int(np.isfinite(margins[:, t]).sum())
                values = (None if np.isnan(v) else v for v in found)
                rows.append((measured.taps[t], measured.depths[t], label, name, known, *values))
    return Table(
        "departure-margins",
        "Margin between the centroids of the true and of the predicted class (of failed images: the runner-up), in "
        "[-1, 1], 1 at the own class's: mean and quantiles over images; clean: the originals of the successes.",
        ("tap", "depth", "perturbation", "population", "images", "mean", "q05", "q50", "q95"),
        rows,
    )


def _beyond(measured: Departed) -> Table:
    rows: list[tuple[Value, ...]] = []
    for label in measured.perturbations:
        success, where, control = measured.pair(label)
        if len(where):
            shares = beyond(success.changed[where], control.changed, control.judged)
            for t, ((n, found), margin) in enumerate(zip(shares, lost(measured, label), strict=True)):
                rows.append((measured.taps[t], measured.depths[t], label, len(where), n, *ends(found), *ends(margin)))
    return Table(
        "departure-beyond-noise",
        "Successes against noise of the same size on the same images: the difference of the shares read as another "
        "class, among images whose clean code the tap reads as the true class (judged), and how much less margin the "
        "success has, over all; 95 % intervals of the paired differences (Bonett and Price; Student's t).",
        (
            "tap", "depth", "perturbation", "images", "judged", "changed_beyond", "changed_low", "changed_high",
            "margin_lost", "lost_low", "lost_high",
        ),
        rows,
    )  # fmt: skip


def _readers(measured: Departed) -> Table:
    rows = [
        (
            tap, measured.depths[t], network, measured.reader, measured.fitted, measured.checked, *values[t].ends,
            measured.chance, int(measured.usable[t]),
        )
        for network, values in measured.accuracy.items()
        for t, tap in enumerate(measured.taps)
    ]  # fmt: skip
    return Table(
        "departure-readers",
        "Accuracy of each tap's reader on clean evaluate images that the model gets right, with its Wilson 95 % "
        "interval; chance: the share of the most frequent class; used: the trained network's reader is above it.",
        ("tap", "depth", "network", "reader", "fitted_on", "images", "accuracy", "low", "high", "chance", "used"),
        rows,
    )


def _order(measured: Departed) -> Table:
    return Table(
        "departure-order",
        "Depth of departure for good under two perturbations, on the images that both move: how many leave earlier or "
        "later under the first, the mean difference (first minus second) in studied taps, Wilcoxon's signed rank test "
        "and its p-value after Holm's correction.",
        ("first", "second", "images", "earlier", "later", "same", "mean_difference", "p_value", "p_holm"),
        [
            (c.first, c.second, c.images, c.earlier, c.later, c.images - c.earlier - c.later, c.difference, c.p_value,
             c.holm)
            for c in comparisons(measured)
        ],
    )  # fmt: skip


def _examples(measured: Departed) -> Table:
    """Every number of these figures."""
    rows: list[tuple[Value, ...]] = []
    for e in measured.examples:
        (own, reached), (followed, control) = measured.between(e), measured.example(e)
        noise = [None] * len(measured.taps) if e.control is None else [known(v) for v in control.margins[e.control]]
        clean, moved = ([known(v) for v in m[e.index]] for m in (followed.clean_margins, followed.margins))
        rows += [
            (
                tap, measured.depths[t], e.perturbation, e.name, measured.row(e), e.population, own, reached, clean[t],
                moved[t], noise[t], measured.classes[int(followed.clean[e.index, t])],
                measured.classes[int(followed.read[e.index, t])],
            )
            for t, tap in enumerate(measured.taps)
        ]  # fmt: skip
    return Table(
        "departure-examples",
        "Single images tap by tap: the margin of their code between the centroids of the true class and of the other "
        "one, clean, perturbed and with noise of the same size; and what their code is read as.",
        (
            "tap", "depth", "perturbation", "example", "image", "population", "true_class", "reached_class",
            "clean_margin", "margin", "noise_margin", "clean_read_as", "read_as",
        ),
        rows,
    )  # fmt: skip


def _images(measured: Departed) -> Table:
    rows: list[tuple[Value, ...]] = []
    for label, population, followed in _all(measured):
        if population == TARGET:
            continue
        found = events(followed)
        for i, row in enumerate(followed.rows.tolist()):
            own, reached = (measured.classes[int(c[i])] for c in (followed.own, followed.reached))
            depths = [measured.depth(int(found[e][i])) if e in found else None for e in (FIRST, GOOD, ARRIVAL)]
            rows.append((label, population, row, own, reached, *depths))
    return Table(
        "departure-images",
        "The depths of every image (its position among the evaluate images); empty: no tap can judge it; one above the "
        "last tap: at no tap. reached_class: the predicted class, of failed images the runner-up.",
        ("perturbation", "population", "image", "true_class", "reached_class", "first_change", "left", "arrived"),
        rows,
    )


def arrays(measured: Departed) -> dict[str, Tensor]:
    """What the codes of each population are read as, their margins, and which images they are."""
    found = {}
    for label, population, followed in _all(measured):
        if population in (SUCCESS, FAILED, CONTROL) and len(followed):
            head = f"{label}.{population}"
            found[f"{head}.image"] = followed.rows.clone()
            found[f"{head}.read"] = torch.from_numpy(followed.read).to(torch.int16)
            found[f"{head}.margin"] = torch.from_numpy(followed.margins).clone()
    return found
