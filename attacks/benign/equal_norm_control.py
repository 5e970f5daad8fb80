"""The equal-norm control: random perturbations as large as an attack's that change no prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...harness.core.batches import batch_for, in_batches
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
    batch_size: int | None = None,
) -> Control:
    """clip(x + |x' − x| · s) with a random sign s per element, drawn until the prediction is the clean one.

    Each image has its own generator, so neither batch size nor the other images matter. Images whose prediction
    changes in every try are dropped. Model and global random states are afterwards as they were.

    Args:
        model: images in [0, 1] to logits.
        clean: x, float32 in [0, 1], (n, channels, height, width).
        perturbed: x', of the same shape.
        clean_predictions: the model's predictions for ``clean``, int64, (n,).
        draws: says which generator each image has; it is not advanced.
        tries: draws per image, at most.
        batch_size: images per forward pass; by default as many as suit the device.

    Raises:
        UsageError: for shapes that do not belong together, or ``tries`` or ``batch_size`` below 1.
    """
    n = len(clean)
    if clean.ndim != 4 or perturbed.shape != clean.shape or clean_predictions.shape != (n,) or len(draws) != n:
        raise UsageError(
            f"The control needs clean and perturbed images of one shape and a prediction and draws for each, not "
            f"{tuple(clean.shape)}, {tuple(perturbed.shape)}, {tuple(clean_predictions.shape)} and {len(draws)}."
        )
    tries = fitting("tries", tries, Count)
    batch_size = None if batch_size is None else fitting("batch_size", batch_size, Count)
    clean, perturbed, wanted = clean.detach().cpu(), perturbed.detach().cpu(), clean_predictions.detach().cpu()
    device = device_of(model)
    result, kept = clean.clone(), torch.zeros(n, dtype=torch.bool)

    def draw(rows: slice) -> None:
        found, same = _drawn(
            model, clean[rows].to(device), perturbed[rows].to(device), wanted[rows].to(device),
            Draws(draws.seed, draws.indices[rows]), tries,
        )  # fmt: skip
        result[rows], kept[rows] = found.cpu(), same.cpu()

    with untouched(model), torch.no_grad(), forked_rng(derive_seed(draws.seed, "control")):
        in_batches(n, batch_size or batch_for(device, clean.shape[1:]), draw)
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


def _drawn(
    model: nn.Module, clean: Tensor, perturbed: Tensor, wanted: Tensor, draws: Draws, tries: int
) -> tuple[Tensor, Tensor]:
    """Return a control for each image of a batch, on its device, and whether the model's prediction is the wanted one.

    Where none of the tries is, the clean image.
    """
    result, kept = clean.clone(), torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
    size, pending = (perturbed - clean).abs(), torch.arange(len(clean), device=clean.device)
    for _ in range(tries):
        signs = draws.take(pending.tolist()).signs(clean[pending])
        tried = (clean[pending] + size[pending] * signs).clamp_(0, 1)
        same = model(tried).argmax(1) == wanted[pending]
        found, pending = pending[same], pending[~same]
        result[found], kept[found] = tried[same], True
        if not len(pending):
            break
    return result, kept


def _mean_ratio(realised: Tensor, asked: Tensor) -> float:
    # An image that the perturbation left alone asks for nothing and has no ratio.
    moved = asked > 0
    return float((realised[moved] / asked[moved]).mean()) if bool(moved.any()) else math.nan
