"""The clean fit set cut in two: what a detector is fitted on, and held-out images on which it is calibrated.

A detector's scores of the images that it was fitted on are smaller than those of fresh ones; whatever is learned from
scores (p-values, weights, scales) needs fresh ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...harness.tracing.traces import Traces


def split_rows(
    eligible: Tensor, count: int, generator: torch.Generator, sources: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw ``count`` of the eligible rows (int64); the drawn ones and the others, both ascending.

    Neither part is ever empty while there is a row: one that nothing is left for gets a copy of the other.

    Args:
        sources: of all rows, the image that each was made from: rows of one image are never parted, so that about
            ``count`` rows are drawn.
    """
    count = max(1, min(count, len(eligible)))
    own = eligible if sources is None else sources[eligible]
    images, member = own.unique(return_inverse=True)
    order = torch.randperm(len(images), generator=generator)
    share = round(count * len(images) / max(1, len(eligible)))
    if count < len(eligible):
        share = min(share, len(images) - 1)
    wanted = order[: max(1, share)]
    chosen = torch.isin(member, wanted)
    drawn, others = eligible[chosen].sort().values, eligible[~chosen].sort().values
    return drawn, others if len(others) else drawn


def held_apart(clean: Traces, count: int) -> tuple[Traces, Traces]:
    """The images to fit on, and ``count`` held-out ones, drawn: the last rows may all be noise (``fit_negatives``).

    Without any to hold out, both parts are all images.
    """
    if not count:
        return clean, clean
    held_out, train = split_rows(torch.arange(len(clean)), count, clean.generator, clean.sources)
    return clean.pick(train), clean.pick(held_out)


def exclude_training_sources(perturbed: Traces, kept: Traces) -> Traces:
    """Return the perturbed images whose originals are not among ``kept``; all, where there is no such image.

    In use an image's original is not in a detector's memory; one that learned from images whose original is would
    take being close to it for a sign of an attack.
    """
    made, known = perturbed.sources, kept.sources
    if made is None or known is None:
        return perturbed
    fresh = (~torch.isin(made, known)).nonzero().squeeze(1)
    return perturbed.pick(fresh) if len(fresh) else perturbed
