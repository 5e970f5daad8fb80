"""Every number of :mod:`~aftershock.analyses.functional_codes`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...common.text import known
from ...findings import Table, Value
from ..measured import CLEAN, NOISE, PERTURBED, Codes, PicturedMap

_LAYER = (
    "tap", "depth", "network", "coder", "units",
    "quantisation_error_fit", "quantisation_error",
    "relative_error_fit", "relative_error", "relative_error_gaussian",
    "topographic_error_fit", "topographic_error",
    "occupied_fit", "occupied", "entropy_bits", "effective_codes",
    "accuracy", "accuracy_low", "accuracy_high",
    "ami_label", "ami_label_low", "ami_label_high", "ami_label_highest_possible",
    "ami_prediction", "ami_prediction_low", "ami_prediction_high",
    "ami_shuffled", "ami_shuffled_highest", "ami_above_kmeans", "ami_above_kmeans_low", "ami_above_kmeans_high",
    "same_class_steps", "other_class_steps", "pixel_share",
)  # fmt: skip
_TELESCOPE = (
    "tap", "depth", "network", "width", "participation_ratio", "participation_ratio_low", "participation_ratio_high",
    "components_for_90_percent", "prototype_cosine",
)  # fmt: skip

_LANDING = (
    "perturbation", "tap", "depth", "images", "n",
    "true_share", "true_low", "true_high", "reached_share", "reached_low", "reached_high", "other_share",
    "changed_share", "changed_low", "changed_high", "map_steps", "map_steps_low", "map_steps_high",
    "error_ratio", "distance_to_true", "distance_to_reached",
)  # fmt: skip


def tables(measured: Codes) -> list[Table]:
    """In the order in which they are shown."""
    layers = [
        _row(_LAYER, {"tap": x.tap, "depth": x.depth, "network": x.network, "coder": x.coder, "units": x.units},
             x.numbers)
        for x in measured.layers
    ]  # fmt: skip
    telescope = [
        _row(_TELESCOPE, {"tap": x.tap, "depth": x.depth, "network": x.network}, x.numbers) for x in measured.telescope
    ]
    found = [
        Table(
            "functional-codes",
            "A coded layer of the trained or untrained network; 95 % intervals: of "
            "accuracy Wilson's, of information by the jackknife.",
            _LAYER,
            layers,
        ),
        Table(
            "functional-codes-telescope",
            "A layer's cloud of activations; 95 % intervals (jackknife).",
            _TELESCOPE,
            telescope,
        ),
        _units(measured),
    ]
    if measured.draws:
        caption = "A layer of one draw of the untrained network's weights: what its units say about the label."
        columns = ("draw", "tap", "depth", "ami_label")
        found.append(Table("functional-codes-untrained", caption, columns, [list(row) for row in measured.draws]))
    return [*found, *_landings(measured)]


def _row(columns: Sequence[str], place: Mapping[str, Value], numbers: Mapping[str, float]) -> list[Value]:
    return [place[c] if c in place else _value(numbers.get(c)) for c in columns]


def _value(value: float | None) -> Value:
    return value if isinstance(value, int) else known(value)


def unit_numbers(measured: Codes, one: PicturedMap) -> dict[str, Tensor]:
    """What is known of each unit of a map, float64 (units,): NaN where it has no fit images."""
    layer = measured.map_of(one.tap)
    counts, sizes = layer.counts.double(), layer.counts.double().sum(0)
    empty = torch.tensor(float("nan"), dtype=torch.float64)
    # Relative to the map's mean, so that wide layers and narrow ones share a scale.
    steps = one.steps / one.steps.mean().clamp(min=1e-12)
    return {
        "class": torch.where(sizes > 0, layer.majority.double(), empty),
        "purity": torch.where(sizes > 0, counts.max(0).values / sizes, empty),
        "share": sizes / sizes.sum(),
        "steps": steps.flatten().double(),
    }


def _units(measured: Codes) -> Table:
    rows: list[list[Value]] = []
    for one in measured.maps:
        layer, width = measured.map_of(one.tap), one.steps.shape[1]
        numbers = unit_numbers(measured, one)
        for unit in range(layer.units):
            rows.append([
                layer.tap, layer.depth, unit, unit // width, unit % width, int(layer.sizes[unit]),
                measured.classes[int(layer.majority[unit])], *(known(float(v[unit])) for v in numbers.values()),
            ])  # fmt: skip
    columns = (
        "tap", "depth", "unit", "row", "column", "fit_images", "majority_class", "majority_class_number", "purity",
        "share", "relative_distance",
    )  # fmt: skip
    return Table("functional-codes-units", "A unit of a pictured map.", columns, rows)


def _landings(measured: Codes) -> list[Table]:
    if not measured.landings:
        return []
    landed = [landing for found in measured.landings.values() for landing in found]
    rows = [
        _row(_LANDING, {"perturbation": x.perturbation, "tap": x.tap, "depth": x.depth, "images": name}, numbers)
        for x in landed
        for name, numbers in x.numbers.items()
    ]
    shown = {one.tap for one in measured.maps}
    units: list[list[Value]] = []
    for x in landed:
        if x.tap in shown:
            columns = (x.shares[name].flatten().tolist() for name in (CLEAN, PERTURBED, NOISE))
            units += [[x.perturbation, x.tap, i, *v] for i, v in enumerate(zip(*columns, strict=True))]
    names = ("perturbation", "tap", "unit", "clean_share", "perturbed_share", "noise_share")
    return [
        Table(
            "functional-codes-landing",
            "Images of a perturbation at a tap; 95 % intervals: of shares Wilson's, of the steps' mean Student's t.",
            _LANDING,
            rows,
        ),
        Table("functional-codes-landing-units", "A unit and the images that land on it.", names, units),
    ]
