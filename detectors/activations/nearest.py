"""Exact nearest neighbours among stored reference rows, with gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ...harness.core.recent import Recent

# Layers whose references are kept ready.
_LAYERS = 256


@dataclass(frozen=True, eq=False)
class Reference:
    """Reference rows with what every question about them needs; in float64 they are held once, less their mean.

    Attributes:
        stored: the rows as they were given, (m, d) of any type.
        scale: what each row is divided by to have length 1, float64 (m, 1); ``None`` where they are compared as given.
        centre: the mean of the rows that are compared, float64 (d,).
        centred: these rows less their mean, float64 (m, d).
        lengths: squared lengths of these, float64 (m,).
    """

    stored: Tensor
    scale: Tensor | None
    centre: Tensor
    centred: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, stored: Tensor, device: torch.device, normalised: bool = False) -> Self:
        """Prepare rows (m, d) of any type on a device; ``normalised``: they are compared at length 1."""
        stored = stored.to(device)
        rows = stored.double()
        scale = _scale(rows) if normalised else None
        if scale is not None:
            rows = rows / scale
        centre = rows.mean(0)
        centred = rows - centre
        return cls(stored, scale, centre, centred, (centred * centred).sum(1))

    def rows(self, found: Tensor | slice) -> Tensor:
        """Return the rows that are compared: at positions int64 (n, k), float64 (n, k, d); of a slice, (n, d)."""
        rows = self.stored[found].double()
        return rows if self.scale is None else rows / self.scale[found]


class References:
    """Prepared reference rows of several layers: an attack asks about the same ones at every step.

    Args:
        normalised: they are compared at length 1.
    """

    def __init__(self, normalised: bool = False) -> None:
        self._normalised = normalised
        # By the tensor itself, which is held so that no other can take its place.
        self._prepared: Recent[tuple[int, torch.device], tuple[Tensor, Reference]] = Recent(_LAYERS)

    def of(self, rows: Tensor, device: torch.device) -> Reference:
        """Return rows (m, d) prepared on a device."""
        key = (id(rows), device)
        # A copy of a detector holds copies of the rows under the old keys.
        if key not in self._prepared or self._prepared[key][0] is not rows:
            self._prepared[key] = (rows, Reference.of(rows, device, self._normalised))
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
        found = apart.topk(min(k, len(reference.centred)), dim=1, largest=False).indices
    distances = torch.linalg.vector_norm(queries.unsqueeze(1) - reference.rows(found), dim=2)
    distances, order = distances.sort(dim=1, stable=True)
    return distances, found.gather(1, order)


def unit_length(features: Tensor) -> Tensor:
    """Return rows of length 1, float64; a zero row stays zero."""
    features = features.double()
    return features / _scale(features)


def _scale(features: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return lengths.clamp_min(1e-12)
