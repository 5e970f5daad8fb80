"""Tables and figures of coded layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ...base import ImageSet
from ...findings import Figure, HeatMaps, Lines, Panel, Pictures, Series, Table
from ..attacked import LANDING_COLUMNS, Landing
from ..layers import LAYER_COLUMNS, TELESCOPE_COLUMNS, Layer, present
from ..measures import neighbour_distances

Style = Literal["solid", "dashed", "dotted"]
Rows = list[list[str | float | None]]
_DEPTH = "Tap, from input to output"


def curve(
    name: str, rows: Sequence[Sequence[str | float | None]], columns: Sequence[str], column: str, style: Style = "solid"
) -> Series:
    """A column of a table's rows as a curve, with its band where the table has ``column_low`` and ``column_high``."""

    def values(wanted: str) -> list[float | None]:
        place = list(columns).index(wanted)
        return [v if isinstance(v, int | float) else None for v in (row[place] for row in rows)]

    prefix = column.removesuffix("_share")
    bands = [(f"{p}_low", f"{p}_high") for p in (column, prefix) if f"{p}_low" in columns]
    low, high = ([values(end) for end in bands[0]]) if bands else ((), ())
    return Series(name, values(column), low, high, style)


def draws_by_tap(draws: Sequence[Sequence[str | float | None]]) -> dict[str, list[float]]:
    """The values of all draws of the untrained network, by tap in order of depth."""
    found: dict[str, list[float]] = {}
    for _, tap, _, value in draws:
        if isinstance(value, int | float):
            found.setdefault(str(tap), []).append(float(value))
    return found


def layer_figures(rows: Rows, telescope: Rows, draws: Rows, accuracy: float, common: float) -> list[Figure]:
    """Curves over depth of the table of layers and that of the telescope.

    Args:
        rows: of :data:`LAYER_COLUMNS`.
        telescope: of :data:`TELESCOPE_COLUMNS`.
        draws: number, tap, depth and information of each draw of the untrained network.
        accuracy: of the network on the held-out images.
        common: the share of the most frequent class among them.
    """

    def picked(network: str, coder: str) -> Rows:
        return [row for row in rows if row[2] == network and row[3] == coder]

    som, centroids, fresh = picked("trained", "som"), picked("trained", "kmeans"), picked("untrained", "som")
    taps = [str(row[0]) for row in som]

    def of(name: str, which: Rows, column: str, style: Style = "solid") -> list[Series]:
        return [curve(name, which, LAYER_COLUMNS, column, style)] if which else []

    def level(name: str, value: float) -> list[Series]:
        return [Series(name, [value] * len(taps), style="dotted")]

    by_tap = draws_by_tap(draws)
    spread = [by_tap.get(tap, []) for tap in taps]
    drawn = max(map(len, spread), default=0)
    untrained = [
        Series(
            "untrained network, with label", [sum(v) / len(v) if v else None for v in spread],
            [min(v, default=None) for v in spread], [max(v, default=None) for v in spread], "dashed",
        )
    ] if drawn else []  # fmt: skip
    found: list[Figure] = [
        Lines(
            "What a unit says about the class",
            "Adjusted mutual information of the best-matching unit with the label or the prediction of held-out "
            "images: 0 by chance; at most what units that each hold one class "
            "would have (highest possible). Bands: 95 % intervals (jackknife over images, given the maps); of the "
            f"untrained network the mean and the range over draws of its weights ({drawn}).",
            taps, _DEPTH, "Adjusted mutual information",
            [
                *of("map, with label", som, "ami_label"), *of("map, with prediction", som, "ami_prediction"),
                *of("k-means, with label", centroids, "ami_label", "dashed"),
                *untrained,
                *of("map, labels shuffled", som, "ami_shuffled", "dotted"),
                *of("map, highest possible", som, "ami_label_highest_possible", "dotted"),
            ],
        ),
        Lines(
            "The class by a vote of the unit",
            "Share of held-out images whose unit's majority class, learnt on fit images, is their label. Bands: "
            "Wilson's 95 % intervals.",
            taps, _DEPTH, "Accuracy",
            [
                *of("map", som, "accuracy"), *of("k-means", centroids, "accuracy", "dashed"),
                *of("untrained network", fresh, "accuracy", "dashed"), *level("the network itself", accuracy),
                *level("the most frequent class", common),
            ],
            (0.0, 1.0),
        ),
        Lines(
            "How well the codes stand for the activations",
            "Mean distance of pooled activations to their prototype, divided by that to the mean of all: 1 where "
            "codes explain nothing. A cloud without clusters (normal, same covariance) shows how small the error gets "
            "without any patterns to find.",
            taps, _DEPTH, "Relative quantisation error",
            [
                *of("map, held-out", som, "relative_error"),
                *of("map, fit images", som, "relative_error_fit", "dotted"),
                *of("k-means, held-out", centroids, "relative_error", "dashed"),
                *of("untrained network, held-out", fresh, "relative_error", "dashed"),
                *of("map of a normal cloud, held-out", som, "relative_error_gaussian", "dotted"),
            ],
        ),
        Lines(
            "How well the map keeps neighbours",
            "Topographic error: share of images whose two best units are not next to each other on the map (the eight "
            "around a unit count as neighbours).",
            taps, _DEPTH, "Topographic error",
            [
                *of("held-out", som, "topographic_error"), *of("fit images", som, "topographic_error_fit", "dotted"),
                *of("untrained network, held-out", fresh, "topographic_error", "dashed"),
            ],
            (0.0, 1.0),
        ),
        Lines(
            "How far apart on the map classes lie",
            "Mean distance on the map between the units of two held-out images of one class, and of two classes.",
            taps, _DEPTH, "Grid steps",
            [
                *of("one class", som, "same_class_steps"), *of("two classes", som, "other_class_steps"),
                *of("untrained network, one class", fresh, "same_class_steps", "dashed"),
                *of("untrained network, two classes", fresh, "other_class_steps", "dashed"),
            ],
        ),
        Lines(
            "How many codes are in use",
            "Two to the entropy of the fit images' units: the number of equally frequent codes with the same entropy.",
            taps, _DEPTH, "Effective number of codes",
            [
                *of("map", som, "effective_codes"), *of("k-means", centroids, "effective_codes", "dashed"),
                *of("untrained network", fresh, "effective_codes", "dashed"),
                *level("units", float(str(som[0][4]))),
            ],
        ),
    ]  # fmt: skip
    widths = [row for row in telescope if row[2] == "trained"], [row for row in telescope if row[2] == "untrained"]
    for title, caption, column in (
        (
            "The telescope: in how many directions activations vary",
            "Participation ratio of the pooled activations of fit images: the number of equally wide directions with "
            "the same spectrum. Layers differ in width: compare with the untrained network. Bands: 95 % intervals "
            "(jackknife over images).",
            "participation_ratio",
        ),
        (
            "How alike the codes are",
            "Mean cosine between two prototypes, as activations: near 1 for homogeneous codes.",
            "prototype_cosine",
        ),
    ):
        series = [curve("trained network", widths[0], TELESCOPE_COLUMNS, column)]
        if widths[1]:
            series.append(curve("untrained network", widths[1], TELESCOPE_COLUMNS, column, "dashed"))
        found.append(Lines(title, caption, taps, _DEPTH, column.replace("_", " ").capitalize(), series))
    pixels = [*of("map", som, "pixel_share"), *of("k-means", centroids, "pixel_share", "dashed")]
    found.append(
        Lines(
            "How alike the images of a unit look",
            "Share of the variance of the fit images' pixels that lies between units, corrected for their number: 0 "
            "where images of a unit are no more alike than any.",
            taps, _DEPTH, "Share of pixel variance",
            [*pixels, *of("untrained network", fresh, "pixel_share", "dashed")],
        )
    )  # fmt: skip
    return found


def landing_figures(landings: Sequence[Landing]) -> list[Figure]:
    """Curves over depth for one perturbation: on whose units its images land."""
    label, count = landings[0].label, landings[0].numbers["perturbed"]["n"]
    noise = landings[0].numbers["noise"]["n"]
    taps = [landing.layer.tap for landing in landings]
    table = [row for landing in landings for row in landing.rows()]
    rows = {name: [row for row in table if row[3] == name] for name in landings[0].numbers}
    about = (
        f"{count} images whose prediction {label} turned (solid); noise of the same size that left it as it was, on "
        f"{noise} of them (dashed); the same images clean (dotted)."
    )

    def series(columns: Sequence[tuple[str, str]], shown: Sequence[str]) -> list[Series]:
        styles: dict[str, Style] = {"perturbed": "solid", "noise": "dashed", "clean": "dotted"}
        names = {"perturbed": label, "noise": "noise", "clean": "clean"}
        return [
            curve(f"{names[name]}: {said}", rows[name], LANDING_COLUMNS, column, styles[name])
            for name in shown if rows[name] and landings[0].numbers[name]["n"]
            for column, said in columns
        ]  # fmt: skip

    shares = [("true_share", "true class"), ("reached_share", "reached class"), ("other_share", "another class")]
    return [
        Lines(
            f"On whose units images land after {label}",
            f"Share of images on units whose majority class is the true one, the one that {label} reached, or another. "
            f"{about} Bands: Wilson's 95 % intervals.",
            taps, _DEPTH, "Share of images",
            [
                *series(shares, ("perturbed",)), *series(shares[:2], ("noise",)), *series(shares[:2], ("clean",)),
            ],
            (0.0, 1.0),
        ),
        Lines(
            f"How far from each class's codes images lie after {label}",
            "Jensen-Shannon distance (base 2) of the units to those of clean fit images of the true or of the reached "
            f"class, averaged over classes. {about} Few images raise it: only the curves of as many compare.",
            taps, _DEPTH, "Jensen-Shannon distance",
            series([("distance_to_true", "true class"), ("distance_to_reached", "reached class")],
                   ("perturbed", "noise", "clean")),
            (0.0, 1.0),
        ),
        Lines(
            f"How many images change their unit after {label}",
            f"Share of images that lie on another unit than clean. {about} Bands: Wilson's 95 % intervals.",
            taps, _DEPTH, "Share of images", series([("changed_share", "another unit")], ("perturbed", "noise")),
            (0.0, 1.0),
        ),
        Lines(
            f"How far images move on the map after {label}",
            f"Mean distance between an image's unit and its unit clean. {about} Bands: 95 % intervals.",
            taps, _DEPTH, "Grid steps", series([("map_steps", "distance")], ("perturbed", "noise")),
        ),
    ]  # fmt: skip


def map_figures(layers: Sequence[Layer], classes: Sequence[str]) -> tuple[list[Figure], list[Table]]:
    """The maps of a few taps as heat maps, and the table of their units."""
    panels: dict[str, list[Panel]] = {"class": [], "purity": [], "share": [], "steps": []}
    rows: Rows = []
    for layer in layers:
        som, counts = layer.som, layer.counts.double()
        sizes = counts.sum(0)
        distances = neighbour_distances(som)
        # Relative to the map's mean, so that wide layers and narrow ones share a scale.
        steps = distances / distances.mean().clamp(min=1e-12)
        empty = torch.tensor(float("nan"), dtype=torch.float64)
        held = {
            "class": torch.where(sizes > 0, layer.majority.double(), empty),
            "purity": torch.where(sizes > 0, counts.max(0).values / sizes, empty),
            "share": sizes / sizes.sum(),
            "steps": steps.flatten().double(),
        }
        for name, values in held.items():
            panels[name].append(Panel(layer.tap, values.float().reshape(som.rows, som.columns)))
        for unit in range(som.units):
            rows.append(
                [
                    layer.tap, layer.depth, unit, unit // som.columns, unit % som.columns, int(sizes[unit]),
                    classes[int(layer.majority[unit])], *(present(float(held[n][unit])) for n in held),
                ]
            )  # fmt: skip
    names = ", ".join(f"{i} {name}" for i, name in enumerate(classes))
    figures: list[Figure] = [
        HeatMaps(
            "Majority class of each unit",
            f"The map of each tap, one cell per unit; the most frequent class of its fit images, by number: {names}. "
            "Neighbouring units of one class: the map has found the class. Empty cells have no fit images.",
            panels["class"], 0.0, float(max(1, len(classes) - 1)),
        ),
        HeatMaps(
            "Purity of each unit",
            "Share of a unit's fit images that belong to its majority class; the network may have been trained on "
            "them. Empty cells have no fit images.",
            panels["purity"], 0.0, 1.0,
        ),
        HeatMaps(
            "Occupancy of each unit", "Share of the fit images on each unit.", panels["share"], 0.0,
            max(float(p.values.max()) for p in panels["share"]),
        ),
        HeatMaps(
            "Distances between neighbouring units (U-matrix)",
            "Mean distance of a unit's prototype to those beside, above and below it, relative to the mean of the "
            "map: ridges separate clusters.",
            panels["steps"], 0.0, max(float(p.values.nan_to_num().max()) for p in panels["steps"]),
        ),
    ]  # fmt: skip
    columns = (
        "tap", "depth", "unit", "row", "column", "fit_images", "majority_class", "majority_class_number", "purity",
        "share", "relative_distance",
    )  # fmt: skip
    return figures, [Table("functional-codes-units", "A unit of a pictured map.", columns, rows)]


def landing_maps(landings: Sequence[Landing]) -> tuple[HeatMaps, Rows]:
    """Where on a few maps images of one perturbation lie clean, perturbed and under noise; and the table's rows."""
    panels, rows = [], []
    label = landings[0].label
    for landing in landings:
        shares = {name: landing.shares(name) for name in ("clean", "perturbed", "noise")}
        panels += [Panel(f"{landing.layer.tap}: {label if n == 'perturbed' else n}", v) for n, v in shares.items()]
        flat = {name: values.flatten().tolist() for name, values in shares.items()}
        for unit in range(landing.layer.som.units):
            rows.append([label, landing.layer.tap, unit, *(flat[name][unit] for name in flat)])
    figure = HeatMaps(
        f"Units that images land on after {label}",
        f"Share of the images whose prediction {label} turned on each unit: clean, perturbed, and under noise of the "
        "same size.",
        panels, 0.0, max(float(p.values.max()) for p in panels),
    )  # fmt: skip
    return figure, rows


def largest_units(layer: Layer, count: int, nearest: int) -> list[tuple[int, list[int]]]:
    """The units with the most fit images, each with the rows of the fit images nearest to its prototype."""
    sizes = layer.counts.sum(0)
    occupied = int((sizes > 0).sum())
    found = []
    # A stable order: of units as large, the first.
    for unit in torch.sort(sizes, descending=True, stable=True).indices[: min(count, occupied)].tolist():
        members = (layer.fit_units == unit).nonzero().squeeze(1)
        order = torch.sort(layer.fit_errors[members], stable=True).indices[:nearest]
        found.append((unit, members[order].tolist()))
    return found


def unit_pictures(layer: Layer, fit: ImageSet, count: int, nearest: int, classes: Sequence[str]) -> Pictures:
    """The mean image of the most occupied units, and the images nearest to their prototypes.

    Args:
        layer: a coded layer.
        fit: the images that it was fitted on, or more.
        count: how many units.
        nearest: how many images of each.
        classes: their names.
    """
    found = largest_units(layer, count, nearest)
    sizes = layer.counts.sum(0)
    means = _mean_images(layer, fit, torch.tensor([unit for unit, _ in found]))
    rows, labels = [], []
    for (unit, members), mean in zip(found, means, strict=True):
        pictures = [mean, *(fit.read(slice(i, i + 1))[0] for i in members)]
        pictures += [torch.full_like(mean, float("nan"))] * (nearest + 1 - len(pictures))
        rows.append(torch.stack(pictures))
        share = float(layer.counts[:, unit].max() / sizes[unit])
        labels.append(f"unit {unit}: {classes[int(layer.majority[unit])]} {share:.0%} of {int(sizes[unit])}")
    whose = "" if layer.network == "trained" else ", untrained network"
    return Pictures(
        f"Input features of units at {layer.tap}{whose}",
        "Rows: the units with the most fit images, with their majority class and its share. Columns: the mean of "
        "their images, and the images nearest to the unit's prototype.",
        torch.stack(rows), labels, ["mean", *(f"nearest {i + 1}" for i in range(nearest))],
    )  # fmt: skip


def _mean_images(layer: Layer, fit: ImageSet, units: Tensor) -> list[Tensor]:
    sums: list[Tensor | None] = [None] * len(units)
    for start in range(0, len(layer.fit_units), 256):
        stop = min(start + 256, len(layer.fit_units))
        images, here = fit.read(slice(start, stop)), layer.fit_units[start:stop]
        for i, unit in enumerate(units.tolist()):
            part = images[here == unit].double().sum(0)
            previous = sums[i]
            sums[i] = part if previous is None else previous + part
    sizes = layer.counts.sum(0)
    return [
        (total / float(sizes[unit])).float().clamp(0, 1)
        for unit, total in zip(units.tolist(), sums, strict=True) if total is not None
    ]  # fmt: skip
