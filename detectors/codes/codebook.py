"""Vector quantisation: samples are coded by the nearest of a few prototypes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows whose distances to all units are held at once; bounds the memory at any number of samples.
_BLOCK = 8192


@dataclass(frozen=True, eq=False)
class Codebook:
    """Prototypes, and which of them is nearest to a sample.

    Attributes:
        prototypes: float32 of shape (units, d).
    """

    prototypes: Tensor

    @property
    def units(self) -> int:
        """The number of units."""
        return len(self.prototypes)

    def distances(self, x: Tensor) -> Tensor:
        """Return the Euclidean distances of samples (n, d) to all prototypes, float32 (n, units).

        Differences are taken before squaring: the faster |x|² + |w|² − 2 x·w cancels for close points far from the
        origin, and its rounding depends on the number of samples in the call.
        """
        return torch.cdist(x.float(), self.prototypes, compute_mode="donot_use_mm_for_euclid_dist")

    def match(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best-matching unit of each sample (n, d) and the distance to it: int64 (n,) and float32 (n,)."""
        best = [self.distances(block).min(1) for block in torch.split(x, _BLOCK)]
        return torch.cat([b.indices for b in best]), torch.cat([b.values for b in best])

    def second_match(self, x: Tensor) -> Tensor:
        """Return the second-best unit of each sample (n, d), int64 (n,).

        Raises:
            ValueError: for a single unit.
        """
        if self.units < 2:
            raise ValueError("a map of one unit has no second-best unit")
        second = []
        for block in torch.split(x, _BLOCK):
            distance = self.distances(block)
            distance.scatter_(1, distance.argmin(1, keepdim=True), math.inf)
            second.append(distance.argmin(1))
        return torch.cat(second)


def quantisation_error(book: Codebook, x: Tensor) -> float:
    """Return the mean distance of samples (n, d) to their best-matching prototype; NaN without samples."""
    return float(book.match(x)[1].double().mean())
