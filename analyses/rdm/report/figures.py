"""The curves and maps of :mod:`~aftershock.analyses.rdm`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ...common.text import Style, number, series, span
from ...findings import Figure, HeatMaps, Lines, Panel, Series
from ..attacked import ATTACKED, CLEAN, NOISE
from ..measured import Separation
from .tables import placed_rows, spread


def figures(measured: Separation) -> list[Figure]:
    """In the order in which they are shown."""
    return [_accuracy(measured), _maps(measured), _distances(measured), *_placed(measured)]


def _accuracy(measured: Separation) -> Lines:
    curves = [
        # The bands of the others would cover that of the Hamming similarity; the table has them.
        series(v.name, [measured.mean(v, t) for t in measured.taps], v.style, v.graph not in ("jaccard", "cosine"))
        for v in measured.variants
    ]
    nulls = [measured.split(measured.variants[0], tap).null for tap in measured.taps]
    curves.append(
        Series(
            "permuted labels",
            [float(n.mean()) for n in nulls],
            [float(np.quantile(n, 0.025)) for n in nulls],
            [float(np.quantile(n, 0.975)) for n in nulls],
            "dotted",
        )
    )
    return Lines(
        "Separation of classes by depth",
        "The share of images on their own class's side of the Fiedler partition, the better of two ways to name its "
        f"sides; mean over {len(measured.pairs)} pairs of classes, {span(measured.counts)} images a class. Bands: 95 % "
        "interval of the mean by the jackknife over classes; for permuted labels the middle 95 % of permutations.",
        list(measured.taps),
        "tap, in order of execution",
        "accuracy of the partition",
        curves,
        (0.45, 1.0),
    )


def _maps(measured: Separation) -> HeatMaps:
    taps = [t for t in measured.taps if t in measured.maps]
    starts = np.cumsum([0, *measured.map_classes[:-1]]).tolist()
    return HeatMaps(
        "Dissimilarity of single images",
        "The share of units that are on in one image and off in the other, as a percentile of all pairs of images at "
        f"the tap (0: the most alike), for {span(measured.map_classes)} images of each class, ordered by class: a low "
        "square on the diagonal is a class. The shares are in the arrays, their means by class in the table.",
        [
            Panel(f"{t} (tap {measured.depth[t]} of {len(measured.depth)})", _percentiles(measured.maps[t]))
            for t in taps
        ],
        0.0,
        100.0,
        [(start, name) for start, name in zip(starts, measured.classes, strict=True)],
    )


def _percentiles(apart: Tensor) -> Tensor:
    """Dissimilarities (n, n) as percentiles of those of different images, as RDMs are often drawn; diagonal 0."""
    from scipy.stats import rankdata

    rows, columns = np.triu_indices(len(apart), 1)
    found = torch.zeros(len(apart), len(apart))
    if len(rows):
        ranks = torch.from_numpy(rankdata(apart.numpy()[rows, columns])).float()
        found[rows, columns] = 100 * ranks / len(rows)
    return found + found.T


def _distances(measured: Separation) -> Lines:
    styles: tuple[tuple[str, str, Style], ...] = (
        ("hamming", "", "solid"), ("untrained", "untrained network, ", "dotted"),
    )  # fmt: skip
    curves = [
        series(f"{prefix}{name}", [spread(measured, key, tap, kind) for tap in measured.taps], style)
        for key, prefix, style in styles
        if (key, measured.taps[0]) in measured.dissimilarity
        for kind, name in (("within", "within a class"), ("between", "between classes"))
    ]
    return Lines(
        "Dissimilarity within and between classes",
        "The share of units that are on in one image and off in the other, for two images of one class and of two "
        "classes; bands: 95 % interval of the mean by the jackknife over classes.",
        list(measured.taps),
        "tap, in order of execution",
        "share of units that differ",
        curves,
    )


def _placed(measured: Separation) -> Iterator[Lines]:
    by_key = {(row[2], row[3], row[0]): row for row in placed_rows(measured)}
    if not by_key:
        return
    attacks = list(dict.fromkeys(str(attack) for attack, _, _ in by_key if attack != "all"))
    drawn: list[tuple[str, str, str, Style]] = [(attack, attack, ATTACKED, "solid") for attack in attacks]
    drawn += [(NOISE, "all", NOISE, "dashed"), (CLEAN, "all", CLEAN, "dotted")]
    curves = []
    for name, attack, population, style in drawn:
        rows = [by_key.get((attack, population, tap)) for tap in measured.taps]
        if any(row is not None for row in rows):
            mean, low, high = ([None if row is None else number(row[i]) for row in rows] for i in (5, 6, 7))
            curves.append(Series(name, mean, low, high, style))
    yield Lines(
        "Attacks on the partition of clean images",
        "The share of images on the predicted class's side of the Fiedler partition of clean images of the true and "
        "the predicted class: after the attack, for noise of the same size that changes no prediction, and before. In "
        "placing it, its own clean original has the weight of an average image. Bands: Wilson 95 % intervals.",
        list(measured.taps),
        "tap, in order of execution",
        "share on the predicted class's side",
        curves,
        (0.0, 1.0),
    )
