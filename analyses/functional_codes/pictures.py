"""What units stand for, in images: their mean image, their nearest ones, and what their strongest map sees of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...harness.tracing.traced_model import TracedModel
from ...harness.tracing.traces import Need
from ..common.inputs import ImageSet
from ..common.recording import BATCH
from .layers import Layer
from .measured import UnitFields, UnitImages

# Of the gradient's magnitude along each axis, the middle share that a crop keeps.
KEPT = 0.95


def largest_units(layer: Layer, count: int, nearest: int) -> list[tuple[int, list[int]]]:
    """The units with the most fit images, each with the rows of the fit images nearest to its prototype."""
    sizes = layer.counts.sum(0)
    occupied = int((sizes > 0).sum())
    found = []
    # A stable order: of units as large, the first.
    for unit in torch.sort(sizes, descending=True, stable=True).indices[: min(count, occupied)].tolist():
        members = (layer.fit_units == unit).nonzero().squeeze(1)
        order = torch.sort(layer.fit_errors[members], stable=True).indices[:nearest]
        found.append((unit, members[order].tolist()))
    return found


def unit_images(layer: Layer, fit: ImageSet, count: int, nearest: int) -> UnitImages:
    """The mean image of the most occupied units, and the images nearest to their prototypes.

    Args:
        layer: a coded layer.
        fit: the images that it was fitted on, or more.
        count: how many units.
        nearest: how many images of each.
    """
    found = largest_units(layer, count, nearest)
    units = [unit for unit, _ in found]
    rows = []
    for (_, members), mean in zip(found, _mean_images(layer, fit, torch.tensor(units)), strict=True):
        images = torch.cat([mean[None], *(fit.read(slice(i, i + 1)) for i in members)])
        rows.append(_padded(images, nearest + 1))
    return UnitImages(layer.tap, layer.network, units, torch.stack(rows))


def _mean_images(layer: Layer, fit: ImageSet, units: Tensor) -> list[Tensor]:
    sums: list[Tensor | None] = [None] * len(units)
    for start in range(0, len(layer.fit_units), BATCH):
        stop = min(start + BATCH, len(layer.fit_units))
        images, here = fit.read(slice(start, stop)), layer.fit_units[start:stop]
        for i, unit in enumerate(units.tolist()):
            part = images[here == unit].double().sum(0)
            previous = sums[i]
            sums[i] = part if previous is None else previous + part
    sizes = layer.counts.sum(0)
    return [
        (total / float(sizes[unit])).float().clamp(0, 1)
        for unit, total in zip(units.tolist(), sums, strict=True) if total is not None
    ]  # fmt: skip


def unit_fields(
    layer: Layer, needs: Sequence[Need], network: TracedModel, fit: ImageSet, count: int, nearest: int
) -> UnitFields | None:
    """The receptive fields of the most occupied units, ``None`` where the tap has no places (a dense layer).

    A unit is a pattern over all maps of the tap. The map in which its prototype stands out most (in standard
    deviations of fit images) stands for it; each of its nearest images is cropped around the place where that map is
    most active, to what reaches this place.

    Args:
        layer: a coded layer of ``network``.
        needs: what the analysis records.
        network: whose gradients are taken.
        fit: the images that the layer was fitted on.
        count: how many units.
        nearest: how many images of each.
    """
    rows, units, maps, heights = [], [], [], []
    for unit, members in largest_units(layer, count, nearest):
        prototype = layer.book.prototypes[unit].cpu()
        strongest = int(prototype.argmax())
        images = torch.cat([fit.read(slice(i, i + 1)) for i in members])
        crops = receptive_crops(network, needs, layer.tap, strongest, images)
        if crops is None:
            return None
        rows.append(_padded(crops, nearest))
        units.append(unit)
        maps.append(strongest)
        heights.append(float(prototype[strongest]))
    return UnitFields(layer.tap, units, maps, heights, torch.stack(rows))


def _padded(images: Tensor, count: int) -> Tensor:
    """Images (n, ...) with gaps behind, (count, ...)."""
    return torch.cat([images, torch.full((count - len(images), *images.shape[1:]), torch.nan)])


def receptive_crops(
    network: TracedModel, needs: Sequence[Need], tap: str, channel: int, images: Tensor
) -> Tensor | None:
    """Images cropped to what reaches the most active place of one map, enlarged to their size.

    Source of the field's measure: Luo et al. 2016, Understanding the Effective Receptive Field, arXiv 1701.04128.

    Args:
        network: any.
        needs: what is recorded.
        tap: its name.
        channel: the map.
        images: (n, channels, height, width) in [0, 1].

    Returns:
        (n, channels, height, width) in [0, 1], on the CPU; ``None`` where the tap's activations have no places.
    """
    device = next((p.device for p in network.model.parameters()), torch.device("cpu"))
    with torch.enable_grad():
        inputs = images.detach().clone().to(device).requires_grad_()
        live = network.live(needs, inputs)
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
    first = int((share <= (1 - KEPT) / 2).sum())
    last = int((share < 1 - (1 - KEPT) / 2).sum())
    return min(first, len(weight) - 1), min(max(last, first), len(weight) - 1) + 1
