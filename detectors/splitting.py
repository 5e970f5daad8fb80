"""The clean fit set cut in two: what a detector is fitted on, and held-out images on which it is calibrated.

A detector's scores of the images that it was fitted on are smaller than those of fresh ones; whatever is learned from
scores (p-values, weights, scales) needs fresh ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..harness.trace import Traces


def split_rows(eligible: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw ``count`` of the eligible rows (int64); the drawn ones and the others, both ascending.

    Neither part is ever empty while there is a row: one that nothing is left for gets a copy of the other.
    """
    order = eligible[torch.randperm(len(eligible), generator=generator)]
    count = max(1, min(count, len(eligible)))
    drawn, others = order[:count].sort().values, order[count:].sort().values
    return drawn, others if len(others) else drawn


def held_apart(clean: Traces, count: int) -> tuple[Traces, Traces]:
    """The images to fit on, and ``count`` held-out ones, drawn: the last rows may all be noise (``fit_negatives``).

    Without any to hold out, both parts are all images.
    """
    if not count:
        return clean, clean
    held_out, train = split_rows(torch.arange(len(clean)), count, clean.generator)
    return clean.pick(train), clean.pick(held_out)
