"""The equal-norm control: random perturbations as large as an attack's that change no prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...harness.core.errors import UsageError
from ...harness.core.model_state import device_of, untouched
from ...harness.core.ranges import Count, fitting
from ...harness.core.seeds import Draws, derive_seed, forked_rng
from ..base.perturbation import norms


@dataclass(frozen=True, eq=False)
class Control:
    """Control images for n perturbed ones.

    Attributes:
        images: float32 in [0, 1], (k, channels, height, width), on the CPU.
        positions: which of the n rows they belong to, ascending, int64, (k,).
        kept_share: k / n; NaN for n = 0.
        linf_ratio: the mean, over kept images, of their L-inf norm by the perturbed image's; NaN where k = 0.
        l2_ratio: the same for L2; below 1 by what clipping took.
    """

    images: Tensor
    positions: Tensor
    kept_share: float
    linf_ratio: float
    l2_ratio: float


def equal_norm_control(
    model: nn.Module,
    clean: Tensor,
    perturbed: Tensor,
    clean_predictions: Tensor,
    draws: Draws,
    tries: int = 10,
    batch_size: int = 256,
) -> Control:
    """clip(x + |x' − x| · s) with a random sign s per element, drawn until the prediction is the clean one.

    Each image has its own generator, so neither batch size nor the other images matter. Images whose prediction
    changes in every try are dropped. Model and global random states are afterwards as they were.

    Args:
        model: images in [0, 1] to logits.
        clean: x, float32 in [0, 1], (n, channels, height, width).
        perturbed: x', of the same shape.
        clean_predictions: the model's predictions for ``clean``, int64, (n,).
        draws: one generator per image.
        tries: draws per image, at most.
        batch_size: images per forward pass.

    Raises:
        UsageError: for shapes that do not belong together, or ``tries`` or ``batch_size`` below 1.
    """
    n = len(clean)
    if clean.ndim != 4 or perturbed.shape != clean.shape or clean_predictions.shape != (n,) or len(draws) != n:
        raise UsageError(
            f"The control needs clean and perturbed images of one shape and a prediction and draws for each, not "
            f"{tuple(clean.shape)}, {tuple(perturbed.shape)}, {tuple(clean_predictions.shape)} and {len(draws)}."
        )
    tries, batch_size = fitting("tries", tries, Count), fitting("batch_size", batch_size, Count)
    clean, perturbed, wanted = clean.detach().cpu(), perturbed.detach().cpu(), clean_predictions.detach().cpu()
    device = device_of(model)
    result, kept = clean.clone(), torch.zeros(n, dtype=torch.bool)
    with untouched(model), torch.no_grad(), forked_rng(derive_seed(draws.seed, "control")):
        for start in range(0, n, batch_size):
            pending = torch.arange(start, min(start + batch_size, n))
            for _ in range(tries):
                signs = draws.take(pending.tolist()).signs(clean[pending])
                tried = (clean[pending] + (perturbed[pending] - clean[pending]).abs() * signs).clamp_(0, 1)
                same = model(tried.to(device)).argmax(1).cpu() == wanted[pending]
                result[pending[same]] = tried[same]
                kept[pending[same]] = True
                pending = pending[~same]
                if not len(pending):
                    break
    positions = kept.nonzero().squeeze(1)
    images = result[positions]
    realised, asked = norms(images - clean[positions]), norms((perturbed - clean)[positions])
    return Control(
        images=images,
        positions=positions,
        kept_share=len(positions) / n if n else math.nan,
        linf_ratio=_mean_ratio(realised["linf"], asked["linf"]),
        l2_ratio=_mean_ratio(realised["l2"], asked["l2"]),
    )


def _mean_ratio(realised: Tensor, asked: Tensor) -> float:
    # An image that the perturbation left alone asks for nothing and has no ratio.
    moved = asked > 0
    return float((realised[moved] / asked[moved]).mean()) if bool(moved.any()) else math.nan
