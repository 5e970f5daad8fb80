"""Where successful attacks fall on the partition of clean images: on the reached class's side, or on the true one's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import AnalysisInput, ImageSet, PerturbedSet
from .graph import Array, Partition, extend, orientation, truth_of

ATTACKED, NOISE, CLEAN = "attacked", "noise of the same size", "before the attack"


@dataclass(frozen=True, eq=False)
class Placement:
    """Images of one population that are placed between two classes each.

    Attributes:
        attack: its label.
        population: attacked, noise of the same size, or the same images before the attack.
        images: where their codes are.
        rows: int64 (n,), positions in ``images``.
        sources: int64 (n,), positions of their clean originals among the evaluate images.
        pairs: for each, the true and the reached class in ascending order, as positions among the chosen classes.
        reached: int8 (n,), 1 where the reached class is the second of the pair, else -1.
    """

    attack: str
    population: str
    images: ImageSet
    rows: Tensor
    sources: Tensor
    pairs: Sequence[tuple[int, int]]
    reached: NDArray[np.int8]


def populations(
    material: AnalysisInput, classes: Sequence[int], attacks: int, images: int, draws: torch.Generator
) -> list[Placement]:
    """The successes of some attacks between chosen classes, with their controls.

    Of an attack with several budgets (``pgd[eps=...]``) the one with the most successes is taken, the first of equals.
    """
    best: dict[str, PerturbedSet] = {}
    for one in material.perturbed.values():
        name = one.label.partition("[")[0]
        if one.kind == "attack" and int(one.success.sum()) > (int(best[name].success.sum()) if name in best else 0):
            best[name] = one
    found: list[Placement] = []
    for one in list(best.values())[:attacks]:
        found += _of(one, material.evaluate, classes, images, draws)
    return found


def _of(
    one: PerturbedSet, evaluate: ImageSet, classes: Sequence[int], images: int, draws: torch.Generator
) -> list[Placement]:
    position = {c: i for i, c in enumerate(classes)}
    true, reached = one.images.traces.labels.tolist(), one.images.traces.predictions.tolist()
    fits = [
        i for i in one.success.nonzero().squeeze(1).tolist()
        if true[i] in position and reached[i] in position and true[i] != reached[i]
    ]  # fmt: skip
    drawn = torch.randperm(len(fits), generator=draws)[:images].sort().values.tolist()
    fits = [fits[i] for i in drawn]
    if not fits:
        return []
    between = {i: (position[true[i]], position[reached[i]]) for i in fits}
    noise = {int(row): j for j, row in enumerate(one.control_rows.tolist())}
    rows = one.rows.tolist()
    paired = [i for i in fits if rows[i] in noise]
    sets = [
        (ATTACKED, one.images, fits, fits),
        (NOISE, one.control, paired, [noise[rows[i]] for i in paired]),
        (CLEAN, evaluate, fits, [rows[i] for i in fits]),
    ]
    return [
        Placement(
            one.label,
            population,
            source,
            torch.tensor(where),
            torch.tensor([rows[i] for i in which]),
            [(min(between[i]), max(between[i])) for i in which],
            np.array([1 if between[i][1] > between[i][0] else -1 for i in which], np.int8),
        )
        for population, source, which, where in sets
        if which
    ]


def place(
    one: Placement,
    alike: Array,
    graphs: Mapping[tuple[int, int], NDArray[np.int64]],
    partitions: Mapping[tuple[int, int], Partition],
) -> Array:
    """How far each image lies on the reached class's side: (n,), 1 on it, 0 on the true class's, 0.5 on neither.

    Args:
        one: n images.
        alike: (n, m), their similarities to all m clean images; NaN to its own original.
        graphs: by pair, which of the clean images its graph holds, as many of the first class as of the second.
        partitions: by pair, of that graph.
    """
    found = np.empty(len(one.rows))
    for pair in sorted(set(one.pairs)):
        mine = np.array([i for i, p in enumerate(one.pairs) if p == pair])
        index, part = graphs[pair], partitions[pair]
        second = orientation(part, truth_of(len(index) // 2))
        sides = extend(part, alike[np.ix_(mine, index)])
        found[mine] = (1 + sides * second * one.reached[mine]) / 2
    return found
