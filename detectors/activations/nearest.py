"""Exact nearest neighbours among stored reference rows, with gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ...harness.core.recent import Recent

# Layers whose references are kept ready.
_LAYERS = 256


@dataclass(frozen=True, eq=False)
class Reference:
    """Reference rows with what every question about them needs.

    Attributes:
        rows: float64 (m, d).
        centre: their mean, (d,).
        centred: the rows less their mean.
        lengths: squared lengths of these, (m,).
    """

    rows: Tensor
    centre: Tensor
    centred: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, rows: Tensor, device: torch.device) -> Self:
        """Prepare rows (m, d) of any type on a device."""
        rows = rows.to(device).double()
        centre = rows.mean(0)
        centred = rows - centre
        return cls(rows, centre, centred, (centred * centred).sum(1))


class References:
    """Prepared reference rows of several layers: an attack asks about the same ones at every step.

    Args:
        transform: what is done to rows (m, d) before.
    """

    def __init__(self, transform: Callable[[Tensor], Tensor] = Tensor.double) -> None:
        self._transform = transform
        # By the tensor itself, which is held so that no other can take its place.
        self._prepared: Recent[tuple[int, torch.device], tuple[Tensor, Reference]] = Recent(_LAYERS)

    def of(self, rows: Tensor, device: torch.device) -> Reference:
        """Return rows (m, d) prepared on a device."""
        key = (id(rows), device)
        # A copy of a detector holds copies of the rows under the old keys.
        if key not in self._prepared or self._prepared[key][0] is not rows:
            self._prepared[key] = (rows, Reference.of(self._transform(rows), device))
        return self._prepared[key][1]


def nearest(queries: Tensor, reference: Tensor | Reference, k: int) -> tuple[Tensor, Tensor]:
    """Return the k nearest reference rows of every query.

    They are found through a matrix product, in O(queries * reference * d), and their distances then computed again
    from the differences: a product cancels digits, and its rounding depends on how queries are batched.

    Args:
        queries: (n, d), with or without a graph.
        reference: (m, d), prepared where it is asked about again and again.
        k: at most m neighbours are returned.

    Returns:
        Euclidean distances, float64 (n, min(k, m)), ascending, differentiable in the queries (a distance of 0 has the
        gradient 0); and the rows in ``reference``, int64.
    """
    queries = queries.double()
    if not isinstance(reference, Reference):
        reference = Reference.of(reference, queries.device)
    with torch.no_grad():
        apart = reference.lengths - 2 * (queries.detach() - reference.centre) @ reference.centred.T
        found = apart.topk(min(k, len(reference.rows)), dim=1, largest=False).indices
    distances = torch.linalg.vector_norm(queries.unsqueeze(1) - reference.rows[found], dim=2)
    distances, order = distances.sort(dim=1, stable=True)
    return distances, found.gather(1, order)


def unit_length(features: Tensor) -> Tensor:
    """Return rows of length 1, float64; a zero row stays zero."""
    return torch.nn.functional.normalize(features.double(), dim=1, eps=1e-12)
