"""What searches without gradients have in common: a number of queries."""

from __future__ import annotations

from typing import ClassVar

from ...harness.core.ranges import Count
from ..base.kinds import Effort
from .base import Adaptive
from .pixels import Ball, Pixels


class QuerySearch(Adaptive):
    """Base of searches that ask a model and its detector, and follow no gradient.

    Args:
        eps: the budget.
        queries: questions asked per image, at most; each is one forward and one score.
        norm: ``linf`` or ``l2``.
        images: number of evaluate images that are attacked, from the first on; ``None`` for all.
        large_eps: see :class:`~.base.Adaptive`.
        pixels: see :class:`~.base.Adaptive`.

    Attributes:
        called: the name of the part.
    """

    called: ClassVar[str]

    def __init__(
        self,
        eps: float,
        queries: Count = 1000,
        norm: Ball = "linf",
        images: int | None = 200,
        large_eps: float | None = None,
        pixels: Pixels = "any",
    ) -> None:
        super().__init__(eps, norm, images, large_eps, pixels)
        self.queries = queries

    @property
    def part(self) -> str:
        """The name, and what is not as by default."""
        return self.called if self.pixels == "any" else f"{self.called}-{self.pixels}"

    @property
    def effort(self) -> Effort:
        """Queries."""
        return Effort(queries=self.queries)
