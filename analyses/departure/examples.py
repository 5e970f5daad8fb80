"""Single images whose way through the taps is shown: picked by their depth of departure, or chosen by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..common.inputs import AnalysisInput
from ..common.populations import CONTROL, FAILED, SUCCESS, Population
from .events import UNREADABLE
from .measured import Example, Followed

Key = tuple[str, str]


def examples(
    given: AnalysisInput, populations: Mapping[Key, Population], found: Mapping[Key, Followed], count: int,
    indices: Sequence[int] | None,
) -> list[Example]:  # fmt: skip
    """The examples of every perturbation; chosen images that it was not applied to are left out."""
    shown = []
    for label in dict.fromkeys(label for label, _ in found):
        success = found[label, SUCCESS]
        if indices is None:
            picked = [(name, SUCCESS, i) for name, i in _picked(success, count)]
        else:
            picked = [
                ("chosen", population, rows.index(row))
                for row in indices
                for population in (SUCCESS, FAILED)
                if row in (rows := found[label, population].rows.tolist())
            ]
        position = {row: i for i, row in enumerate(found[label, CONTROL].rows.tolist())}
        for name, population, i in picked:
            row = int(found[label, population].rows[i])
            at = position.get(row) if population == SUCCESS else None
            noise = None if at is None else _image(populations[label, CONTROL], at)
            images = _images(given, row, _image(populations[label, population], i), noise)
            shown.append(Example(name, label, population, i, at, *images))
    return shown


def _picked(followed: Followed, count: int) -> list[tuple[str, int]]:
    """Images from the earliest to the latest departure, evenly spread over their ranks."""
    known = np.flatnonzero(followed.good != UNREADABLE)
    order = known[np.lexsort((followed.rows.numpy()[known], followed.good[known]))]
    if not len(order) or not count:
        return []
    shares = np.linspace(0, 1, count) if count > 1 else np.array([0.5])
    ranks = dict.fromkeys(round(float(s) * (len(order) - 1)) for s in shares)
    names = {round((len(order) - 1) / 2): "median", 0: "earliest", len(order) - 1: "latest"}
    if len(order) == 1:
        names = {0: "only"}
    return [(names.get(r, f"{r / (len(order) - 1):.0%}"), int(order[r])) for r in ranks]


def _image(population: Population, index: int) -> Tensor:
    at = int(population.where[index])
    return population.images.read(slice(at, at + 1))[0]


def _images(given: AnalysisInput, row: int, moved: Tensor, noise: Tensor | None) -> tuple[Tensor, float]:
    clean = given.evaluate.read(slice(row, row + 1))[0]
    apart = moved - clean
    largest = float(apart.abs().max())
    gain = 0.5 / largest if largest > 0 else 1.0
    gap = torch.full_like(clean, torch.nan)
    return torch.stack([clean, moved, (0.5 + gain * apart).clamp(0, 1), gap if noise is None else noise]), gain
