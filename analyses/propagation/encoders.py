"""What the propagation report learns about a model's taps from clean images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...detectors.codes.latent import PCA, Standardiser, fit_pca, fit_standardiser
from ...detectors.codes.som import SOM, fit_som
from ...harness.core.errors import UsageError
from ...harness.tracing.traces import Need, Traces

NEEDS = (Need("bits"), Need("pooled"), Need("full", units=256))
"""What traces must hold to be encoded and compared."""

_LATENT = 16
_GRID = 8
# Enough for 64 units; a longer fit set is thinned evenly, so that memory and time stay bounded.
_SOM_IMAGES = 4000


@dataclass(frozen=True, eq=False)
class TapEncoder:
    """What was learned about one tap from clean images.

    Attributes:
        standardiser: of the pooled means.
        som: over standardised pooled means.
        pca: of the full codes (sampled units).
        centroids: (classes that have one, maps): mean standardised pooled means by class.
    """

    standardiser: Standardiser
    som: SOM
    pca: PCA
    centroids: Tensor


@dataclass(frozen=True, eq=False)
class Encoders:
    """The encoders of all taps, in execution order."""

    taps: Mapping[str, TapEncoder]


def fit_encoders(clean: Traces) -> Encoders:
    """Learn the encoders from clean fit images, tap by tap; nothing is drawn at random.

    The map has 8 × 8 units, fewer below 164 images (5 √n units: Vesanto's rule) and never more than images. The
    latent space has up to 16 principal components. Class centroids come from images that the model gets right (from
    predicted classes where it gets none right).

    Args:
        clean: traces with labels that hold :data:`NEEDS`.

    Raises:
        UsageError: without an image.
    """
    if not len(clean):
        raise UsageError("The propagation report learns from clean fit images and there are none: raise fit in [data].")
    right = clean.predictions == clean.labels
    groups = clean.labels.where(right, -1) if bool(right.any()) else clean.predictions
    return Encoders({tap: _fit_tap(clean, tap, groups) for tap in clean.tap_names("all")})


def _fit_tap(clean: Traces, tap: str, groups: Tensor) -> TapEncoder:
    n = len(clean)
    standardiser = fit_standardiser(part.pooled(tap, "mean") for part in clean.batches())
    classes = torch.unique(groups[groups >= 0])
    sums = torch.zeros(len(classes), len(standardiser.mean), dtype=torch.float64)
    step = -(-n // _SOM_IMAGES)
    thinned = []
    start = 0
    for part in clean.batches():
        pooled = standardiser.apply(part.pooled(tap, "mean"))
        member = (groups[start : start + len(part)] == classes.unsqueeze(1)).double()
        sums += member @ pooled.double()
        thinned.append(pooled[-start % step :: step])
        start += len(part)
    counts = (groups == classes.unsqueeze(1)).sum(1, keepdim=True)
    side = min(_GRID, math.isqrt(min(n, int(5 * math.sqrt(n)))))
    return TapEncoder(
        standardiser,
        fit_som(torch.cat(thinned), side, side),
        fit_pca(lambda: (part.full(tap) for part in clean.batches()), _LATENT),
        (sums / counts).float(),
    )
