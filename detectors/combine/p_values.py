"""Empirical p-values that neither end at the largest clean score nor jump."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# The share of the clean scores that makes a tail.
_TAIL = 0.1


def fit_tail(clean: Tensor) -> dict[str, Tensor]:
    """Learn from held-out clean scores (n,) what :func:`surprise` takes."""
    scores = clean.double().sort().values
    n = len(scores)
    knots, first = scores.unique(return_inverse=True)
    # The share of clean scores at least as large, of the knot and one more image.
    rank = torch.full((len(knots),), n, dtype=torch.int64).scatter_reduce(0, first, torch.arange(n), "amin")
    heights = -((n - rank + 1).double() / (n + 1)).log()
    most = max(1, round(_TAIL * n))
    excess = float((scores[-most:] - scores[-most:].amin()).mean())
    spread = float(scores.std(correction=0))
    unit = spread if spread > 1e-9 * max(1.0, float(scores.abs().max())) else 1.0
    return {
        "knots": knots.contiguous(),
        "heights": heights.contiguous(),
        "rate": torch.tensor(1 / max(excess, 1e-3 * unit), dtype=torch.float64),
        "below": torch.tensor(1e-2 / unit, dtype=torch.float64),
    }


def surprise(fitted: Mapping[str, Tensor], scores: Tensor) -> Tensor:
    """Return minus the logarithm of the p-value of each score, float64 (n,), increasing, continuous, differentiable.

    Within the clean scores the empirical p-value (rank / (n + 1)), interpolated in its logarithm; above the largest an
    exponential tail with the mean excess of the upper tenth; below the smallest, where p is 1, a slope of a hundredth
    per standard deviation, so that the order of scores is never lost.
    """
    values = scores.double()
    knots, heights = fitted["knots"].to(values.device), fitted["heights"].to(values.device)
    rate, below = fitted["rate"].to(values.device), fitted["below"].to(values.device)
    right = torch.searchsorted(knots, values.detach().contiguous()).clamp(1, max(1, len(knots) - 1))
    left = right - 1
    right = right.clamp(max=len(knots) - 1)
    gap = (knots[right] - knots[left]).clamp(min=torch.finfo(torch.float64).tiny)
    inside = heights[left] + (heights[right] - heights[left]) * ((values - knots[left]) / gap).clamp(0, 1)
    return inside + rate * (values - knots[-1]).clamp(min=0) - below * (knots[0] - values).clamp(min=0)
