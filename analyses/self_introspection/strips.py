"""Layers whose units are rearranged by their relevance to the output that is predicted most often."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .measured import Strip
from .relevance import Evidence, rank_correlation, relevance_to

ORDERS = ("correlation", "gradient x activation")
# Standard deviations beyond which activations are cut.
CLIP = 2.5
_UNITS = 64
_IMAGES = 200


def rearrange(
    taps: Sequence[str], labels: Tensor, classes: int, evidence: Evidence, pictured: int
) -> tuple[int, list[int], list[Strip]]:
    """Rearrange some layers.

    Returns:
        The output, the classes that have images, and the layers in both orders.
    """
    output = int(torch.bincount(evidence.logits.argmax(1), minlength=classes).argmax())
    relevances = dict(zip(ORDERS, relevance_to(evidence, output), strict=True))
    each = max(1, _IMAGES // classes)
    blocks = {c: rows for c in range(classes) if len(rows := (labels == c).nonzero().squeeze(1)[:each])}
    blocks = dict(list(blocks.items())[:_IMAGES])
    starts = torch.tensor([0, *evidence.units]).cumsum(0).tolist()
    strips = []
    for depth in _positions(len(taps), pictured):
        part = slice(starts[depth], starts[depth + 1])
        values = evidence.activations[:, part].double()
        deviation = values.std(0, correction=0)
        varying = deviation > 0
        standard = ((values - values.mean(0)) / torch.where(varying, deviation, 1.0)).clamp(-CLIP, CLIP)
        agreement = rank_correlation(*(relevances[name][part][varying] for name in ORDERS))
        for name in ORDERS:
            score = torch.where(varying, relevances[name][part], -1.0)
            order = score.argsort(descending=True, stable=True)[: min(_UNITS, int(varying.sum()))]
            shown = _with_gaps(standard[:, order], list(blocks.values()))
            strips.append(Strip(taps[depth], depth, name, order.tolist(), score[order].tolist(), agreement, shown))
    return output, list(blocks), strips


def _positions(count: int, most: int) -> list[int]:
    return sorted({round(i * (count - 1) / max(1, most - 1)) for i in range(min(most, count))})


def _with_gaps(values: Tensor, blocks: Sequence[Tensor]) -> Tensor:
    """Columns (d, n) of blocks of images from (n, d), an empty one between two blocks, float32."""
    gap = torch.full((values.shape[1], 1), math.nan)
    parts = [part for rows in blocks for part in (gap, values[rows].T.float())]
    return torch.cat(parts[1:], 1).contiguous()
