"""A black box on the alarm alone: fools the model and is not flagged, yes or no, and nothing else is asked."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ...harness.core.seeds import Draws, DrawsAhead
from ..base.geometry import per_image, project
from ..base.perturbation import CountingModel, PerturbationInfo, norms
from ..native.pgd import margin
from ..native.square import propose_l2, propose_linf, square_share
from .base import target_of
from .best_found import Best
from .pixels import Grid
from .query_search import QuerySearch

# The share of the distance that a proposal gives up: at first, at least, at most, and how it changes with each answer.
_FIRST, _LEAST, _MOST, _FASTER, _SLOWER = 0.2, 0.005, 0.5, 1.5, 0.7
# The share of the image that the first squares cover.
_SHARE = 0.3


class DecisionAttack(QuerySearch):
    """Random search that asks only whether an image fools the model and is not flagged.

    A score that is 0 or 1, or the same for all that is flagged, shows a search on the score no way down. Two walks
    need none, each with half of the queries:

    - sideways, for images of which something fools but is flagged: any change of one square within the budget that
      still fools is taken, until one is not flagged;
    - inwards, from the nearest clean image of another class that passes (Brendel, Rauber, Bethge 2018, arXiv
      1712.04248, start so): it is drawn to the image attacked, as a whole or with one square changed, and what still
      passes is taken, by steps that grow with each answer yes and shrink with each no. Within the budget it is done.

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
        title="Decision-based search",
        kind="adaptive",
        family="adaptive-decision",
        norm="linf",
        paper="after Brendel, Rauber, Bethge 2018, arXiv:1712.04248",
        gradients=False,
        stochastic=True,
        cost="medium",
        summary="Random search that asks only whether an image fools the model and is not flagged.",
    )

    called: ClassVar[str] = "decision"

    def improve(
        self, best: Best, rows: Tensor, model: CountingModel, clean: Tensor, labels: Tensor, draws: Draws
    ) -> None:
        fooling = rows[best.found[rows]]
        if len(fooling):
            self._sideways(best, fooling, model, clean[fooling], labels[fooling], draws.take(fooling.tolist()))
        rows = rows[best.not_evaded[rows]]
        guides = target_of(model).guides()
        if not len(rows) or not len(guides.images):
            return
        starts = self._nearest(
            guides.images.to(clean.device), guides.labels.to(clean.device), clean[rows], labels[rows]
        )
        self._inwards(best, rows, model, clean[rows], labels[rows], starts, draws.take(rows.tolist()))

    def _sideways(
        self, best: Best, rows: Tensor, model: CountingModel, clean: Tensor, labels: Tensor, draws: Draws
    ) -> None:
        images, own, queries = best.images[rows], DrawsAhead(draws), max(self.queries // 2, 1)
        grid = self.grid(target_of(model))
        for step in range(queries):
            share = square_share(step, queries, _SHARE)
            proposal = self._changed(images, clean, self.eps, share, own)
            fooled, passes = self._asked(best, rows, proposal, clean, labels, model, grid)
            images = torch.where(per_image(fooled, images), proposal, images)
            if bool(passes.any()):
                images, rows, clean, labels = (t[~passes] for t in (images, rows, clean, labels))
                own.keep((~passes).nonzero().flatten().tolist())
                if not len(rows):
                    break
        own.settle()

    def _inwards(
        self, best: Best, rows: Tensor, model: CountingModel, clean: Tensor, labels: Tensor, starts: Tensor,
        draws: Draws,
    ) -> None:  # fmt: skip
        images, own, queries = starts, DrawsAhead(draws), max(self.queries // 2, 1)
        grid = self.grid(target_of(model))
        radius = norms(images - clean)[self.ball]
        inward = torch.full_like(radius, _FIRST)
        # A guide passes by itself, but not always with what the grid leaves of it.
        for step in range(queries):
            reach = (radius * (1 - inward)).clamp_min(self.eps)
            proposal = self._drawn_in(images, clean, reach)
            if step % 2:
                moved = self._changed(proposal, clean, reach, square_share(step, queries, _SHARE), own)
                # One square goes to the edge, another back to the image attacked.
                moved = moved if step % 4 == 1 else torch.where(moved == proposal, proposal, clean)
                proposal = self._drawn_in(moved, clean, reach)
            _, passes = self._asked(best, rows, proposal, clean, labels, model, grid)
            images = torch.where(per_image(passes, images), proposal, images)
            radius = torch.where(passes, norms(images - clean)[self.ball], radius)
            inward = torch.where(passes, inward * _FASTER, inward * _SLOWER).clamp(_LEAST, _MOST)
            done = radius <= self.eps * (1 + 1e-5)
            if bool(done.any()):
                left = ~done
                images, rows, clean, labels, radius, inward = (
                    t[left] for t in (images, rows, clean, labels, radius, inward)
                )
                own.keep(left.nonzero().flatten().tolist())
                if not len(rows):
                    break
        own.settle()

    def _nearest(self, guides: Tensor, classes: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
        """Return the clean image of another class that is nearest to each image, of its shape."""
        order = torch.inf if self.ball == "linf" else 2.0
        distances = torch.cdist(clean.flatten(1), guides.flatten(1), p=order)
        distances[labels[:, None] == classes] = torch.inf
        return guides[distances.argmin(1)]

    def _changed(
        self, images: Tensor, clean: Tensor, reach: float | Tensor, share: float, draws: DrawsAhead
    ) -> Tensor:  # fmt: skip
        """Return images with one square changed."""
        propose = propose_linf if self.ball == "linf" else propose_l2
        if isinstance(reach, float):
            return propose(images, clean, reach, share, draws)
        # In units of twice its own reach every image has the budget 0.5 around grey.
        unit = 2 * per_image(reach, images)
        grey = torch.full_like(clean, 0.5)
        moved = propose(grey + (images - clean) / unit, grey, 0.5, share, draws)
        return (clean + (moved - grey) * unit).clamp(0, 1)

    def _drawn_in(self, images: Tensor, clean: Tensor, reach: Tensor) -> Tensor:
        """Return images within ``reach`` (n,) of ``clean``."""
        return project(images, clean, reach, self.ball).clamp(0, 1)

    def _asked(
        self, best: Best, rows: Tensor, images: Tensor, clean: Tensor, labels: Tensor, model: CountingModel, grid: Grid
    ) -> tuple[Tensor, Tensor]:
        """Return which images fool, and which of them pass; those within the budget are offered."""
        target = target_of(model)
        shown = grid.of(images, clean, self.eps)
        logits, score = target.query(model, shown)
        fooled = margin(logits, labels) > 0
        inside = norms(shown - clean)[self.ball] <= self.eps * (1 + 1e-5) + 1e-7
        # What is kept of an image that nothing fools has to lie within the budget, too.
        offered = torch.where(per_image(inside, shown), shown, clean)
        best.offer(rows, offered, fooled & inside, score, self.part, inside)
        return fooled, fooled & (score <= target.threshold)
