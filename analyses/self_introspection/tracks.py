"""What is measured along the tracks of perturbations and in the neighbourhoods of the map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...harness.statistics.intervals import mean_interval
from ..base import Analysis, AnalysisInput, PerturbedSet
from .latent_map import Code, Tracks, chance_purity, pairs, purity, read_rows, trace_tracks


@dataclass(frozen=True, eq=False)
class Chosen:
    """The successes of a perturbation that are tracked, with the noise of the same size."""

    perturbed: PerturbedSet
    positions: list[int]
    controls: list[int]
    rows: list[int]


@dataclass(frozen=True, eq=False)
class Paths:
    """Tracks of one perturbation and of its noise, from the same clean images.

    Attributes:
        label: the perturbation's.
        rows: evaluate rows of the images.
        clean: their classes, int64 (m,).
        reached: the classes that the perturbation ends in, int64 (m,).
        attack: to the perturbed images.
        noise: to the noise of the same size.
    """

    label: str
    rows: list[int]
    clean: Tensor
    reached: Tensor
    attack: Tracks
    noise: Tracks


@dataclass(frozen=True)
class Purity:
    """Class purity of a space, its interval, what chance gives, and the silhouette of the classes."""

    space: str
    size: int
    share: tuple[float, float, float]
    chance: float
    silhouette: float


def pick(perturbed: Mapping[str, PerturbedSet], below: int, count: int) -> list[Chosen]:
    """For each perturbation its first ``count`` successes that have a control; those without one are left out."""
    found = []
    for each in perturbed.values():
        chosen = pairs(each.rows, each.success, each.control_rows, below, count)
        if chosen:
            positions, controls, rows = (list(column) for column in zip(*chosen, strict=True))
            found.append(Chosen(each, positions, controls, rows))
    return found


def follow(
    analysis: Analysis[Any], material: AnalysisInput, codes: Mapping[str, Code], chosen: list[Chosen], steps: int
) -> list[Paths]:
    """Trace the way to every chosen image and to its noise."""
    found = []
    for each in chosen:
        clean = read_rows(material.evaluate, each.rows)
        ends = read_rows(each.perturbed.images, each.positions), read_rows(each.perturbed.control, each.controls)
        attack, noise = (trace_tracks(analysis, material.instruments, codes, clean, end, steps) for end in ends)
        classes, reached = attack.logits[:, 0].argmax(1), attack.logits[:, -1].argmax(1)
        found.append(Paths(each.perturbed.label, each.rows, classes, reached, attack, noise))
    return found


def purities(spaces: Mapping[str, Tensor], labels: Tensor, neighbours: int, seed: int) -> list[Purity]:
    """How pure the classes of held-out images are in each space (n, d)."""
    from sklearn.metrics import silhouette_score

    several = 1 < len(labels.unique()) < len(labels)
    found = []
    for name, points in spaces.items():
        share = mean_interval(purity(points, labels, neighbours), seed)
        silhouette = float(silhouette_score(points.numpy(), labels.numpy())) if several else float("nan")
        found.append(Purity(name, points.shape[1], share, chance_purity(labels), silhouette))
    return found


def gather_success(each: PerturbedSet, below: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Activations and evaluate rows of a perturbation's successes, then of its controls."""
    from .latent_map import BATCH, activations

    parts = []
    wanted = each.success & (each.rows < below)
    for start, part in zip(range(0, len(each.rows), BATCH), each.images.traces.batches(BATCH), strict=True):
        mask = wanted[start : start + BATCH]
        if bool(mask.any()):
            parts.append(activations(part)[mask])
    raw = torch.cat(parts) if parts else activations(each.images.traces[:0])
    inside = each.control_rows < below
    return raw, each.rows[wanted], activations(each.control.traces)[inside], each.control_rows[inside]
