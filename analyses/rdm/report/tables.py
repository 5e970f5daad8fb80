"""Every number of :mod:`~aftershock.analyses.rdm`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ....harness.statistics.intervals import Estimate, proportion
from ...common.text import ends
from ...findings import Table, Value
from ..graph import Array, class_interval
from ..measured import Separation


def tables(measured: Separation) -> list[Table]:
    """In the order in which they are shown."""
    found = [_accuracy_table(measured), _pair_table(measured), _distance_table(measured)]
    placed = list(placed_rows(measured))
    if placed:
        found.append(
            Table(
                "rdm-attacked",
                "Where images that an attack moved from one class to another lie on the partition of clean images of "
                "the two, beside noise of the same size and the images before the attack; Wilson 95 % interval over "
                "images.",
                ("tap", "depth", "attack", "population", "images", "share_on_reached_side", "low", "high"),
                placed,
            )
        )
    return found


def spread(measured: Separation, key: str, tap: str, name: str) -> Estimate:
    means = measured.dissimilarity[key, tap]
    if name == "within":
        return class_interval(means.diagonal(), [(c,) for c in range(len(means))])
    return class_interval(np.array([means[pair] for pair in measured.pairs]), measured.pairs)


def placed_rows(measured: Separation) -> Iterator[tuple[Value, ...]]:
    """Rows by tap, attack and population, and over all attacks."""
    found: dict[tuple[str, str, str], list[Array]] = {}
    for one in measured.placed:
        found.setdefault((one.tap, one.attack, one.population), []).append(one.shares)
        found.setdefault((one.tap, "all", one.population), []).append(one.shares)
    for (tap, attack, population), parts in found.items():
        shares = np.concatenate(parts)
        # An image on neither side is half an image on either.
        reach, share = proportion(round(float(shares.sum())), len(shares)), float(shares.mean())
        low, high = min(share, reach.low), max(share, reach.high)
        yield tap, measured.depth[tap], attack, population, len(shares), share, low, high


def _accuracy_table(measured: Separation) -> Table:
    rows: list[tuple[Value, ...]] = []
    for variant in measured.variants:
        for tap in measured.taps:
            pairs, null = measured.split(variant, tap).accuracy, measured.split(variant, tap).null
            found = measured.mean(variant, tap)
            # The share of permutations at least as good, the observed labels among them.
            p_value = (1 + int((null >= found.value).sum())) / (1 + len(null))
            rows.append((
                tap, measured.depth[tap], variant.name, variant.network, variant.laplacian, len(pairs), *ends(found),
                float(pairs.min()), float(np.median(pairs)), float(null.mean()), float(np.quantile(null, 0.025)),
                float(np.quantile(null, 0.975)), p_value, float(measured.split(variant, tap).smaller.mean()),
                int((~measured.split(variant, tap).unique).sum()),
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


def _pair_table(measured: Separation) -> Table:
    rows = [
        (
            tap, measured.depth[tap], variant.name, measured.classes[a], measured.classes[b],
            2 * min(measured.counts[a], measured.counts[b]), float(measured.split(variant, tap).accuracy[i]),
            float(measured.split(variant, tap).smaller[i]),
        )
        for variant in measured.variants
        for tap in measured.taps
        for i, (a, b) in enumerate(measured.pairs)
    ]  # fmt: skip
    return Table(
        "rdm-pairs",
        "The accuracy of the Fiedler partition for each pair of classes.",
        ("tap", "depth", "similarity", "class_a", "class_b", "images", "accuracy", "smaller_part"),
        rows,
    )


def _distance_table(measured: Separation) -> Table:
    rows: list[tuple[Value, ...]] = []
    for (key, tap), means in measured.dissimilarity.items():
        network = "trained" if key == "hamming" else "untrained"
        head = (tap, measured.depth[tap], network)
        for name in ("within", "between"):
            rows.append((*head, f"all, {name}", f"all, {name}", *ends(spread(measured, key, tap, name))))
        for i, first in enumerate(measured.classes):
            rows += [(*head, first, measured.classes[j], float(means[i, j]), None, None) for j in range(i, len(means))]
    return Table(
        "rdm-dissimilarity",
        "The mean share of units that differ between two images of a class (both names the same) or of two classes; "
        "over all classes with its 95 % interval (jackknife over classes).",
        ("tap", "depth", "network", "class_a", "class_b", "dissimilarity", "low", "high"),
        rows,
    )
