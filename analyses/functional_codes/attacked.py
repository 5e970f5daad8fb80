"""On which units perturbed images land, layer by layer, against noise of the same size and the images as they were."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base import AnalysisInput, ImageSet, PerturbedSet
from .layers import Layer, present
from .measures import divergence, proportion

LANDING_COLUMNS = (
    "perturbation", "tap", "depth", "images", "n",
    "true_share", "true_low", "true_high", "reached_share", "reached_low", "reached_high", "other_share",
    "changed_share", "changed_low", "changed_high", "map_steps", "map_steps_low", "map_steps_high",
    "error_ratio", "distance_to_true", "distance_to_reached",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Group:
    """Images whose landing is told: successful perturbations, their noise control, or the same images clean.

    Attributes:
        name: ``perturbed``, ``noise`` or ``clean``.
        images: the set they are in.
        picked: their positions in it, int64 (n,).
        rows: their positions among the evaluate images, int64 (n,).
        true: int64 (n,).
        reached: the class that the perturbation made of the image, int64 (n,).
    """

    name: str
    images: ImageSet
    picked: Tensor
    rows: Tensor
    true: Tensor
    reached: Tensor

    def __len__(self) -> int:
        return len(self.picked)


@dataclass(frozen=True, eq=False)
class Landing:
    """Where the images of one perturbation land at one tap.

    Attributes:
        label: of the perturbation.
        layer: the map.
        units: by name of the group, int64 (n,).
        numbers: by name of the group, by column of the table.
    """

    label: str
    layer: Layer
    units: dict[str, Tensor]
    numbers: dict[str, dict[str, float]]

    def rows(self) -> list[list[str | float | None]]:
        """The rows of the table of :data:`LANDING_COLUMNS`."""
        found = []
        for name, numbers in self.numbers.items():
            own: dict[str, str | float] = {"perturbation": self.label, "tap": self.layer.tap, "images": name}
            own.update(numbers, depth=self.layer.depth)
            found.append([present(own.get(column)) for column in LANDING_COLUMNS])
        return found

    def shares(self, name: str) -> Tensor:
        """The share of a group's images on each unit, as the map lies, float32 (rows, columns)."""
        som = self.layer.som
        counts = torch.bincount(self.units[name], minlength=som.units).float()
        return (counts / counts.sum().clamp(min=1)).reshape(som.rows, som.columns)


def groups_of(material: AnalysisInput, perturbed: PerturbedSet, limit: int) -> list[Group]:
    """The first ``limit`` successes of a perturbation, the noise controls of them, and the same images clean."""
    won = perturbed.success.nonzero().squeeze(1)[:limit]
    rows = perturbed.rows[won]
    reached = perturbed.images.traces.predictions[won]
    true = perturbed.images.traces.labels[won]
    found = [Group("perturbed", perturbed.images, won, rows, true, reached)]
    place = {int(row): i for i, row in enumerate(rows)}
    paired = [(i, place[int(row)]) for i, row in enumerate(perturbed.control_rows) if int(row) in place]
    control, partner = torch.tensor(paired, dtype=torch.int64).reshape(-1, 2).T
    found.append(Group("noise", perturbed.control, control, rows[partner], true[partner], reached[partner]))
    found.append(Group("clean", material.evaluate, rows, rows, true, reached))
    return found


def land(label: str, layer: Layer, groups: Sequence[Group]) -> Landing:
    """Match the groups' images at one tap.

    The units' majority classes, and the clean images that a class's distribution is taken from, are fit images: for no
    group are they the same images.
    """
    matched = {group.name: _match(group, layer) for group in groups}
    clean = next(group for group in groups if group.name == "clean")
    before = {int(row): i for i, row in enumerate(clean.rows)}
    units, numbers = {}, {}
    for group in groups:
        here, errors = matched[group.name]
        same = torch.tensor([before[int(row)] for row in group.rows], dtype=torch.int64)
        units[group.name] = here
        numbers[group.name] = _numbers(layer, group, here, errors, tuple(x[same] for x in matched["clean"]))
    return Landing(label, layer, units, numbers)


def _match(group: Group, layer: Layer) -> tuple[Tensor, Tensor]:
    units, errors = torch.empty(len(group), dtype=torch.int64), torch.empty(len(group))
    start = 0
    for batch in group.images.traces.batches(256):
        here = (group.picked >= start) & (group.picked < start + len(batch))
        if bool(here.any()):
            units[here], errors[here] = layer.match(batch.pooled(layer.tap)[group.picked[here] - start])
        start += len(batch)
    return units, errors


def _numbers(layer: Layer, group: Group, units: Tensor, errors: Tensor, clean: tuple[Tensor, ...]) -> dict[str, float]:
    found: dict[str, float] = {"n": len(units)}
    majority = layer.majority[units]
    for name, hits in (
        ("true", majority == group.true),
        ("reached", majority == group.reached),
        ("changed", units != clean[0]),
    ):
        found.update(zip((f"{name}_share", f"{name}_low", f"{name}_high"), proportion(hits), strict=True))
    # A noise that fools nobody has no images here, and no share either.
    found["other_share"] = 1 - found["true_share"] - found["reached_share"]
    steps = _mean(layer.som.grid_distance(units, clean[0]))
    found.update(zip(("map_steps", "map_steps_low", "map_steps_high"), steps, strict=True))
    usual = float(clean[1].double().mean()) if len(units) else math.nan
    found["error_ratio"] = float(errors.double().mean()) / usual if len(units) and usual > 0 else math.nan
    found["distance_to_true"] = divergence(units, group.true, layer.counts)
    found["distance_to_reached"] = divergence(units, group.reached, layer.counts)
    return found


def _mean(values: Tensor) -> tuple[float, float, float]:
    """Mean and its 95 % interval (normal)."""
    if len(values) < 2:
        return (float(values.mean()) if len(values) else math.nan, math.nan, math.nan)
    middle, half = float(values.double().mean()), 1.96 * float(values.double().std()) / math.sqrt(len(values))
    return middle, middle - half, middle + half
