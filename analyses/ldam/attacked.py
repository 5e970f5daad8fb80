"""What a discriminator that never saw an attack makes of one, and what the independent judge makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...harness.statistics.detection import MIN_IMAGES, auroc, auroc_interval
from .. import AnalysisInput, ImageSet
from .discriminator import Taught, logits_of
from .judge import Judge
from .measures import Estimate
from .space import Space
from .study import Reading

_BATCH = 256
CLEAN, NOISE = "clean images", "noise of the same size"
DISCRIMINATOR, JUDGE = "discriminator", "judge"


def readings(
    material: AnalysisInput, taught: Taught | None, judge: Judge, space: Space, held_out: int, limit: int
) -> list[Reading]:
    """AUROCs of both scores for every perturbation, against clean images that the model gets right and its noise.

    Larger scores mean "less real". The judge measures by every second of the first ``held_out`` evaluate images, so
    that it is asked about the others alone. Few images give a reason instead of a number, as everywhere.

    Args:
        material: with perturbations.
        taught: the frozen discriminator, or ``None``.
        judge: independent.
        space: of the chains: all images pass through what it can express, as the data did that both scores know.
        held_out: evaluate images that the judge knows.
        limit: images of each kind, at most.
    """
    scores: dict[str, Callable[[Tensor], Tensor]] = {JUDGE: judge.distances}
    if taught is not None:
        network = taught.network
        scores = {DISCRIMINATOR: lambda images: -logits_of(network, images, material.device), **scores}
    found: list[Reading] = []
    clean = (material.evaluate.traces.predictions == material.evaluate.traces.labels).nonzero()[:, 0]
    for one in material.perturbed.values():
        turned = one.success.nonzero()[:, 0]
        for name, score in scores.items():
            sets = {}
            for key, images, at, source in (
                ("turned", one.images, turned, one.rows[turned]),
                (CLEAN, material.evaluate, clean, clean),
                (NOISE, one.control, torch.arange(len(one.control)), one.control_rows),
            ):
                unknown = torch.ones(len(source), dtype=torch.bool)
                if name == JUDGE:
                    unknown = (source >= held_out) | (source % 2 == 1)
                chosen = unknown.nonzero()[:, 0][:limit]
                sets[key] = score(space.expressible(_read(images, at[chosen]))), source[chosen]
            found += [_reading(one.label, name, against, sets["turned"], sets[against]) for against in (CLEAN, NOISE)]
    return found


def _reading(
    label: str, score: str, against: str, turned: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor]
) -> Reading:
    """From scores and source images of either kind."""
    counts = len(turned[0]), len(others[0])
    what = "successes", against if against == CLEAN else f"images with {against}"
    for count, words in zip(counts, what, strict=True):
        if count < MIN_IMAGES:
            nothing = Estimate(math.nan, math.nan, math.nan)
            return Reading(label, score, against, nothing, *counts, f"{count} {words}, {MIN_IMAGES} are needed")
    area = auroc(turned[0], others[0])
    ends = auroc_interval(turned[0], others[0], positive_source=turned[1], negative_source=others[1])
    return Reading(label, score, against, Estimate(area, *ends), *counts)


def _read(images: ImageSet, at: Tensor) -> Tensor:
    """The images at sorted positions, read in batches."""
    parts = [images.read(slice(0, 0))]
    for start in range(0, len(images), _BATCH):
        inside = at[(at >= start) & (at < start + _BATCH)] - start
        if len(inside):
            parts.append(images.read(slice(start, min(start + _BATCH, len(images))))[inside])
    return torch.cat(parts)
