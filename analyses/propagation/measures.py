"""How a perturbation moves through the layers: what changes at each tap between a clean image and its perturbed one.

Every measure is taken per image and tap, except linear CKA, which compares two whole sets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ...harness.core.errors import UsageError
from ...harness.tracing.bits import flips
from ...harness.tracing.traces import Traces
from .encoders import Encoders, TapEncoder

METRICS = (
    "relative_l2",
    "cosine_distance",
    "bit_flip_rate",
    "som_unit_change",
    "som_map_distance",
    "latent_distance",
    "centroid_change",
)
"""The measures per image, in the order of the first axis of :func:`measure`."""

# Norms below this count as 0: a tap whose sampled units are all silent for an image.
_SILENT = 1e-12
_FEWEST_FOR_CKA = 4


def measure(encoders: Encoders, clean: Traces, other: Traces) -> Tensor:
    """How far each image moved at each tap.

    - ``relative_l2``: ‖h′ − h‖ / ‖h‖ over a fixed sample of at most 256 units of the tap; where ‖h‖ is 0, it is 0 for a
      silent h′ too and 1 for any other.
    - ``cosine_distance``: 1 − cos(h, h′), over the same units; 0 if both are silent, 1 if one is.
    - ``bit_flip_rate``: share of the tap's recorded bits that differ: of all units, unless the model has a cap.
    - ``som_unit_change``: 1 if the best-matching unit of the pooled means changes, else 0.
    - ``som_map_distance``: Euclidean distance on the grid between the two best-matching units.
    - ``latent_distance``: Euclidean distance in the space of the principal components of the sampled units, each
      divided by its standard deviation on clean fit images.
    - ``centroid_change``: 1 if the nearest class centroid of the pooled means changes, else 0.

    Args:
        encoders: fitted on the same model.
        clean: traces of n images that hold :data:`~.encoders.NEEDS`.
        other: traces of n images; row i belongs to row i of ``clean`` (its perturbed version, its control, or a clean
            image of the class that was reached).

    Returns:
        float32 (metrics, n, taps), finite, in the order of :data:`METRICS` and of execution.

    Raises:
        ValueError: if the numbers of images differ.
        UsageError: if the encoders belong to a model with other taps.
    """
    if len(clean) != len(other):
        raise ValueError(f"{len(clean)} clean images but {len(other)} others")
    names = tuple(encoders.taps)
    for traces in (clean, other):
        if traces.tap_names("all") != names:
            raise UsageError("The propagation encoders were fitted on a model with other taps: fit them again.")
    # A model with very many units may have been recorded with a cap on its bits.
    cap = next((need.units for need in clean.needs if need.representation == "bits"), None)
    units = {tap.name: tap.units if cap is None else min(cap, tap.units) for tap in clean.taps}
    values = torch.zeros(len(METRICS), len(clean), len(names))
    start = 0
    for before, after in zip(clean.batches(), other.batches(), strict=True):
        for depth, (name, encoder) in enumerate(encoders.taps.items()):
            found = _measure_tap(encoder, name, units[name], before, after)
            values[:, start : start + len(before), depth] = torch.stack(found).float()
        start += len(before)
    return values


def _measure_tap(encoder: TapEncoder, tap: str, units: int, before: Traces, after: Traces) -> list[Tensor]:
    full, full_after = before.full(tap).double(), after.full(tap).double()
    pooled = encoder.standardiser.apply(before.pooled(tap, "mean"))
    pooled_after = encoder.standardiser.apply(after.pooled(tap, "mean"))
    unit, unit_after = encoder.som.match(pooled)[0], encoder.som.match(pooled_after)[0]
    nearest, nearest_after = _nearest(pooled, encoder.centroids), _nearest(pooled_after, encoder.centroids)
    # Encoded as a difference: the mean cancels, and an unchanged image is at distance 0 exactly.
    shift = (full_after - full) @ encoder.pca.components.double().T / encoder.pca.deviations.double()
    return [
        _relative_l2(full, full_after),
        _cosine_distance(full, full_after),
        flips(before.bits(tap), after.bits(tap)) / units,
        unit != unit_after,
        encoder.som.grid_distance(unit, unit_after),
        shift.square().sum(1).sqrt(),
        nearest != nearest_after,
    ]


def _norm(x: Tensor) -> Tensor:
    return x.square().sum(1).sqrt()


def _relative_l2(before: Tensor, after: Tensor) -> Tensor:
    size = _norm(before)
    silent = (_norm(after) > _SILENT).double()
    return torch.where(size > _SILENT, _norm(after - before) / size.clamp(min=_SILENT), silent)


def _cosine_distance(before: Tensor, after: Tensor) -> Tensor:
    a, b = _norm(before), _norm(after)
    # Half the squared distance of the unit vectors is 1 − cos without its cancellation near 0.
    apart = _norm(before / a.clamp(min=_SILENT).unsqueeze(1) - after / b.clamp(min=_SILENT).unsqueeze(1))
    alive, alive_after = a > _SILENT, b > _SILENT
    return torch.where(alive & alive_after, apart.square() / 2, (alive ^ alive_after).double())


def _nearest(x: Tensor, centroids: Tensor) -> Tensor:
    return torch.cdist(x, centroids, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)


def cka(clean: Traces, other: Traces, chosen: Tensor | None = None) -> Tensor:
    """Linear centred kernel alignment of the pooled means of two sets at each tap (1: equal up to rotation and scale).

    Source: Kornblith, Norouzi, Lee and Hinton, ICML 2019, arXiv:1905.00414, equation 3 with linear kernels. It is the
    biased estimate, which is high for few images at a wide tap: compare sets of the same size only.

    Args:
        clean: traces of n images that hold pooled means.
        other: traces of n images in the same order.
        chosen: bool (n,): only these images count.

    Returns:
        float64 (taps,), in [0, 1]; NaN for fewer than 4 images or where a set does not vary.
    """
    if len(clean) != len(other) or (chosen is not None and len(chosen) != len(clean)):
        raise ValueError("cka compares sets of the same images")
    names = clean.tap_names("all")
    if other.tap_names("all") != names:
        raise UsageError("cka compares traces of one model; these have different taps.")
    n = len(clean) if chosen is None else int(chosen.sum())
    if n < _FEWEST_FOR_CKA:
        return torch.full((len(names),), math.nan, dtype=torch.float64)
    return torch.tensor([_linear_cka(clean, other, tap, chosen, n) for tap in names], dtype=torch.float64)


def _linear_cka(clean: Traces, other: Traces, tap: str, chosen: Tensor | None, n: int) -> float:
    means = [_total(traces, tap, chosen) / n for traces in (clean, other)]

    def centred() -> Iterator[tuple[Tensor, Tensor]]:
        pairs = zip(_pooled(clean, tap, chosen), _pooled(other, tap, chosen), strict=True)
        return ((x - means[0], y - means[1]) for x, y in pairs)

    if n < len(means[0]):
        # Fewer images than maps: the same three numbers from the smaller, n × n, Gram matrices.
        x, y = (torch.cat(side) for side in zip(*centred(), strict=True))
        k, m = x @ x.T, y @ y.T
        shared, own, others = (k * m).sum(), k.norm(), m.norm()
    else:
        maps = len(means[0])
        xy, xx, yy = (torch.zeros(maps, maps, dtype=torch.float64) for _ in range(3))
        for x, y in centred():
            xy += y.T @ x
            xx += x.T @ x
            yy += y.T @ y
        shared, own, others = xy.square().sum(), xx.norm(), yy.norm()
    if not (own > 0 and others > 0):
        return math.nan
    return min(1.0, float(shared / own / others))


def _pooled(traces: Traces, tap: str, chosen: Tensor | None) -> Iterator[Tensor]:
    start = 0
    for part in traces.batches():
        pooled = part.pooled(tap, "mean").double()
        yield pooled if chosen is None else pooled[chosen[start : start + len(part)]]
        start += len(part)


def _total(traces: Traces, tap: str, chosen: Tensor | None) -> Tensor:
    return torch.stack([pooled.sum(0) for pooled in _pooled(traces, tap, chosen)]).sum(0)
