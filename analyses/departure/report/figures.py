"""The curves and maps of :mod:`~aftershock.analyses.departure`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....harness.statistics.intervals import Estimate
from ...common.populations import CONTROL, FAILED, SUCCESS, TARGET
from ...common.text import Style, known, series
from ...findings import Figure, HeatMaps, Lines, Panel, Pictures, Series
from ..events import FEWEST, UNREADABLE, IntArray, beyond, cumulative, means, share
from ..measured import Departed, Example, Followed

Margins = NDArray[np.float32]

NOISE = "noise of the same size"
_ROWS = 200
# Columns of an example's pictures.
_COLUMNS = ("clean", "perturbed", "difference", "noise of the same size")
_X = "tap, in order of execution"
_GOOD = (
    "An image has left for good at the first tap from which on no tap reads it as its true class; only taps count "
    "whose reader is better than chance and reads the image's clean code as its true class."
)


def figures(measured: Departed) -> list[Figure]:
    """In the order in which they are shown."""
    drawn = measured.drawn()
    found: list[Figure] = []
    if drawn:
        found += [_left(measured, drawn), _changed(measured, drawn), _lost(measured, drawn)]
    found.append(_readers(measured))
    for label in measured.perturbations:
        found += _depths(measured, label)
    if drawn:
        found.append(_maps(measured, drawn))
    for label in measured.perturbations:
        if label in drawn:
            found += [_by_tap(measured, label), _margins(measured, label)]
        found += _examples(measured, label)
    return found


def _left(measured: Departed, drawn: Sequence[str]) -> Lines:
    taps = len(measured.taps)
    curves = [series(p, cumulative(measured.of(p, SUCCESS).good, taps)) for p in drawn]
    pool = pooled_control(measured, drawn)
    if len(pool):
        curves.append(series(f"{NOISE}, all of these", cumulative(pool, taps), "dashed", band=False))
    return _lines(
        measured,
        "Left for good, by depth",
        f"The share of successes that have left their class for good at a tap or before it. {_GOOD} Dashed: {NOISE} on "
        "the same images, which left the prediction as it was; an image counts once for each perturbation, so that "
        "curve has no band. Bands: Wilson 95 % intervals.",
        "share that has left",
        curves,
        (0.0, 1.0),
    )


def pooled_control(measured: Departed, drawn: Sequence[str]) -> IntArray:
    """Departures for good of the controls of several perturbations together."""
    return np.concatenate([measured.of(p, CONTROL).good for p in drawn])


def _changed(measured: Departed, drawn: Sequence[str]) -> Lines:
    return _lines(
        measured,
        "Read as another class, beyond noise of the same size",
        "Of the successes whose clean code a tap reads as the true class, the share whose perturbed code it does not, "
        f"less the share for {NOISE} on the same images: 0 is what noise does. The order of taps does not matter. Taps "
        f"whose reader is no better than chance, or with fewer than {FEWEST} images, have no value. Bands: 95 % "
        "intervals of the difference of paired shares (Bonett and Price).",
        "difference of shares",
        [series(p, changed_beyond(measured, p)) for p in drawn if len(measured.of(p, CONTROL))],
        None,
    )


def changed_beyond(measured: Departed, label: str) -> list[Estimate]:
    """By tap, how much more often successes are read as another class than their controls; NaN for few images."""
    success, where, control = measured.pair(label)
    return _enough(beyond(success.changed[where], control.changed, control.judged))


def changed(followed: Followed) -> list[Estimate]:
    """By tap, the share of readable images that are not read as their class; NaN for fewer than :data:`FEWEST`."""
    return _enough(share(followed.changed, followed.judged))


def _enough(found: Sequence[tuple[int, Estimate]]) -> list[Estimate]:
    return [v if n >= FEWEST else Estimate(np.nan) for n, v in found]


def _lost(measured: Departed, drawn: Sequence[str]) -> Lines:
    return _lines(
        measured,
        "Moved towards the predicted class, beyond noise of the same size",
        f"How much less margin a success has than {NOISE} on the same image, mean over images. The margin of a code is "
        "its distance to the predicted class's centroid less that to its own class's, divided by the distance of the "
        "two (standardised pooled means): the whole way from the one centroid to the other is 2. Bands: 95 % intervals "
        "of the mean (Student).",
        "margin lost beyond noise",
        [series(p, lost(measured, p)) for p in drawn if len(measured.of(p, CONTROL))],
        None,
    )


def lost(measured: Departed, label: str) -> list[Estimate]:
    """By tap, the control's margin less the success's, mean over images that have both, with its 95 % interval."""
    success, where, control = measured.pair(label)
    return means(control.margins - success.margins[where])


def _by_tap(measured: Departed, label: str) -> Lines:
    drawn: list[tuple[str, str, Style]] = [
        (SUCCESS, "success", "solid"), (CONTROL, NOISE, "dashed"), (FAILED, "failed", "dotted"),
    ]  # fmt: skip
    curves = [
        series(words, changed(measured.of(label, population)), style)
        for population, words, style in drawn
        if measured.enough(label, population)
    ]
    return _lines(
        measured,
        f"Read as another class, tap by tap: {label}",
        "Of the images whose clean code a tap reads as the true class, the share whose changed code it does not. "
        f"Bands: Wilson 95 % intervals; taps with fewer than {FEWEST} such images have no value.",
        "share read as another class",
        curves,
        (0.0, 1.0),
    )


def _readers(measured: Departed) -> Lines:
    styles: dict[str, Style] = {"trained": "solid", "untrained": "dashed"}
    curves = [series(f"{name} network", values, styles[name]) for name, values in measured.accuracy.items()]
    curves.append(Series("most frequent class", [measured.chance] * len(measured.taps), style="dotted"))
    return _lines(
        measured,
        "Accuracy of the taps' readers",
        f"Accuracy of the {measured.reader} reader of each tap, fitted on {measured.fitted} clean fit images, on "
        f"{measured.checked} clean evaluate images that the model gets right. Bands: Wilson 95 % intervals. A tap "
        "whose interval reaches the most frequent class's share is left out of everything else.",
        "share read as the true class",
        curves,
        (0.0, 1.0),
    )


def _depths(measured: Departed, label: str) -> list[Lines]:
    taps = len(measured.taps)
    curves = []
    drawn: list[tuple[str, str, Style]] = [
        (SUCCESS, "success: left for good", "solid"),
        (CONTROL, f"{NOISE}: left for good", "dashed"),
        (FAILED, "failed: left for good", "dashed"),
    ]
    for population, words, style in drawn:
        if measured.enough(label, population):
            good = cumulative(measured.of(label, population).good, taps)
            curves.append(series(words, good, style))
    if not curves:
        return []
    if measured.enough(label, SUCCESS):
        success, target = measured.of(label, SUCCESS), measured.of(label, TARGET)
        curves.append(series("success: first change", cumulative(success.first, taps), "dotted", band=False))
        curves.append(series("success: arrived", cumulative(success.arrival, taps), band=False))
        if len(target) >= FEWEST:
            clean = cumulative(target.arrival, taps)
            curves.append(series("clean images of the predicted class: recognised", clean, "dotted", band=False))
    return [
        _lines(
            measured,
            f"Depth of departure: {label}",
            f"Cumulative shares of images. {_GOOD} First change: the first such tap that reads it as another class. "
            "Arrived: from there on every tap reads it as the class that the network predicts. Recognised: from there "
            "on every tap reads a clean image of that class as its class. The network's output is not used, so "
            "failed images and noise, whose prediction never changed, may count too: the reader's errors. Bands: "
            f"Wilson 95 % intervals; populations of fewer than {FEWEST} images are not drawn.",
            "share of images",
            curves,
            (0.0, 1.0),
        )
    ]


def _margins(measured: Departed, label: str) -> Lines:
    success, control, target = (measured.of(label, p) for p in (SUCCESS, CONTROL, TARGET))
    curves = [spread(f"{label}, success", success.margins)]
    if len(control) >= FEWEST:
        curves.append(spread(NOISE, control.margins, "dashed"))
    curves.append(spread("the same images, clean", success.clean_margins, "dotted", band=False))
    if len(target) >= FEWEST:
        curves.append(spread("clean images of the predicted class", target.margins, "dotted", band=False))
    return _lines(
        measured,
        f"Between the true and the predicted class: {label}",
        "Margin of a code: its distance to the predicted class's centroid less that to its own class's, divided by the "
        "distance of the two centroids (standardised pooled means): 1 at the own class's centroid, 0 half-way, -1 at "
        "the predicted class's. Means over images; bands: from the 5 % to the 95 % quantile over images (those of the "
        "clean images are in the table).",
        "margin of the own class",
        curves,
        None,
    )


def quantiles(margins: Margins) -> list[tuple[float, float, float, float]]:
    """By tap: mean and 5 %, 50 % and 95 % quantiles over images; NaN without one."""
    found = []
    for column in margins.T.astype(np.float64):
        known = column[np.isfinite(column)]
        parts = (known.mean(), *np.quantile(known, (0.05, 0.5, 0.95))) if len(known) else (np.nan,) * 4
        found.append(tuple(float(p) for p in parts))
    return found  # type: ignore[return-value]


def spread(name: str, margins: Margins, style: Style = "solid", band: bool = True) -> Series:
    """The mean margin by tap, with the middle 90 % of images."""
    mean, low, _, high = ([known(v) for v in column] for column in zip(*quantiles(margins), strict=True))
    return Series(name, mean, low if band else (), high if band else (), style)


def _maps(measured: Departed, drawn: Sequence[str]) -> HeatMaps:
    panels = []
    for label in drawn:
        success, control = measured.of(label, SUCCESS), measured.of(label, CONTROL)
        order = sorted_rows(success)
        panels.append(Panel(f"{label}: success", _classes(success, order)))
        if len(control):
            position = {row: i for i, row in enumerate(control.rows.tolist())}
            matched = [position.get(int(success.rows[i]), -1) for i in order]
            panels.append(Panel(f"{label}: noise", _classes(control, matched)))
    return HeatMaps(
        "What single images are read as",
        "One row an image, one column a tap, from the first on the left to the last on the right: 0 read as its own "
        "class, 0.5 as another one, 1 as the class that the network is made to predict. Rows are in the order of their "
        "departure for good, at most 200 evenly chosen; beside it the same images with noise of the same size. Gaps: "
        "the tap does not read the clean code as the true class, or no better than chance; an image without "
        "control.",
        panels,
        0.0,
        1.0,
    )


def sorted_rows(followed: Followed) -> list[int]:
    """Positions in order of departure, then of first change and arrival; images that no tap can judge come last."""
    last = len(followed.usable) + 1
    keys = [np.where(e == UNREADABLE, last, e) for e in (followed.arrival, followed.first, followed.good)]
    order = np.lexsort((followed.rows.numpy(), *keys))
    if len(order) > _ROWS:
        order = order[np.linspace(0, len(order) - 1, _ROWS).round().astype(int)]
    return [int(i) for i in order]


def _classes(followed: Followed, order: Sequence[int]) -> Tensor:
    read, own, reached = (torch.as_tensor(v) for v in (followed.read, followed.own[:, None], followed.reached[:, None]))
    found = torch.where(read == own, 0.0, torch.where(read == reached, 1.0, 0.5))
    found[~torch.from_numpy(followed.judged)] = torch.nan
    gap = torch.full((1, found.shape[1]), torch.nan)
    return torch.cat([found, gap])[torch.tensor(list(order))]


def _lines(
    measured: Departed, title: str, caption: str, y_title: str, curves: Sequence[Series],
    y_range: tuple[float, float] | None,
) -> Lines:  # fmt: skip
    return Lines(title, caption, list(measured.taps), _X, y_title, curves, y_range)


def _examples(measured: Departed, label: str) -> list[Figure]:
    """The way of a perturbation's examples, and what they look like."""
    own = [e for e in measured.examples if e.perturbation == label]
    if not own:
        return []
    curves = []
    for e in own:
        title, (followed, noise) = _title(measured, e), measured.example(e)
        curves.append(Series(title, _curve(followed.margins[e.index])))
        if e.control is not None:
            curves.append(Series(f"{title}, noise", _curve(noise.margins[e.control]), style="dashed"))
        curves.append(Series(f"{title}, clean", _curve(followed.clean_margins[e.index]), style="dotted"))
    lines = Lines(
        f"Single images: {label}",
        "Margin of a code between the centroids of its true class and of the class that it was moved to (of a failed "
        "image: the runner-up): 1 at its own class's centroid, 0 half-way, -1 at the other's. Solid: perturbed; "
        "dashed: noise of the same size; dotted: clean.",
        list(measured.taps),
        "tap, in order of execution",
        "margin of the own class",
        curves,
    )
    grid = torch.stack([e.images for e in own])
    if grid.shape[2] not in (1, 3):
        return [lines]
    labels = [f"{_title(measured, e)}; difference × {e.gain:.3g} around grey" for e in own]
    pictures = Pictures(
        f"Pictures of the single images: {label}",
        "Clean, perturbed, their difference (scaled so that its largest value is black or white; the factor stands "
        "at the row) and noise of the same size, which left the prediction as it was.",
        grid,
        labels,
        list(_COLUMNS),
    )
    return [lines, pictures]


def _curve(values: Margins) -> list[float | None]:
    return [known(v) for v in values]


def _title(measured: Departed, one: Example) -> str:
    own, reached = measured.between(one)
    moved = f"{own} → {reached}" if one.population == SUCCESS else f"{own}, failed"
    return f"{one.name}: image {measured.row(one)} ({moved})"
