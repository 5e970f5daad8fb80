"""Square (Andriushchenko et al. 2020): random search by squares at the edge of the budget, from the scores alone.

The search itself, :func:`search`, takes any objective; :class:`Square` gives it the margin of the logits. Every image
draws its own squares from its own generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...harness.core.batches import steps_between_looks
from ...harness.core.ranges import Count, Fraction
from ...harness.core.seeds import Draws, DrawsAhead, Uniforms
from ..base import parameters as checks
from ..base.geometry import per_image, project
from ..base.perturbation import CountingModel, Norm, Perturbation, PerturbationInfo
from .pgd import margin

Objective = Callable[[Tensor, Tensor], Tensor]

# The paper's schedule: of 10,000 queries, those after which the share of the image that a square covers is halved.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def square_share(step: int, queries: int, p: float) -> float:
    """The share of an image's pixels that the square of a step covers: ``p``, halved nine times over the queries."""
    at = int(step / queries * 10_000)
    return p / 2.0 ** sum(at > threshold for threshold in _HALVINGS)


def start_linf(clean: Tensor, eps: float, draws: Draws) -> Tensor:
    """Return images (n, channels, height, width) with vertical stripes of +eps or -eps in every channel, in [0, 1]."""
    return (clean + eps * draws.signs(clean[:, :, :1, :])).clamp_(0, 1)


def propose_linf(current: Tensor, clean: Tensor, eps: float, share: float, draws: Uniforms) -> Tensor:
    """Return a proposal for each image: ``current`` with one square of +eps or -eps (per channel) around ``clean``.

    A square that would change nothing, as half of those of grey images do, has its signs reversed.

    Args:
        current: the best images so far, (n, channels, height, width), within eps of ``clean`` and in [0, 1].
        clean: the images attacked, of the same shape.
        eps: the L-inf budget.
        share: the share of an image's pixels that the square covers.
        draws: one generator per image; each advances by 2 + channels numbers.
    """
    n, channels, height, width = clean.shape
    side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
    drawn = draws.uniform(clean.new_empty(n, 2 + channels))
    # Only the squares are looked at: all but the first are a small part of an image.
    inside = _pixels(drawn[:, 0], drawn[:, 1], side, height, width)[:, None].expand(-1, channels, -1)
    before, around = current.flatten(2).gather(2, inside), clean.flatten(2).gather(2, inside)
    signs = torch.where(drawn[:, 2:] < 0.5, -eps, eps)[:, :, None]
    square = (around + signs).clamp_(0, 1)
    idle = (square == before).flatten(1).all(1)
    square = torch.where(per_image(idle, square), (around - signs).clamp_(0, 1), square)
    return current.flatten(2).scatter(2, inside, square).view_as(current)


def start_l2(clean: Tensor, eps: float, draws: Draws) -> Tensor:
    """Images of L2 distance eps (less what [0, 1] cuts off): a grid of tiles, each two bumps of opposite sign."""
    n, channels, height, width = clean.shape
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    drawn = draws.uniform(clean.new_empty(n, down * across, 1 + channels))
    bumps = _bumps(side, clean)
    tile = torch.where((drawn[:, :, :1, None, None] < 0.5), bumps, bumps.T)
    tile = tile * torch.where(drawn[:, :, 1:] < 0.5, -1.0, 1.0)[..., None, None]
    grid = tile.view(n, down, across, channels, side, side).permute(0, 3, 1, 4, 2, 5)
    delta = torch.zeros_like(clean)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    delta[:, :, top : top + down * side, left : left + across * side] = grid.reshape(
        n, channels, down * side, across * side
    )
    return _at_l2(clean, delta, eps)


def propose_l2(current: Tensor, clean: Tensor, eps: float, share: float, draws: Uniforms) -> Tensor:
    """A proposal for each image: the perturbation of one window is moved to another, where bumps are added to it.

    The paper's algorithm 3: the L2 norm in use is kept, spread over the channels of the new window, together with
    what is left of the budget. Arguments as for :func:`propose_linf`, with an L2 budget; each generator advances by
    5 + channels numbers.
    """
    n, channels, height, width = clean.shape
    # At least 3, where bumps begin to have a shape, and odd, so that they have a centre.
    side = min(max(round(math.sqrt(share * height * width)), 3) | 1, height, width)
    drawn = draws.uniform(clean.new_empty(n, 5 + channels))
    there = _pixels(drawn[:, 0], drawn[:, 1], side, height, width)[:, None].expand(-1, channels, -1)
    source = _pixels(drawn[:, 2], drawn[:, 3], side, height, width)[:, None].expand(-1, channels, -1)
    bumps = _bumps(side, clean)
    bump = torch.where((drawn[:, 4] < 0.5)[:, None], bumps.flatten(), bumps.T.flatten())[:, None]
    signs = torch.where(drawn[:, 5:] < 0.5, -1.0, 1.0)[:, :, None]

    delta = (current - clean).flatten(2)
    used = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    emptied = delta.scatter(2, source, 0.0).scatter(2, there, 0.0)
    # Per channel: the norm within the two windows, which become free.
    freed = (delta.square().sum(2) - emptied.square().sum(2)).clamp_min(0)
    old = delta.gather(2, there)
    shape = bump * signs + old / torch.linalg.vector_norm(old, dim=2, keepdim=True).clamp_min(1e-12)
    length = torch.linalg.vector_norm(shape, dim=2, keepdim=True).clamp_min(1e-12)
    room = ((eps**2 - used**2).clamp_min(0) / channels)[:, None] + freed
    placed = emptied.scatter(2, there, shape / length * room.sqrt()[:, :, None])
    return _at_l2(clean, placed.view_as(clean), eps)


def search(
    objective: Objective,
    clean: Tensor,
    eps: float,
    norm: Literal["linf", "l2"],
    queries: int,
    draws: Draws,
    p: float = 0.8,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Search at random for images around ``clean`` at which ``objective`` is not above 0.

    An image that got there is done: it is not asked about again, on a GPU from the next look at all images on.

    Args:
        objective: called without gradients as objective(images, rows), images (m, channels, height, width) in [0, 1]
            and within the budget, rows int64 (m,) saying which of ``clean`` they belong to; returns (m,) values to be
            minimised, each of which may depend on its own image only. NaN counts as infinite.
        clean: float32 in [0, 1], (n, channels, height, width).
        eps: the budget in ``norm``.
        norm: ``linf`` or ``l2``.
        queries: calls of the objective per image, at most.
        draws: one generator per image.
        p: the share of the pixels that the first squares cover.
        start: where to begin, of the shape of ``clean`` and within the budget; by default the paper's stripes or tiles.

    Returns:
        the best images found (n, channels, height, width) and their values (n,).

    Raises:
        ValueError: for another norm.
    """
    if norm not in ("linf", "l2"):
        raise ValueError(f"there are no squares for the norm {norm!r}")
    begin, propose = (start_linf, propose_linf) if norm == "linf" else (start_l2, propose_l2)
    rows = torch.arange(len(clean), device=clean.device)
    if not len(rows):
        return clean.clone(), clean.new_empty(0)
    with torch.no_grad():
        result = begin(clean, eps, draws) if start is None else start.clone()
        values = objective(result, rows).nan_to_num(nan=float("inf"), posinf=float("inf"))
        standing, best, lowest, own = clean, result.clone(), values.clone(), DrawsAhead(draws)
        every = steps_between_looks(clean.device)
        for step in range(1, queries):
            if step % every == 0 and not bool((going := lowest > 0).all()):
                result[rows], values[rows] = best, lowest
                rows, standing, best, lowest = rows[going], standing[going], best[going], lowest[going]
                own.keep(going.nonzero().flatten().tolist())
                if not len(rows):
                    break
            proposal = propose(best, standing, eps, square_share(step, queries, p), own)
            value = objective(proposal, rows)
            better = (value < lowest) & (lowest > 0)
            best = torch.where(per_image(better, best), proposal, best)
            lowest = torch.where(better, value, lowest)
        result[rows], values[rows] = best, lowest
        own.settle()
    return result, values


class Square(Perturbation):
    """Random search on the margin of the logits, one query per proposal; an image that is fooled leaves the batch.

    An image that nothing fools comes back as the best proposal.

    Args:
        eps: the budget; 0 changes nothing.
        norm: ``linf`` or ``l2``.
        queries: forwards per image, at most.
        p: the share of an image's pixels that the first squares cover, in (0, 1]; it falls over the queries.

    Raises:
        UsageError: for a parameter out of range.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Square",
        kind="attack",
        family="square",
        norm="linf",
        paper="Andriushchenko, Croce, Flammarion, Hein 2020, arXiv:1912.00049",
        gradients=False,
        stochastic=True,
        cost="high",
        summary="Random search by squares at the edge of the budget, from the model's scores alone.",
    )

    def __init__(
        self, eps: float, norm: Literal["linf", "l2"] = "linf", queries: Count = 5000, p: Fraction = 0.8
    ) -> None:
        self._norm: Literal["linf", "l2"] = norm
        self.eps: float = checks.budget(eps, norm)
        self.queries = queries
        self.p = p

    @property
    def norm(self) -> Norm:
        """The norm of the budget."""
        return self._norm

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        def standing(proposals: Tensor, rows: Tensor) -> Tensor:
            logits = model(proposals)
            value = -margin(logits, labels[rows])
            # A tie that is still predicted right must not count as done.
            right = logits.argmax(1) == labels[rows]
            return torch.where(right, value.clamp_min(torch.finfo(value.dtype).tiny), value)

        return search(standing, images, self.eps, self._norm, self.queries, draws, self.p)[0]


def _starts(drawn: Tensor, side: int, size: int) -> Tensor:
    # float32 uniforms lie below 1, but their product with the number of places may round up to it.
    return (drawn * (size - side + 1)).long().clamp_max(size - side)


def _pixels(drawn_rows: Tensor, drawn_columns: Tensor, side: int, height: int, width: int) -> Tensor:
    """Return the flat positions of each image's window, row by row, int64 (n, side * side)."""
    place = torch.arange(side, device=drawn_rows.device)
    rows = _starts(drawn_rows, side, height)[:, None] + place
    columns = _starts(drawn_columns, side, width)[:, None] + place
    return (rows[:, :, None] * width + columns[:, None, :]).flatten(1)


def _bumps(side: int, like: Tensor) -> Tensor:
    """The paper's eta: the upper half a bump, the lower half one of opposite sign, of L2 norm 1, (side, side)."""
    upper = side // 2
    made = torch.cat([_bump(upper, side), -_bump(side - upper, side)])
    unit: Tensor = made / torch.linalg.vector_norm(made)
    return unit.to(like)


def _bump(height: int, width: int) -> Tensor:
    """Return nested rectangles around the centre; the r-th adds 1 / (r + 1) ** 2 to all that it holds. L2 norm 1."""
    made = torch.zeros(height, width)
    if not made.numel():
        return made
    row, column = height // 2, width // 2
    for r in range(max(row, column) + 1):
        made[max(row - r, 0) : row + r + 1, max(column - r, 0) : column + r + 1] += 1 / (r + 1) ** 2
    unit: Tensor = made / torch.linalg.vector_norm(made)
    return unit


def _at_l2(clean: Tensor, delta: Tensor, eps: float) -> Tensor:
    """``clean`` plus the perturbation stretched to length eps, within [0, 1] and the ball."""
    length = torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp_min(torch.finfo(delta.dtype).tiny)
    return project((clean + delta * per_image(eps / length, delta)).clamp_(0, 1), clean, eps, "l2")
