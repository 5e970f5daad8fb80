"""Targeted FAB (Croce & Hein 2020, arXiv:1907.02044): projections onto the boundary as it is linearised at each step.

It looks for the smallest perturbation of each image towards one class after the other, and draws no random numbers.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..base.geometry import per_image, to_hyperplane
from ..base.perturbation import CountingModel

# The paper's: how much of a step goes back towards the image at most, how far a step goes beyond the boundary, and how
# much of the way from the image is kept once it is crossed.
_ALPHA, _ETA, _BETA = 0.1, 1.05, 0.9
# A move below this counts as one of this length.
_SHORTEST = 1e-8


def targeted_fab(
    model: CountingModel, images: Tensor, labels: Tensor, eps: float, norm: Literal["linf", "l2"], steps: int,
    targets: int,
) -> Tensor:  # fmt: skip
    """Return the nearest image that fools the model found for each image, or the image itself.

    An image for which one is found within ``eps`` is not attacked towards further classes. Cost per image and class:
    ``steps`` times two forwards and a backward.

    Args:
        model: maps images to logits.
        images: that it gets right, float32 in [0, 1], (n, channels, height, width).
        labels: their classes, int64 (n,).
        eps: what is beyond is not found.
        norm: of the distance, ``linf`` or ``l2``.
        steps: for each class.
        targets: number of classes that are tried, at most, the likeliest first.
    """
    result, rows = images.clone(), torch.arange(len(images), device=images.device)
    with torch.no_grad():
        logits = model(images)
    order = logits.scatter(1, labels[:, None], float("-inf")).argsort(dim=1, descending=True, stable=True)
    for rank in range(min(targets, logits.shape[1] - 1)):
        found, distance = _nearest(model.of(rows), images[rows], labels[rows], order[rows, rank], norm, steps)
        within = distance <= eps
        result[rows] = torch.where(per_image(within, found), found, result[rows])
        rows = rows[~within]
        if not len(rows):
            break
    return result


def _nearest(
    model: CountingModel, clean: Tensor, labels: Tensor, targets: Tensor, norm: Literal["linf", "l2"], steps: int
) -> tuple[Tensor, Tensor]:
    """Return the nearest fooling iterate of each image and its distance, infinite where none fools."""
    images, best = clean, clean
    distance = torch.full((len(clean),), torch.inf, device=clean.device)
    for _ in range(steps):
        lead, gradient = _towards(model, images, labels, targets)
        # The linearised boundary between the two classes: where the target's lead is 0.
        normal = gradient.flatten(1)
        offset = (normal * images.flatten(1)).sum(1) - lead
        points = torch.stack([images, clean]).flatten(2)
        moves = to_hyperplane(points, normal, offset, norm)
        here, there = _length(moves, norm).clamp_min(_SHORTEST)
        alpha = (here / (here + there)).clamp(0, _ALPHA)[:, None]
        ahead, back = points + _ETA * moves
        images = (ahead * (1 - alpha) + back * alpha).clamp_(0, 1).view_as(clean)
        with torch.no_grad():
            fooled = model(images).argmax(1) != labels
        delta = images - clean
        reached = _length(delta.flatten(1), norm)
        nearer = fooled & (reached < distance)
        best = torch.where(per_image(nearer, images), images, best)
        distance = torch.where(nearer, reached, distance)
        images = torch.where(per_image(fooled, images), clean + _BETA * delta, images)
    return best, distance


def _towards(model: CountingModel, images: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the target's logit minus the label's, (n,), and its gradient by the images."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = model(images)
        lead = (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)
        (gradient,) = torch.autograd.grad(lead.sum(), images)
    return lead.detach(), gradient


def _length(moves: Tensor, norm: Literal["linf", "l2"]) -> Tensor:
    """Return the norm of moves along the last axis."""
    return moves.abs().amax(-1) if norm == "linf" else torch.linalg.vector_norm(moves, dim=-1)
