"""Exact nearest neighbours among stored reference rows, with gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest(queries: Tensor, reference: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k nearest reference rows of every query.

    They are found through a matrix product, in O(queries * reference * d), and their distances then computed again
    from the differences: a product cancels digits, and its rounding depends on how queries are batched.

    Args:
        queries: (n, d), with or without a graph.
        reference: (m, d).
        k: at most m neighbours are returned.

    Returns:
        Euclidean distances, float64 (n, min(k, m)), ascending, differentiable in the queries (a distance of 0 has the
        gradient 0); and the rows in ``reference``, int64.
    """
    queries, reference = queries.double(), reference.to(queries.device).double()
    k = min(k, len(reference))
    with torch.no_grad():
        centre = reference.mean(0)
        a, b = queries.detach() - centre, reference - centre
        squares = (b * b).sum(1) - 2 * a @ b.T
        found = squares.topk(k, dim=1, largest=False).indices
    distances = torch.linalg.vector_norm(queries.unsqueeze(1) - reference[found], dim=2)
    order = distances.detach().argsort(dim=1, stable=True)
    return distances.gather(1, order), found.gather(1, order)


def unit_length(features: Tensor) -> Tensor:
    """Return rows of length 1, float64; a zero row stays zero."""
    return torch.nn.functional.normalize(features.double(), dim=1, eps=1e-12)
