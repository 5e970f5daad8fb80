"""Figures of coded layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from ...common.text import Style, known
from ...findings import Figure, HeatMaps, Lines, Panel, Pictures, Series
from ..measured import CLEAN, NOISE, PERTURBED, CodedLayer, Codes, Landing, Telescope, UnitFields, UnitImages
from ..pictures import KEPT
from .tables import unit_numbers

_DEPTH = "Tap, from input to output"


def figures(measured: Codes) -> list[Figure]:
    """In the order in which they are shown."""
    found = [*_layers(measured), *_telescope(measured), _pixels(measured)]
    for landings in measured.landings.values():
        found += [*_landings(landings), _landing_maps(measured, landings)]
    found += _maps(measured)
    for images in measured.features:
        found.append(_features(measured, images))
        found += [_fields(measured, f) for f in measured.fields if (f.tap, "trained") == (images.tap, images.network)]
    return found


def _curve(name: str, measured: Sequence[CodedLayer | Telescope], column: str, style: Style = "solid") -> list[Series]:
    """A column of the table as a curve by depth, with its band where there is one; none without layers."""
    return _numbers(name, [x.numbers for x in measured], column, style) if measured else []


def _numbers(name: str, rows: Sequence[Mapping[str, float]], column: str, style: Style) -> list[Series]:
    prefix = next((p for p in (column, column.removesuffix("_share")) if f"{p}_low" in rows[0]), "")
    low, high = (f"{prefix}_low", f"{prefix}_high") if prefix else (column, column)
    y, lows, highs = ([known(row.get(c)) for row in rows] for c in (column, low, high))
    return [Series(name, y, lows if prefix else (), highs if prefix else (), style)]


def _layers(measured: Codes) -> list[Figure]:
    """Curves over depth of the table of layers."""
    som, centroids, fresh = measured.of("trained"), measured.of("trained", "kmeans"), measured.of("untrained")
    taps = [layer.tap for layer in som]

    def level(name: str, value: float) -> list[Series]:
        return [Series(name, [value] * len(taps), style="dotted")]

    by_tap = measured.by_tap()
    spread = [by_tap.get(tap, []) for tap in taps]
    drawn = max(map(len, spread), default=0)
    middle, lowest, highest = ([f(v) if v else None for v in spread] for f in (fmean, min, max))
    untrained = [Series("untrained network, with label", middle, lowest, highest, "dashed")] if drawn else []
    return [
        Lines(
            "Information of a unit about the class",
            "Adjusted mutual information of the best-matching unit with the label or the prediction of held-out "
            "images: 0 by chance; at most what units that each hold one class "
            "would have (highest possible). Bands: 95 % intervals (jackknife over images, given the maps); of the "
            f"untrained network the mean and the range over draws of its weights ({drawn}).",
            taps, _DEPTH, "Adjusted mutual information",
            [
                *_curve("map, with label", som, "ami_label"), *_curve("map, with prediction", som, "ami_prediction"),
                *_curve("k-means, with label", centroids, "ami_label", "dashed"),
                *untrained,
                *_curve("map, labels shuffled", som, "ami_shuffled", "dotted"),
                *_curve("map, highest possible", som, "ami_label_highest_possible", "dotted"),
            ],
        ),
        Lines(
            "Class from the majority of the unit",
            "Share of held-out images whose unit's majority class, learnt on fit images, is their label. Bands: "
            "Wilson's 95 % intervals.",
            taps, _DEPTH, "Accuracy",
            [
                *_curve("map", som, "accuracy"), *_curve("k-means", centroids, "accuracy", "dashed"),
                *_curve("untrained network", fresh, "accuracy", "dashed"),
                *level("the network itself", measured.accuracy),
                *level("the most frequent class", measured.common),
            ],
            (0.0, 1.0),
        ),
        Lines(
            "How well the codes represent the activations",
            "Mean distance of pooled activations to their prototype, divided by that to the mean of all: 1 where "
            "codes explain nothing. A distribution without clusters (normal, same covariance) shows how small the "
            "error gets without any patterns.",
            taps, _DEPTH, "Relative quantisation error",
            [
                *_curve("map, held-out", som, "relative_error"),
                *_curve("map, fit images", som, "relative_error_fit", "dotted"),
                *_curve("k-means, held-out", centroids, "relative_error", "dashed"),
                *_curve("untrained network, held-out", fresh, "relative_error", "dashed"),
                *_curve("map of a normal cloud, held-out", som, "relative_error_gaussian", "dotted"),
            ],
        ),
        Lines(
            "How well the map keeps neighbours",
            "Topographic error: share of images whose two best units are not next to each other on the map (the eight "
            "around a unit count as neighbours).",
            taps, _DEPTH, "Topographic error",
            [
                *_curve("held-out", som, "topographic_error"),
                *_curve("fit images", som, "topographic_error_fit", "dotted"),
                *_curve("untrained network, held-out", fresh, "topographic_error", "dashed"),
            ],
            (0.0, 1.0),
        ),
        Lines(
            "How far apart on the map classes lie",
            "Mean distance on the map between the units of two held-out images of one class, and of two classes.",
            taps, _DEPTH, "Grid steps",
            [
                *_curve("one class", som, "same_class_steps"), *_curve("two classes", som, "other_class_steps"),
                *_curve("untrained network, one class", fresh, "same_class_steps", "dashed"),
                *_curve("untrained network, two classes", fresh, "other_class_steps", "dashed"),
            ],
        ),
        Lines(
            "How many codes are in use",
            "Two to the entropy of the fit images' units: the number of equally frequent codes with the same entropy.",
            taps, _DEPTH, "Effective number of codes",
            [
                *_curve("map", som, "effective_codes"), *_curve("k-means", centroids, "effective_codes", "dashed"),
                *_curve("untrained network", fresh, "effective_codes", "dashed"),
                *level("units", float(som[0].units)),
            ],
        ),
    ]  # fmt: skip


def _telescope(measured: Codes) -> Iterator[Lines]:
    trained, untrained = ([x for x in measured.telescope if x.network == n] for n in ("trained", "untrained"))
    for title, caption, column in (
        (
            "The telescope: in how many directions activations vary",
            "Participation ratio of the pooled activations of fit images: the number of equally wide directions with "
            "the same spectrum. Layers differ in width: compare with the untrained network. Bands: 95 % intervals "
            "(jackknife over images).",
            "participation_ratio",
        ),
        (
            "Similarity of the codes",
            "Mean cosine between two prototypes, as activations: near 1 for homogeneous codes.",
            "prototype_cosine",
        ),
    ):
        curves = [
            *_curve("trained network", trained, column),
            *_curve("untrained network", untrained, column, "dashed"),
        ]
        y_title = column.replace("_", " ").capitalize()
        yield Lines(title, caption, [x.tap for x in trained], _DEPTH, y_title, curves)


def _pixels(measured: Codes) -> Lines:
    return Lines(
        "Similarity of the images of a unit",
        "Share of the variance of the fit images' pixels that lies between units, corrected for their number: 0 "
        "where images of a unit are as different as any.",
        [layer.tap for layer in measured.of("trained")], _DEPTH, "Share of pixel variance",
        [
            *_curve("map", measured.of("trained"), "pixel_share"),
            *_curve("k-means", measured.of("trained", "kmeans"), "pixel_share", "dashed"),
            *_curve("untrained network", measured.of("untrained"), "pixel_share", "dashed"),
        ],
    )  # fmt: skip


def _landings(landings: Sequence[Landing]) -> list[Lines]:
    """Curves over depth for one perturbation: on whose units its images land."""
    label, first = landings[0].perturbation, landings[0].numbers
    taps = [landing.tap for landing in landings]
    about = (
        f"{first[PERTURBED]['n']} successes of {label} (solid); noise of the same size that left the prediction "
        f"as it was, on {first[NOISE]['n']} of them (dashed); the same images clean (dotted)."
    )
    styles: dict[str, tuple[str, Style]] = {
        PERTURBED: (label, "solid"), NOISE: ("noise", "dashed"), CLEAN: ("clean", "dotted")
    }  # fmt: skip

    def curves(columns: Sequence[tuple[str, str]], *shown: str) -> list[Series]:
        return [
            curve
            for name in shown if first[name]["n"]
            for column, what in columns
            for curve in _numbers(f"{styles[name][0]}: {what}", [x.numbers[name] for x in landings], column,
                                  styles[name][1])
        ]  # fmt: skip

    shares = [("true_share", "true class"), ("reached_share", "predicted class"), ("other_share", "another class")]
    return [
        Lines(
            f"Which classes' units images are assigned to after {label}",
            f"Share of images on units whose majority class is the true one, the one predicted after {label}, or "
            f"another. {about} Bands: Wilson's 95 % intervals.",
            taps, _DEPTH, "Share of images",
            [*curves(shares, PERTURBED), *curves(shares[:2], NOISE), *curves(shares[:2], CLEAN)],
            (0.0, 1.0),
        ),
        Lines(
            f"How far from each class's codes images lie after {label}",
            "Jensen-Shannon distance (base 2) of the units to those of clean fit images of the true or of the "
            f"predicted class, averaged over classes. {about} Few images raise it: compare only curves of equal "
            "numbers of images.",
            taps, _DEPTH, "Jensen-Shannon distance",
            curves([("distance_to_true", "true class"), ("distance_to_reached", "predicted class")],
                   PERTURBED, NOISE, CLEAN),
            (0.0, 1.0),
        ),
        Lines(
            f"How many images change their unit after {label}",
            f"Share of images that are assigned to another unit than their clean original. {about} Bands: Wilson's 95 "
            "% intervals.",
            taps, _DEPTH, "Share of images", curves([("changed_share", "another unit")], PERTURBED, NOISE),
            (0.0, 1.0),
        ),
        Lines(
            f"How far images move on the map after {label}",
            f"Mean distance between an image's unit and its unit clean. {about} Bands: 95 % intervals "
            "(Student's t).",
            taps, _DEPTH, "Grid steps", curves([("map_steps", "distance")], PERTURBED, NOISE),
        ),
    ]  # fmt: skip


def _maps(measured: Codes) -> list[Figure]:
    """The maps of a few taps as heat maps."""
    panels: dict[str, list[Panel]] = {"class": [], "purity": [], "share": [], "steps": []}
    for one in measured.maps:
        for name, values in unit_numbers(measured, one).items():
            panels[name].append(Panel(one.tap, values.float().reshape(one.steps.shape)))
    names = ", ".join(f"{i} {name}" for i, name in enumerate(measured.classes))
    return [
        HeatMaps(
            "Majority class of each unit",
            f"The map of each tap, one cell per unit; the most frequent class of its fit images, by number: {names}. "
            "Neighbouring units of one class: the map separates the class. Empty cells have no fit images.",
            panels["class"], 0.0, float(max(1, len(measured.classes) - 1)),
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


def _landing_maps(measured: Codes, landings: Sequence[Landing]) -> HeatMaps:
    """Where on a few maps images of one perturbation lie clean, perturbed and under noise."""
    label, shown = landings[0].perturbation, {one.tap for one in measured.maps}
    panels = [
        Panel(f"{landing.tap}: {label if name == PERTURBED else name}", landing.shares[name])
        for landing in landings if landing.tap in shown
        for name in (CLEAN, PERTURBED, NOISE)
    ]  # fmt: skip
    return HeatMaps(
        f"Units that images land on after {label}",
        f"Share of the successes of {label} on each unit: clean, perturbed, and under noise of the "
        "same size.",
        panels, 0.0, max(float(p.values.max()) for p in panels),
    )  # fmt: skip


def _features(measured: Codes, shown: UnitImages) -> Pictures:
    layer = measured.map_of(shown.tap, shown.network)
    labels = []
    for unit in shown.units:
        size = int(layer.sizes[unit])
        share = float(layer.counts[:, unit].max() / layer.sizes[unit])
        labels.append(f"unit {unit}: {measured.classes[int(layer.majority[unit])]} {share:.0%} of {size}")
    whose = "" if shown.network == "trained" else ", untrained network"
    return Pictures(
        f"Input features of units at {shown.tap}{whose}",
        "Rows: the units with the most fit images, with their majority class and its share. Columns: the mean of "
        "their images, and the images nearest to the unit's prototype.",
        shown.images, labels, ["mean", *(f"nearest {i + 1}" for i in range(shown.images.shape[1] - 1))],
    )  # fmt: skip


def _fields(measured: Codes, shown: UnitFields) -> Pictures:
    layer = measured.map_of(shown.tap)
    labels = [
        f"unit {unit}: {measured.classes[int(layer.majority[unit])]}, map {strongest} (+{height:.1f} σ)"
        for unit, strongest, height in zip(shown.units, shown.maps, shown.heights, strict=True)
    ]
    return Pictures(
        f"What units at {shown.tap} see",
        "The images nearest to each unit's prototype, cropped around the place where the unit's strongest map is most "
        f"active, to the middle {KEPT:.0%} of this place's gradient along each axis, and stretched to the images' "
        "size. The map is the one in which the prototype lies highest, in standard deviations of fit images.",
        shown.images, labels, [f"nearest {i + 1}" for i in range(shown.images.shape[1])],
    )  # fmt: skip
