"""Norm balls around images: projection, steepest ascent, steps and uniform starts, each image for itself.

All functions take float32 tensors (n, channels, height, width) and work on the tensors' device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...harness.core.batches import steps_between_looks
from ...harness.core.seeds import Draws
from .perturbation import Norm

# A rescaled L2 or L1 perturbation ends this much inside its ball, so that rounding x + delta does not leave it.
_INSIDE = 1 - 1e-6


# A budget: one for all images, or one for each (n,).
Radius = float | Tensor


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Return values (n,) shaped to broadcast over images (n, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def project(images: Tensor, clean: Tensor, eps: Radius, norm: Norm) -> Tensor:
    """Return the nearest images within ``eps`` of ``clean`` in ``norm`` (linf, l2 or l1).

    In linf and l2 each image may have a budget of its own, (n,).

    Images that lie within their ball already come back bit for bit. Projected images lie between ``clean`` and
    ``images`` element by element, so a range that holds both holds them too. L-inf is exact up to one rounding.

    Raises:
        ValueError: for l0, whose nearest point is not a projection onto a convex set.
    """
    if norm == "linf":
        reach = per_image(eps, images) if isinstance(eps, Tensor) else eps
        return torch.minimum(torch.maximum(images, clean - reach), clean + reach)
    if norm == "l1":
        return _into_l1(images, clean, _same(eps), None)
    if norm != "l2":
        raise ValueError(f"there is no projection for the norm {norm!r}")
    delta = (images - clean).flatten(1)
    length = torch.linalg.vector_norm(delta, dim=1)
    shrunk = delta * (_INSIDE * eps / length.clamp_min(torch.finfo(delta.dtype).tiny))[:, None]
    return torch.where(per_image(length > eps, images), clean + shrunk.view_as(images), images)


def _same(eps: Radius) -> float:
    """A budget that all images share; raises ValueError for one of each."""
    if isinstance(eps, Tensor):
        raise ValueError("in this norm all images have the same budget")
    return eps


def levels_within(images: Tensor, clean: Tensor, steps: int, eps: Radius) -> Tensor:
    """Return the nearest of ``steps`` + 1 levels within L-inf ``eps`` of ``clean``, as float64 numbers of steps.

    Where none does it is the nearest of all.
    """
    levels = (images.double() * steps).round()
    # float32 rounding of x must not exclude a level on the edge of the budget; as much as `within` allows for.
    reach = (per_image(eps.double(), images) if isinstance(eps, Tensor) else eps) + 5e-7
    low, high = ((clean.double() - reach) * steps).ceil(), ((clean.double() + reach) * steps).floor()
    inside = torch.minimum(torch.maximum(levels, low), high)
    return torch.where(low <= high, inside, levels)


def project_l1_in_range(images: Tensor, clean: Tensor, eps: float) -> Tensor:
    """Return the nearest images in [0, 1] within L1 distance ``eps`` of ``clean``, which lies in [0, 1] itself.

    The projection onto the intersection of ball and range, which is nearer than that onto one after the other (Croce &
    Hein 2021, arXiv:2103.01208, proposition 2.1). Images that lie in both already come back bit for bit. O(d log d) per
    image of d elements.
    """
    return _into_l1(images, clean, eps, torch.where(images > clean, 1 - clean, clean)).clamp_(0, 1)


def _into_l1(images: Tensor, clean: Tensor, eps: float, room: Tensor | None) -> Tensor:
    """Return images within ``eps`` of ``clean`` in L1, no element of which moves by more than its ``room``."""
    delta = (images - clean).flatten(1)
    allowed = delta.abs() if room is None else torch.minimum(delta.abs(), room.flatten(1))
    outside = allowed.sum(1) > eps
    if not bool(outside.any()):
        return images if room is None else images.clamp(0, 1)
    sizes = delta[outside].double().abs()
    reach = allowed[outside].double()
    moves = (sizes - _threshold(sizes, reach, _INSIDE * eps)).clamp_min(0).minimum(reach)
    result = images.clone() if room is None else images.clamp(0, 1)
    result[outside] = clean[outside] + (delta[outside].sign() * moves).to(delta.dtype).view_as(clean[outside])
    return result


def _threshold(sizes: Tensor, reach: Tensor, eps: float) -> Tensor:
    """The value (n, 1) by which sizes (n, d) have to shrink so that, cut off at ``reach``, they add up to ``eps``.

    The sum of min(max(size - t, 0), reach) falls with t, piecewise linear: a coordinate is on its slope between
    size - reach and size. With ``reach`` = ``sizes`` it is soft thresholding (Duchi et al. 2008, figure 1). Float64:
    cumulated sums lose digits.
    """
    # Most coordinates are on their slope down to 0, so only the knots of those that are cut off are sorted too.
    cut = int((sizes > reach).sum(1).max())
    lower = (sizes - reach).topk(cut, dim=1).values
    knots, order = torch.cat([sizes, lower, torch.zeros_like(sizes[:, :1])], 1).sort(dim=1, descending=True)
    # From above: a coordinate comes onto its slope at its size and leaves it where all its reach is used.
    sloping = torch.where(order < sizes.shape[1], 1.0, -1.0).to(sizes).cumsum(1)
    gaps = knots[:, :-1] - knots[:, 1:]
    sums = torch.nn.functional.pad((sloping[:, :-1] * gaps).cumsum(1), (1, 0))
    # The last knot whose sum stays within eps; from there on at its slope. All of them together exceed it.
    last = ((sums <= eps).sum(1, keepdim=True) - 1).clamp_max(knots.shape[1] - 2)
    rest = eps - sums.gather(1, last)
    return knots.gather(1, last) - rest / sloping.gather(1, last).clamp_min(1)


def to_hyperplane(points: Tensor, normal: Tensor, offset: Tensor, norm: Norm) -> Tensor:
    """Return the shortest moves in ``norm`` (linf or l2) from points in [0, 1] onto hyperplanes, within [0, 1].

    A point from which [0, 1] does not reach its hyperplane moves as far as it gets. Of all moves of a size, the one
    that gets nearest moves every coordinate against its part of the gap, as far as its room allows. What it gains grows
    with the size, piecewise linear and ever more slowly: Newton's steps from 0 end at the exact size, most after a
    handful.

    Args:
        points: (k, n, d).
        normal: of the n hyperplanes <normal, z> = offset, (n, d).
        offset: (n,).
        norm: ``linf`` or ``l2``.

    Raises:
        ValueError: for another norm.
    """
    if norm not in ("linf", "l2"):
        raise ValueError(f"there is no shortest move onto a hyperplane for the norm {norm!r}")
    gap = (normal * points).sum(-1) - offset
    direction = normal.sign() * -gap.sign()[..., None]
    room = torch.where(direction > 0, 1 - points, points)
    weight = normal.abs()
    # A coordinate moves by ``pace`` for each unit of size, until ``full``.
    pace = torch.ones_like(weight) if norm == "linf" else weight
    full, gain, rise = room / pace, weight * room, weight * pace
    size, slope = gap.new_zeros(gap.shape), gap.new_full(gap.shape, torch.inf)
    every, step, going = steps_between_looks(points.device), 0, True
    while going:
        free = full > size[..., None]
        before, slope = slope, torch.where(free, rise, 0).sum(-1)
        left = gap.abs() - torch.where(free, 0, gain).sum(-1)
        size = torch.where(slope > 0, left / slope, torch.inf)
        step += 1
        # Coordinates only ever use up their room: where none did, the size is exact.
        going = step % every != 0 or bool((slope < before).any())
    return torch.minimum(size[..., None] * pace, room).nan_to_num(nan=0.0) * direction


def ascent(gradient: Tensor, norm: Norm, share: float | Tensor = 0.0) -> Tensor:
    """Return the direction of norm 1 along which a linear function rises fastest; 0 where the gradient is 0.

    In L1 that is the coordinate of the largest derivative alone; ``share`` spreads the step evenly over that share of
    an image's coordinates, those of the largest derivatives (Tramer & Boneh 2019, arXiv:1904.13000, sparse steepest
    ascent: one coordinate at a time takes hundreds of steps).

    Args:
        gradient: the derivative of the function, (n, ...).
        norm: linf, l2 or l1.
        share: for l1, the share of coordinates that move, in [0, 1], rounded, at least one of them; one number, or one
            for each image (n,).

    Raises:
        ValueError: for l0, of which a small step does not exist.
    """
    if norm == "linf":
        return gradient.sign()
    flat = gradient.flatten(1)
    if norm == "l1":
        size = flat.shape[1]
        counts = (torch.as_tensor(share, device=flat.device) * size).round().clamp(1, size).view(-1, 1)
        largest = flat.abs().topk(int(counts.max()), dim=1).indices
        chosen = torch.arange(largest.shape[1], device=flat.device) < counts
        signs = torch.zeros_like(flat).scatter_(1, largest, flat.gather(1, largest).sign() * chosen)
        return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1)).view_as(gradient)
    if norm != "l2":
        raise ValueError(f"there is no steepest ascent for the norm {norm!r}")
    # Divided by the largest entry first: the square of a tiny gradient (saturated cross-entropy) is 0 in float32.
    top = flat.abs().amax(1, keepdim=True)
    scaled = torch.where(top > 0, flat / top, torch.zeros_like(flat))
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return torch.where(length > 0, scaled / length, scaled).view_as(gradient)


def steepness(gradient: Tensor, norm: Norm) -> Tensor:
    """Return by how much linear functions rise at most for each unit of distance in linf or l2, (n,): the dual norm."""
    rise: Tensor = torch.linalg.vector_norm(gradient.flatten(1), 1 if norm == "linf" else 2, dim=1)
    return rise


def step_within(images: Tensor, step: Tensor, clean: Tensor, eps: Radius, norm: Norm) -> Tensor:
    """``images + step``, brought back into the ball around ``clean`` and into [0, 1]; ``eps`` as in :func:`project`."""
    moved = images + step
    if norm == "l1":
        # Onto both at once: an L1 step may leave the range by far, and what it gains there would use up the budget.
        return project_l1_in_range(moved, clean, _same(eps))
    return project(moved, clean, eps, norm).clamp_(0, 1)


def random_in_ball(clean: Tensor, eps: Radius, norm: Norm, draws: Draws) -> Tensor:
    """Perturbations drawn uniformly from the ball of radius ``eps`` (linf, l2 or l1), by each image's own generator.

    Each image may have a radius of its own, (n,).

    Raises:
        ValueError: for l0, whose ball has no volume.
    """
    eps = per_image(eps, clean) if isinstance(eps, Tensor) else eps
    if norm == "linf":
        return draws.uniform(clean).mul_(2).sub_(1).mul_(eps)
    if norm == "l2":
        direction = ascent(draws.normal(clean), "l2")
    elif norm == "l1":
        # Exponential sizes over their sum are uniform on the face of the L1 sphere (Devroye 1986, V.2).
        sizes = -torch.log1p(-draws.uniform(clean))
        total = per_image(sizes.flatten(1).sum(1).clamp_min(torch.finfo(sizes.dtype).tiny), sizes)
        direction = draws.signs(clean) * sizes / total
    else:
        raise ValueError(f"there is no random start for the norm {norm!r}")
    # The volume within radius r grows as r ** dimensions.
    radius = draws.uniform(clean[:, :1, :1, :1]) ** (1 / max(clean[0].numel(), 1))
    return direction * radius * eps
