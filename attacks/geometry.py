"""Norm balls around images: projection, steepest ascent, steps and uniform starts, each image for itself.

All functions take float32 tensors (n, channels, height, width) and work on the tensors' device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..harness.seeds import Draws
from .base import Norm

# A rescaled L2 or L1 perturbation ends this much inside its ball, so that rounding x + delta does not leave it.
_INSIDE = 1 - 1e-6


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Values (n,) shaped to broadcast over images (n, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def project(images: Tensor, clean: Tensor, eps: float, norm: Norm) -> Tensor:
    """The nearest images within ``eps`` of ``clean`` in ``norm`` (linf, l2 or l1).

    Images that lie within their ball already come back bit for bit. Projected images lie between ``clean`` and
    ``images`` element by element, so a range that holds both holds them too. L-inf is exact up to one rounding.

    Raises:
        ValueError: for l0, whose nearest point is not a projection onto a convex set.
    """
    if norm == "linf":
        return torch.minimum(torch.maximum(images, clean - eps), clean + eps)
    delta = (images - clean).flatten(1)
    if norm == "l2":
        length = torch.linalg.vector_norm(delta, dim=1)
        outside = length > eps
        shrunk = delta * (_INSIDE * eps / length.clamp_min(torch.finfo(delta.dtype).tiny))[:, None]
    elif norm == "l1":
        outside = delta.abs().sum(1) > eps
        shrunk = _onto_l1(delta, _INSIDE * eps)
    else:
        raise ValueError(f"there is no projection for the norm {norm!r}")
    return torch.where(per_image(outside, images), clean + shrunk.view_as(images), images)


def _onto_l1(delta: Tensor, eps: float) -> Tensor:
    # Duchi et al. 2008, figure 1: soft thresholding at the value theta that makes the L1 norm eps.
    # Only the rows outside the ball are used, for which theta >= 0. Float64: cumulated sums lose digits.
    sizes = delta.double().abs()
    if not sizes.shape[1]:
        return delta
    ordered = sizes.sort(dim=1, descending=True).values
    excess = ordered.cumsum(1) - eps
    ranks = torch.arange(1, sizes.shape[1] + 1, device=delta.device, dtype=sizes.dtype)
    rho = (ordered * ranks > excess).sum(1).clamp_min(1)
    theta = excess.gather(1, rho[:, None] - 1) / rho[:, None]
    return (delta.sign() * (sizes - theta).clamp_min(0)).to(delta.dtype)


def ascent(gradient: Tensor, norm: Norm, share: float = 0.0) -> Tensor:
    """The direction of norm 1 along which a linear function rises fastest; 0 where the gradient is 0.

    In L1 that is the coordinate of the largest derivative alone; ``share`` spreads the step evenly over that share of
    an image's coordinates, those of the largest derivatives (Tramer & Boneh 2019, arXiv:1904.13000, sparse steepest
    ascent: one coordinate at a time takes hundreds of steps).

    Args:
        gradient: the derivative of the function, (n, ...).
        norm: linf, l2 or l1.
        share: for l1, the share of coordinates that move, in [0, 1], rounded, at least one of them.

    Raises:
        ValueError: for l0, of which a small step does not exist.
    """
    if norm == "linf":
        return gradient.sign()
    flat = gradient.flatten(1)
    if norm == "l1":
        size = flat.shape[1]
        largest = flat.abs().topk(min(size, max(1, round(share * size))), dim=1).indices
        signs = torch.zeros_like(flat).scatter_(1, largest, flat.gather(1, largest).sign())
        return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1)).view_as(gradient)
    if norm != "l2":
        raise ValueError(f"there is no steepest ascent for the norm {norm!r}")
    # Divided by the largest entry first: the square of a tiny gradient (saturated cross-entropy) is 0 in float32.
    top = flat.abs().amax(1, keepdim=True)
    scaled = torch.where(top > 0, flat / top, torch.zeros_like(flat))
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return torch.where(length > 0, scaled / length, scaled).view_as(gradient)


def step_within(images: Tensor, step: Tensor, clean: Tensor, eps: float, norm: Norm) -> Tensor:
    """``images + step``, brought back into the ball around ``clean`` and into [0, 1]."""
    moved = images + step
    if norm == "l1":
        # The range first: an L1 step may leave it by far, and what it gains there would use up the budget. The
        # projection then keeps the range, for it lies between clean and moved.
        return project(moved.clamp_(0, 1), clean, eps, norm)
    return project(moved, clean, eps, norm).clamp_(0, 1)


def random_in_ball(clean: Tensor, eps: float, norm: Norm, draws: Draws) -> Tensor:
    """Perturbations drawn uniformly from the ball of radius ``eps`` (linf, l2 or l1), by each image's own generator.

    Raises:
        ValueError: for l0, whose ball has no volume.
    """
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
