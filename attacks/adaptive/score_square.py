"""A black box on the detector's true score: random search without gradient or surrogate."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from torch import Tensor

from ...harness.core.seeds import Draws
from ..base.perturbation import CountingModel, PerturbationInfo
from ..native.pgd import margin
from ..native.square import search
from .base import target_of
from .best_found import Best
from .query_search import QuerySearch


class ScoreSquare(QuerySearch):
    """Minimise logits and true score together by random search (Square), without gradient or surrogate.

    What is minimised is max(0, −margin) plus the true score above the threshold in units of the detector's spread; an
    image at which both vanish is fooled and passes. The search begins at what other attacks found: a fooling image
    that is still flagged has half of the way behind it.

    Args:
        eps: the budget.
        queries: questions asked per image, at most; each is one forward and one score.
        norm: ``linf`` or ``l2``.
        images: number of evaluate images that are attacked, from the first on; ``None`` for all.
        large_eps: see :class:`~.base.Adaptive`.
        pixels: see :class:`~.base.Adaptive`.

    Raises:
        UsageError: for a parameter out of range.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Square on the true score",
        kind="adaptive",
        family="adaptive-square",
        norm="linf",
        paper="after Andriushchenko, Croce, Flammarion, Hein 2020, arXiv:1912.00049",
        gradients=False,
        stochastic=True,
        cost="medium",
        summary="Random search that asks logits and the detector's true score; needs no surrogate.",
    )

    called: ClassVar[str] = "search"

    def improve(
        self, best: Best, rows: Tensor, model: CountingModel, clean: Tensor, labels: Tensor, draws: Draws
    ) -> None:
        target, grid = target_of(model), self.grid(target_of(model))
        # Beyond both boundaries by a hair: other batches round differently.
        slack = 1e-3

        def objective(searched: Tensor, images: Tensor, part: Tensor) -> Tensor:
            asked = searched[part]
            images = grid.of(images, clean[asked], self.eps)
            logits, score = target.query(model, images)
            lead = margin(logits, labels[asked])
            best.offer(asked, images, lead > 0, score, self.part)
            excess = (score - target.threshold) / target.scale + slack
            return (slack - lead).clamp_min(0) + excess.clamp_min(0).to(lead.dtype)

        for part, start in ((best.found[rows], best.images), (~best.found[rows], None)):
            chosen = rows[part]
            if len(chosen):
                search(
                    partial(objective, chosen), clean[chosen], self.eps, self.ball, self.queries,
                    draws.take(chosen.tolist()), start=None if start is None else start[chosen],
                )  # fmt: skip
