"""Faults of foolbox 3.3.4 that the adapter fixes on the attack object before it runs.

Each makes a result wrong, or makes it depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...base.geometry import per_image


def repair(name: str, attack: Any, size: int) -> None:
    """Mend ``attack``, an object of foolbox's class ``name``, for a batch of ``size`` images."""
    fix = _REPAIRS.get(name)
    if fix is not None:
        fix(attack, size)


# FMN steps to where a linear model would have its boundary. Exactly there, rounding decides, and on piecewise linear
# models it never gets any further (measured: L2, a fifth of the digits not fooled).
_BEYOND = 1 + 1e-3


def _fmn_crosses(attack: Any, size: int) -> None:
    onto: Callable[..., Any] = attack.project

    def project(x: Any, x0: Any, epsilon: Any) -> Any:
        return onto(x, x0, epsilon * _BEYOND)

    attack.project = project


def _fmn_projects(attack: Any, size: int) -> None:
    # The library multiplies by min(1, norm / norm), which is 1: the budget that FMN adapts would never be used.
    def project(x: Any, x0: Any, epsilon: Any) -> Any:
        delta: Tensor = (x - x0).raw
        length = torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp_min(1e-12)
        return x0 + type(x0)(delta * per_image((epsilon.raw * _BEYOND / length).clamp_max(1), delta))

    attack.project = project


def _one_direction_per_image(attack: Any, size: int) -> None:
    # The library divides the noise, and again the direction made of it, by a norm over the whole batch: the probes
    # come closer and the steps get shorter with the number of neighbours. Here is the estimate of Chen et al. 2020
    # (with its mean as the baseline) for each image.
    def approximate(is_adversarial: Callable[[Any], Any], x_advs: Any, steps: int, delta: Any) -> Any:
        images: Tensor = x_advs.raw
        shape = (steps, *images.shape)
        if attack.constraint == "linf":
            noise = torch.rand(shape, dtype=images.dtype, device=images.device) * 2 - 1
        else:
            noise = torch.randn(shape, dtype=images.dtype, device=images.device)
        noise /= torch.linalg.vector_norm(noise.flatten(2), dim=2)[..., None, None, None].clamp_min(1e-12)
        radius = per_image(delta.raw, images)
        probes = (images + radius * noise).clamp(0, 1)
        signs = torch.stack([is_adversarial(type(x_advs)(probe)).raw for probe in probes]).to(images.dtype) * 2 - 1
        mean = signs.mean(0)
        # Where all probes agree, the mean as a baseline would leave nothing.
        weights = torch.where(mean.abs() == 1, signs, signs - mean)
        direction = (weights[..., None, None, None] * (probes - images) / (radius + 1e-8)).mean(0)
        length = torch.linalg.vector_norm(direction.flatten(1), dim=1).clamp_min(1e-12)
        return type(x_advs)(direction / per_image(length, direction))

    attack.approximate_gradients = approximate


def _only_what_lies_outside(attack: Any, size: int) -> None:
    # Once one image has left its ball, the library also moves those inside theirs: outwards, onto the surface.
    project: Callable[..., Any] = attack.project

    def outside(x: Any, x0: Any, epsilon: float) -> Any:
        inside = (x - x0).raw.flatten(1).abs().sum(1) <= epsilon
        return type(x)(torch.where(per_image(inside, x.raw), x.raw, project(x, x0, epsilon).raw))

    attack.project = outside


def _trust_region_per_image(attack: Any, size: int) -> None:
    # The library's trust region is lr times the number of elements of the batch, not of the image.
    attack.lr = attack.lr / size


_REPAIRS: dict[str, Callable[[Any, int], None]] = {
    "L1FMNAttack": _fmn_crosses,
    "L2FMNAttack": _fmn_projects,
    "LInfFMNAttack": _fmn_crosses,
    "HopSkipJumpAttack": _one_direction_per_image,
    "SparseL1DescentAttack": _only_what_lies_outside,
    "L0BrendelBethgeAttack": _trust_region_per_image,
    "L1BrendelBethgeAttack": _trust_region_per_image,
    "L2BrendelBethgeAttack": _trust_region_per_image,
    "LinfinityBrendelBethgeAttack": _trust_region_per_image,
}
