"""What :mod:`~aftershock.analyses.rdm` found, in figures and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ... import Findings, HeatMaps, Lines, Panel, Series, Table
from ...findings import Figure
from ..attacked import ATTACKED, CLEAN, NOISE
from ..graph import Array, class_interval
from ..study import Study, Value, Variant, count_of, number
from .text import sentences


def findings(study: Study, variants: Sequence[Variant]) -> Findings:
    """Everything that a reader sees."""
    placed = list(_placed(study))
    figures: list[Figure] = [_accuracy(study, variants), _maps(study), _distances(study)]
    tables = [_accuracy_table(study, variants), _pair_table(study, variants), _distance_table(study)]
    if placed:
        figures.append(_placed_figure(study, placed))
        tables.append(
            Table(
                "rdm-attacked",
                "Where images that an attack moved from one class to another lie on the partition of clean images of "
                "the two, beside noise of the same size and the images before the attack; Wilson 95 % interval over "
                "images.",
                ("tap", "depth", "attack", "population", "images", "share_on_reached_side", "low", "high"),
                placed,
            )
        )
    return Findings(
        list(sentences(study, variants, placed)),
        figures,
        tables,
        {"dissimilarity": torch.stack([study.maps[t] for t in study.taps if t in study.maps])},
    )


def _accuracy(study: Study, variants: Sequence[Variant]) -> Lines:
    series = []
    for variant in variants:
        rows = [study.mean(variant, tap) for tap in study.taps]
        mean, low, high = ([row[i] for row in rows] for i in range(3))
        if variant.graph in ("jaccard", "cosine"):
            # Their bands would cover that of the Hamming similarity; the table has them.
            low, high = [], []
        series.append(Series(variant.name, mean, low, high, variant.style))
    nulls = [study.null[variants[0].name, tap] for tap in study.taps]
    series.append(
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
        f"sides; mean over {len(study.pairs)} pairs of classes, {count_of(study.counts)} images a class. Bands: 95 % "
        "interval of the mean by the jackknife over classes; for permuted labels the middle 95 % of permutations.",
        list(study.taps),
        "tap, in order of execution",
        "accuracy of the partition",
        series,
        (0.45, 1.0),
    )


def _maps(study: Study) -> HeatMaps:
    taps = [t for t in study.taps if t in study.maps]
    starts = np.cumsum([0, *study.map_classes[:-1]]).tolist()
    return HeatMaps(
        "Dissimilarity of single images",
        "The share of units that are on in one image and off in the other, as a percentile of all pairs of images at "
        f"the tap (0: the most alike), for {count_of(study.map_classes)} images of each class, ordered by class: a low "
        "square on the diagonal is a class. The shares are in the arrays, their means by class in the table.",
        [Panel(f"{t} (tap {study.depth[t]} of {len(study.depth)})", _percentiles(study.maps[t])) for t in taps],
        0.0,
        100.0,
        [(start, name) for start, name in zip(starts, study.classes, strict=True)],
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


def _distances(study: Study) -> Lines:
    series = []
    for network, style in (("trained", "solid"), ("untrained", "dotted")):
        key = "hamming" if network == "trained" else network
        if (key, study.taps[0]) not in study.dissimilarity:
            continue
        for name in ("within", "between"):
            rows = [_spread(study, key, tap, name) for tap in study.taps]
            mean, low, high = ([row[i] for row in rows] for i in range(3))
            line: Literal["solid", "dashed", "dotted"] = "solid" if style == "solid" else "dotted"
            word = "" if network == "trained" else "untrained network, "
            series.append(Series(f"{word}{name} {'a class' if name == 'within' else 'classes'}", mean, low, high, line))
    return Lines(
        "Dissimilarity within and between classes",
        "The share of units that are on in one image and off in the other, for two images of one class and of two "
        "classes; bands: 95 % interval of the mean by the jackknife over classes.",
        list(study.taps),
        "tap, in order of execution",
        "share of units that differ",
        series,
    )


def _spread(study: Study, key: str, tap: str, name: str) -> tuple[float, float | None, float | None]:
    means = study.dissimilarity[key, tap]
    if name == "within":
        return class_interval(means.diagonal(), [(c,) for c in range(len(means))])
    return class_interval(np.array([means[pair] for pair in study.pairs]), study.pairs)


def _placed(study: Study) -> Iterator[tuple[Value, ...]]:
    """Rows by tap, attack and population, and over all attacks."""
    from scipy.stats import binomtest

    found: dict[tuple[str, str, str], list[Array]] = {}
    for attack, population, tap, shares in study.placed:
        found.setdefault((tap, attack, population), []).append(shares)
        found.setdefault((tap, "all", population), []).append(shares)
    for (tap, attack, population), parts in found.items():
        shares = np.concatenate(parts)
        # An image on neither side is half an image on either.
        reach = binomtest(round(float(shares.sum())), len(shares)).proportion_ci(method="wilson")
        share = float(shares.mean())
        yield (
            tap, study.depth[tap], attack, population, len(shares), share, min(share, float(reach.low)),
            max(share, float(reach.high)),
        )  # fmt: skip


def _placed_figure(study: Study, placed: Sequence[Sequence[Value]]) -> Lines:
    by_key = {(row[2], row[3], row[0]): row for row in placed}
    attacks = list(dict.fromkeys(str(row[2]) for row in placed if row[2] != "all"))
    curves: list[tuple[str, str, str, Literal["solid", "dashed", "dotted"]]] = [
        (attack, attack, ATTACKED, "solid") for attack in attacks
    ]
    curves += [(NOISE, "all", NOISE, "dashed"), (CLEAN, "all", CLEAN, "dotted")]
    series = []
    for name, attack, population, style in curves:
        rows = [by_key.get((attack, population, tap)) for tap in study.taps]
        if any(row is not None for row in rows):
            mean, low, high = ([None if row is None else number(row[i]) for row in rows] for i in (5, 6, 7))
            series.append(Series(name, mean, low, high, style))
    return Lines(
        "Attacks on the partition of clean images",
        "The share of images on the reached class's side of the Fiedler partition of clean images of the true and the "
        "reached class: after the attack, for noise of the same size that changes no prediction, and before. In "
        "placing it, its own clean original weighs as much as an average image. Bands: Wilson 95 % intervals.",
        list(study.taps),
        "tap, in order of execution",
        "share on the reached class's side",
        series,
        (0.0, 1.0),
    )


def _accuracy_table(study: Study, variants: Sequence[Variant]) -> Table:
    rows: list[tuple[Value, ...]] = []
    for variant in variants:
        for tap in study.taps:
            pairs, null = study.accuracy[variant.name, tap], study.null[variant.name, tap]
            mean, low, high = study.mean(variant, tap)
            # The share of permutations at least as good, the observed labels among them.
            p_value = (1 + int((null >= mean).sum())) / (1 + len(null))
            rows.append((
                tap, study.depth[tap], variant.name, variant.network, variant.laplacian, len(pairs), mean, low, high,
                float(pairs.min()), float(np.median(pairs)), float(null.mean()), float(np.quantile(null, 0.025)),
                float(np.quantile(null, 0.975)), p_value, float(study.smaller[variant.name, tap].mean()),
                int((~study.unique[variant.name, tap]).sum()),
            ))  # fmt: skip
    return Table(
        "rdm-accuracy",
        "How well the Fiedler partition separates two classes at a tap: mean over pairs with its 95 % interval "
        "(jackknife over classes), the worst pair, the median; permuted labels; the mean share of images in the "
        "smaller part, and graphs without a Fiedler vector of their own.",
        (
            "tap", "depth", "similarity", "network", "laplacian", "pairs", "accuracy", "low", "high", "worst_pair",
            "median_pair", "null", "null_low", "null_high", "p_value", "smaller_part", "undecided_graphs",
        ),
        rows,
    )  # fmt: skip


def _pair_table(study: Study, variants: Sequence[Variant]) -> Table:
    rows = [
        (
            tap, study.depth[tap], variant.name, study.classes[a], study.classes[b],
            2 * min(study.counts[a], study.counts[b]), float(study.accuracy[variant.name, tap][i]),
            float(study.smaller[variant.name, tap][i]),
        )
        for variant in variants
        for tap in study.taps
        for i, (a, b) in enumerate(study.pairs)
    ]  # fmt: skip
    return Table(
        "rdm-pairs",
        "The accuracy of the Fiedler partition for each pair of classes.",
        ("tap", "depth", "similarity", "class_a", "class_b", "images", "accuracy", "smaller_part"),
        rows,
    )


def _distance_table(study: Study) -> Table:
    rows: list[tuple[Value, ...]] = []
    for (key, tap), means in study.dissimilarity.items():
        network = "trained" if key == "hamming" else "untrained"
        head = (tap, study.depth[tap], network)
        for name in ("within", "between"):
            rows.append((*head, f"all, {name}", f"all, {name}", *_spread(study, key, tap, name)))
        for i, first in enumerate(study.classes):
            rows += [(*head, first, study.classes[j], float(means[i, j]), None, None) for j in range(i, len(means))]
    return Table(
        "rdm-dissimilarity",
        "The mean share of units that differ between two images of a class (both names the same) or of two classes; "
        "over all classes with its 95 % interval (jackknife over classes).",
        ("tap", "depth", "network", "class_a", "class_b", "dissimilarity", "low", "high"),
        rows,
    )
