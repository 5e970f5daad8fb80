"""On which units perturbed images land, layer by layer, against noise of the same size and the images as they were."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ...harness.statistics.intervals import proportion, student
from ..common.inputs import AnalysisInput, PerturbedSet
from ..common.populations import Population, controls, originals, perturbed
from ..common.recording import pooled_rows
from .layers import Layer
from .measured import CLEAN, NOISE, PERTURBED, Landing
from .measures import columns, divergence


def groups_of(given: AnalysisInput, one: PerturbedSet, limit: int) -> dict[str, Population]:
    """The first ``limit`` successes of a perturbation, the noise controls of them, and the same images clean."""
    won = perturbed(one, one.success.nonzero().squeeze(1)[:limit])
    return {PERTURBED: won, NOISE: controls(one, won), CLEAN: originals(given, won)}


def land(layer: Layer, groups: Mapping[str, Population]) -> Landing:
    """Match the groups' images at one tap.

    The units' majority classes, and the clean images that a class's distribution is taken from, are fit images: for no
    group are they the same images.
    """
    matched = {name: _match(group, layer) for name, group in groups.items()}
    before = {int(row): i for i, row in enumerate(groups[CLEAN].rows)}
    numbers, shares = {}, {}
    for name, group in groups.items():
        units, errors = matched[name]
        same = torch.tensor([before[int(row)] for row in group.rows], dtype=torch.int64)
        numbers[name] = _numbers(layer, group, units, errors, tuple(x[same] for x in matched[CLEAN]))
        counts = torch.bincount(units, minlength=layer.som.units).float()
        shares[name] = (counts / counts.sum().clamp(min=1)).reshape(layer.som.rows, layer.som.columns)
    return Landing(groups[PERTURBED].perturbation, layer.tap, layer.depth, numbers, shares)


def _match(group: Population, layer: Layer) -> tuple[Tensor, Tensor]:
    if not len(group):
        return torch.empty(0, dtype=torch.int64), torch.empty(0)
    return layer.match(pooled_rows(group.images.traces, layer.tap, group.where))


def _numbers(
    layer: Layer, group: Population, units: Tensor, errors: Tensor, clean: tuple[Tensor, ...]
) -> dict[str, float]:
    found: dict[str, float] = {"n": len(units)}
    majority = layer.majority[units]
    for name, hits in (
        ("true", majority == group.own),
        ("reached", majority == group.reached),
        ("changed", units != clean[0]),
    ):
        found |= columns(name, proportion(int(hits.sum()), len(hits)), f"{name}_share")
    # A noise that fools nobody has no images here, and no share either.
    found["other_share"] = 1 - found["true_share"] - found["reached_share"]
    found |= columns("map_steps", student(layer.som.grid_distance(units, clean[0]).double().numpy()))
    usual = float(clean[1].double().mean()) if len(units) else math.nan
    found["error_ratio"] = float(errors.double().mean()) / usual if len(units) and usual > 0 else math.nan
    found["distance_to_true"] = divergence(units, group.own, layer.counts)
    found["distance_to_reached"] = divergence(units, group.reached, layer.counts)
    return found
