"""What a discriminator that never saw an attack makes of one, and what the independent judge makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...harness.statistics.detection import MIN_IMAGES
from ...harness.statistics.intervals import Estimate, auroc_estimate
from ..common.inputs import AnalysisInput
from ..common.recording import read_images
from .discriminator import logits_of
from .judge import Judge
from .measured import Reading
from .space import Space

CLEAN, NOISE = "clean images", "noise of the same size"
DISCRIMINATOR, JUDGE = "discriminator", "judge"


def readings(
    given: AnalysisInput, discriminator: nn.Module | None, judge: Judge, space: Space, held_out: int, limit: int
) -> list[Reading]:
    """AUROCs of both scores for every perturbation, against clean images that the model gets right and its noise.

    Larger scores mean "less real". The judge measures by every second of the first ``held_out`` evaluate images, so
    that it is asked about the others alone. Few images give a reason instead of a number, as everywhere.

    Args:
        given: with perturbations.
        discriminator: frozen, or ``None``.
        judge: independent.
        space: of the chains: all images pass through what it can express, as the data did that both scores know.
        held_out: evaluate images that the judge knows.
        limit: images of each kind, at most.
    """
    scores: dict[str, Callable[[Tensor], Tensor]] = {JUDGE: judge.distances}
    if discriminator is not None:
        network = discriminator
        scores = {DISCRIMINATOR: lambda images: -logits_of(network, images, given.device), **scores}
    found: list[Reading] = []
    clean = (given.evaluate.traces.predictions == given.evaluate.traces.labels).nonzero()[:, 0]
    for one in given.perturbed.values():
        success = one.success.nonzero()[:, 0]
        for name, score in scores.items():
            sets = {}
            for key, images, at, source in (
                ("success", one.images, success, one.rows[success]),
                (CLEAN, given.evaluate, clean, clean),
                (NOISE, one.control, torch.arange(len(one.control)), one.control_rows),
            ):
                unknown = torch.ones(len(source), dtype=torch.bool)
                if name == JUDGE:
                    unknown = (source >= held_out) | (source % 2 == 1)
                chosen = unknown.nonzero()[:, 0][:limit]
                sets[key] = score(space.expressible(read_images(images.read, len(images), at[chosen]))), source[chosen]
            found += [_reading(one.label, name, against, sets["success"], sets[against]) for against in (CLEAN, NOISE)]
    return found


def _reading(
    label: str, score: str, against: str, success: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor]
) -> Reading:
    """From scores and source images of either kind."""
    counts = len(success[0]), len(others[0])
    what = "successes", against if against == CLEAN else f"images with {against}"
    for count, words in zip(counts, what, strict=True):
        if count < MIN_IMAGES:
            reason = f"{count} {words}, {MIN_IMAGES} are needed"
            return Reading(label, score, against, Estimate(math.nan), *counts, reason)
    return Reading(label, score, against, auroc_estimate(success[0], others[0], success[1], others[1]), *counts)
