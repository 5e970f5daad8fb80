"""What a discriminator that never saw an attack makes of one, and what the independent judge makes of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...harness.metrics import auroc, auroc_interval
from . import ImageSet, Material
from .ldam_discriminator import Taught, logits_of
from .ldam_judge import Judge
from .ldam_measures import Estimate
from .ldam_study import Reading

_BATCH = 256
CLEAN, NOISE = "clean images", "noise of the same size"
DISCRIMINATOR, JUDGE = "discriminator", "judge"


def readings(material: Material, taught: Taught | None, judge: Judge, held_out: int, limit: int) -> list[Reading]:
    """AUROCs of both scores for every perturbation that has a success, against clean images and against its noise.

    Larger scores mean "less real". The judge measures by every second of the first ``held_out`` evaluate images, so
    that it is asked about the others alone.

    Args:
        material: with perturbations.
        taught: the frozen discriminator, or ``None``.
        judge: independent.
        held_out: evaluate images that the judge knows.
        limit: images of each kind, at most.
    """
    scores: dict[str, Callable[[Tensor], Tensor]] = {JUDGE: judge.distances}
    if taught is not None:
        network = taught.network
        scores = {DISCRIMINATOR: lambda images: -logits_of(network, images, material.device), **scores}
    found: list[Reading] = []
    everything = torch.arange(len(material.evaluate))
    for one in material.perturbed.values():
        turned = one.success.nonzero()[:, 0]
        for name, score in scores.items():
            sets = {}
            for key, images, at, source in (
                ("turned", one.images, turned, one.rows[turned]),
                (CLEAN, material.evaluate, everything, everything),
                (NOISE, one.control, torch.arange(len(one.control)), one.control_rows),
            ):
                unknown = torch.ones(len(source), dtype=torch.bool)
                if name == JUDGE:
                    unknown = (source >= held_out) | (source % 2 == 1)
                chosen = unknown.nonzero()[:, 0][:limit]
                sets[key] = score(_read(images, at[chosen])), source[chosen]
            successes, sources = sets["turned"]
            for against in (CLEAN, NOISE):
                others, origins = sets[against]
                if not len(successes) or not len(others):
                    continue
                area = auroc(successes, others)
                low, high = auroc_interval(successes, others, positive_source=sources, negative_source=origins)
                found.append(
                    Reading(one.label, name, against, Estimate(area, low, high), len(successes), len(others))
                )  # fmt: skip
    return found


def _read(images: ImageSet, at: Tensor) -> Tensor:
    """The images at sorted positions, read in batches."""
    parts = [images.read(slice(0, 0))]
    for start in range(0, len(images), _BATCH):
        inside = at[(at >= start) & (at < start + _BATCH)] - start
        if len(inside):
            parts.append(images.read(slice(start, min(start + _BATCH, len(images))))[inside])
    return torch.cat(parts)
