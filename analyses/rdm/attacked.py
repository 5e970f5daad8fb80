"""Where successful attacks fall on the partition of clean images: on the reached class's side, or on the true one's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..common.inputs import AnalysisInput, PerturbedSet
from ..common.populations import CONTROL, SUCCESS, Population, controls, originals, perturbed
from .graph import Array, Partition, extend, orientation, truth_of

# What reports call the populations that are placed.
ATTACKED, NOISE, CLEAN = "attacked", "noise of the same size", "before the attack"
NAMES = {SUCCESS: ATTACKED, CONTROL: NOISE, "clean": CLEAN}


def populations(
    given: AnalysisInput, classes: Sequence[int], attacks: int, images: int, draws: torch.Generator
) -> list[Population]:
    """The successes of some attacks between chosen classes, with their controls.

    Of an attack with several budgets (``pgd[eps=...]``) the one with the most successes is taken, the first of equals.
    """
    best: dict[str, PerturbedSet] = {}
    for one in given.perturbed.values():
        name = one.label.partition("[")[0]
        if one.kind == "attack" and int(one.success.sum()) > (int(best[name].success.sum()) if name in best else 0):
            best[name] = one
    found: list[Population] = []
    for one in list(best.values())[:attacks]:
        success = perturbed(one, one.success.nonzero().squeeze(1))
        both = zip(success.own.tolist(), success.reached.tolist(), strict=True)
        fits = success.where[[a in classes and b in classes for a, b in both]]
        chosen = torch.randperm(len(fits), generator=draws)[:images].sort().values
        success = perturbed(one, fits[chosen])
        found += [p for p in (success, controls(one, success), originals(given, success)) if len(p)]
    return found


def between(one: Population, classes: Sequence[int]) -> list[tuple[int, int]]:
    """For each image the own and the predicted class in ascending order, as positions among the chosen classes."""
    position = {c: i for i, c in enumerate(classes)}
    both = zip(one.own.tolist(), one.reached.tolist(), strict=True)
    return [(min(pair), max(pair)) for pair in ((position[a], position[b]) for a, b in both)]


def place(
    one: Population,
    classes: Sequence[int],
    alike: Array,
    graphs: Mapping[tuple[int, int], NDArray[np.int64]],
    partitions: Mapping[tuple[int, int], Partition],
) -> Array:
    """How far each image lies on the reached class's side: (n,), 1 on it, 0 on the true class's, 0.5 on neither.

    Args:
        one: n images.
        classes: the chosen ones, ascending.
        alike: (n, m), their similarities to all m clean images; NaN to its own original.
        graphs: by pair, which of the clean images its graph holds, as many of the first class as of the second.
        partitions: by pair, of that graph.
    """
    pairs, ahead = between(one, classes), torch.where(one.reached > one.own, 1, -1).numpy()
    found = np.empty(len(one))
    for pair in sorted(set(pairs)):
        mine = np.array([i for i, p in enumerate(pairs) if p == pair])
        index, part = graphs[pair], partitions[pair]
        second = orientation(part, truth_of(len(index) // 2))
        sides = extend(part, alike[np.ix_(mine, index)])
        found[mine] = (1 + sides * second * ahead[mine]) / 2
    return found
