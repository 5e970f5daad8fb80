"""Which part of an image puts it on a unit: crops to the effective receptive field of the unit's strongest map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...harness.tracing.traced_model import Instruments, NeedsCodes
from ..base import ImageSet
from ..findings import Pictures
from .layers import Layer
from .report.figures import largest_units

# Of the gradient's magnitude along each axis, the middle share that a crop keeps.
_KEPT = 0.95


def field_pictures(
    layer: Layer, reader: NeedsCodes, instruments: Instruments, fit: ImageSet, count: int, nearest: int,
    classes: Sequence[str],
) -> Pictures | None:  # fmt: skip
    """The receptive fields of the most occupied units, ``None`` where the tap has no places (a dense layer).

    A unit is a pattern over all maps of the tap. The map in which its prototype stands out most (in standard
    deviations of fit images) stands for it; each of its nearest images is cropped around the place where that map is
    most active, to what reaches this place.

    Args:
        layer: a coded layer of the network of ``instruments``.
        reader: the analysis, which says what is recorded.
        instruments: the network.
        fit: the images that the layer was fitted on.
        count: how many units.
        nearest: how many images of each.
        classes: their names.
    """
    rows, labels = [], []
    for unit, members in largest_units(layer, count, nearest):
        prototype = layer.book.prototypes[unit].cpu()
        strongest = int(prototype.argmax())
        images = torch.cat([fit.read(slice(i, i + 1)) for i in members])
        crops = receptive_crops(instruments, reader, layer.tap, strongest, images)
        if crops is None:
            return None
        gaps = torch.full((nearest - len(crops), *crops.shape[1:]), float("nan"))
        rows.append(torch.cat([crops, gaps]))
        labels.append(
            f"unit {unit}: {classes[int(layer.majority[unit])]}, map {strongest} (+{prototype[strongest]:.1f} σ)"
        )
    return Pictures(
        f"What units at {layer.tap} see",
        "The images nearest to each unit's prototype, cropped around the place where the unit's strongest map is most "
        f"active, to the middle {_KEPT:.0%} of this place's gradient along each axis, and stretched to the images' "
        "size. The map is the one in which the prototype lies highest, in standard deviations of fit images.",
        torch.stack(rows), labels, [f"nearest {i + 1}" for i in range(nearest)],
    )  # fmt: skip


def receptive_crops(
    instruments: Instruments, reader: NeedsCodes, tap: str, channel: int, images: Tensor
) -> Tensor | None:
    """Images cropped to what reaches the most active place of one map, enlarged to their size.

    Source of the field's measure: Luo et al. 2016, Understanding the Effective Receptive Field, arXiv 1701.04128.

    Args:
        instruments: the network.
        reader: whose needs are recorded.
        tap: its name.
        channel: the map.
        images: (n, channels, height, width) in [0, 1].

    Returns:
        (n, channels, height, width) in [0, 1], on the CPU; ``None`` where the tap's activations have no places.
    """
    device = next((p.device for p in instruments.model.parameters()), torch.device("cpu"))
    with torch.enable_grad():
        inputs = images.detach().clone().to(device).requires_grad_()
        live = instruments.live(reader.needs, inputs)
        if live.activations[tap].ndim != 4:
            return None
        # Before the activation: a place at rest has a gradient there too.
        maps = live.preactivations[tap][:, channel].flatten(1)
        (gradient,) = torch.autograd.grad(maps.amax(1).sum(), inputs)
    weight = gradient.abs().sum(1).cpu()
    crops = []
    for image, reach in zip(images.cpu(), weight, strict=True):
        top, bottom = _middle(reach.sum(1))
        left, right = _middle(reach.sum(0))
        part = image[:, top:bottom, left:right]
        crops.append(interpolate(part[None], image.shape[1:], mode="nearest")[0])
    return torch.stack(crops)


def _middle(weight: Tensor) -> tuple[int, int]:
    """First row and the one after the last of the middle 95 % of weights (n,); all rows where there is no weight."""
    total = float(weight.sum())
    if not total > 0:
        return 0, len(weight)
    share = weight.double().cumsum(0) / total
    first = int((share <= (1 - _KEPT) / 2).sum())
    last = int((share < 1 - (1 - _KEPT) / 2).sum())
    return min(first, len(weight) - 1), min(max(last, first), len(weight) - 1) + 1
