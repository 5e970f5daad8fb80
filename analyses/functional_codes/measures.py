"""Statistics of coded layers: what a code says about a class, how many codes there are, how wide a cloud is."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...detectors.codes.codebook import Codebook
from ...detectors.codes.som import SOM
from ...harness.statistics.intervals import Estimate, jackknife

# Parts of the images of which each is left out once.
_GROUPS = 10


def mutual_information(units: Tensor, classes: Tensor) -> float:
    """Adjusted mutual information of two codings of the same images (n,): 0 by chance, 1 where they are the same.

    Plain mutual information grows with the number of units where images are few; the expectation under random
    pairings with the same counts is subtracted (Vinh, Epps and Bailey 2010). The numbers are those of scikit-learn's
    ``adjusted_mutual_info_score``, whose checks take longer than the sums in hundreds of calls.
    """
    from sklearn.metrics.cluster import expected_mutual_information

    _, first = units.unique(return_inverse=True)
    _, second = classes.unique(return_inverse=True)
    if not len(units) or int(first.max()) == int(second.max()) == 0:
        return 1.0
    table = class_counts(first, second, (int(second.max()) + 1, int(first.max()) + 1))
    joint, rows, columns = (entropy(x) * math.log(2) for x in (table.flatten(), table.sum(1), table.sum(0)))
    expected = float(expected_mutual_information(table.numpy(), len(units)))
    possible = (rows + columns) / 2 - expected
    # Codings that differ for every image can do no better than chance: keep the sign and do not divide by 0.
    tiny = torch.finfo(torch.float64).eps
    return (rows + columns - joint - expected) / (min(possible, -tiny) if possible < 0 else max(possible, tiny))


def highest_information(units: Tensor, classes: Tensor) -> float:
    """The adjusted mutual information that units with the same counts would have if each held one class only.

    Below 1 where units are more than classes: a class on several units leaves the unit open. NaN where nothing can be
    known.
    """
    from sklearn.metrics.cluster import expected_mutual_information

    counts = [x.unique(return_counts=True)[1] for x in (classes, units)]
    if min(len(x) for x in counts) < 2:
        return math.nan
    entropies = [entropy(x) * math.log(2) for x in counts]
    rows, columns = (x.unique(return_inverse=True)[1] for x in (classes, units))
    table = class_counts(columns, rows, (len(counts[0]), len(counts[1])))
    expected = float(expected_mutual_information(table.numpy(), len(units)))
    possible = sum(entropies) / 2 - expected
    return (min(entropies) - expected) / possible if possible > 0 else math.nan


def over_images(statistic: Callable[[Tensor], float], count: int) -> Estimate:
    """A statistic of all of ``count`` images with its 95 % interval, by leaving out every tenth image in turn.

    Not a bootstrap: images that are drawn twice share their unit and their class, which would look like information.

    Args:
        statistic: positions of images (int64) to a number.
        count: how many images there are.
    """
    every = torch.arange(count)
    value = statistic(every)
    groups = min(_GROUPS, count)
    if groups < 2 or not math.isfinite(value):
        return Estimate(value)
    return jackknife(value, np.array([statistic(every[every % groups != g]) for g in range(groups)]))


def columns(name: str, found: Estimate, value: str = "") -> dict[str, float]:
    """An estimate as columns of a table: its number under ``name`` or another one, and its ends."""
    return dict(zip((value or name, f"{name}_low", f"{name}_high"), found.ends, strict=True))


def class_counts(units: Tensor, classes: Tensor, size: tuple[int, int]) -> Tensor:
    """How many images of each class lie on each unit, int64 ``size`` = (classes, units)."""
    return torch.bincount(classes * size[1] + units, minlength=size[0] * size[1]).reshape(size)


def majority_classes(counts: Tensor, prototypes: Tensor) -> Tensor:
    """The majority class of each unit, int64 (units,), from :func:`class_counts`.

    A unit without images takes the class of the occupied unit whose prototype is nearest.
    """
    occupied = (counts.sum(0) > 0).nonzero().squeeze(1)
    nearest = Codebook(prototypes.cpu()[occupied]).match(prototypes.cpu())[0]
    # Two units may share a prototype: an occupied one keeps its own images.
    nearest[occupied] = torch.arange(len(occupied))
    return counts[:, occupied].argmax(0)[nearest]


def entropy(counts: Tensor) -> float:
    """Entropy of counts (k,) in bits."""
    shares = counts.double() / counts.sum()
    return float(-torch.special.xlogy(shares, shares).sum() / math.log(2)) + 0.0


def relative_error(book: Codebook, x: Tensor, centre: Tensor) -> float:
    """Quantisation error on samples (n, d), divided by their mean distance to ``centre`` (d,), a lone code."""
    alone = float(torch.linalg.vector_norm(x - centre, dim=1).double().mean())
    return float(book.match(x)[1].double().mean()) / alone if alone > 0 else math.nan


def gaussian_like(x: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """``count`` samples of the normal distribution with mean and covariance of samples (n, d), float32 (count, d).

    Such a cloud has no clusters: what codes gain on it, they gain without finding patterns.
    """
    mean = x.mean(0)
    mixed = torch.randn(count, len(x), generator=draws).to(x) @ (x - mean) / math.sqrt(max(1, len(x) - 1))
    return mixed + mean


def participation_ratio(x: Tensor) -> float:
    """(Σλ)² / Σλ² of the eigenvalues λ of the covariance of samples (n, d); NaN where nothing varies.

    d for a cloud that is equally wide in d directions, 1 for a line. No decomposition is needed: Σλ is the trace and
    Σλ² the squared Frobenius norm.
    """
    centred = (x.double() - x.double().mean(0)) if len(x) else x.double()
    # The same non-zero eigenvalues, whichever side is smaller.
    product = centred.T @ centred if x.shape[1] <= len(x) else centred @ centred.T
    trace, squares = float(product.diagonal().sum()), float(product.square().sum())
    return trace * trace / squares if squares > 0 else math.nan


def components_for(x: Tensor, share: float) -> int:
    """How many principal components hold ``share`` of the variance of samples (n, d); 0 where nothing varies."""
    centred = x.double() - x.double().mean(0)
    product = centred.T @ centred if x.shape[1] <= len(x) else centred @ centred.T
    variances = torch.linalg.eigvalsh(product).clamp(min=0).flip(0)
    if not bool(variances.sum() > 0):
        return 0
    reached = variances.cumsum(0) >= share * variances.sum() * (1 - 1e-12)
    return int(reached.to(torch.uint8).argmax()) + 1


def mean_cosine(x: Tensor) -> float:
    """Mean cosine between two different rows of (n, d); rows of zeros are left out; NaN for fewer than two."""
    norms = torch.linalg.vector_norm(x.double(), dim=1, keepdim=True)
    unit = (x.double() / norms.clamp(min=1e-300))[norms.squeeze(1) > 0]
    n = len(unit)
    return (float(unit.sum(0).square().sum()) - n) / (n * (n - 1)) if n > 1 else math.nan


def neighbour_distances(som: SOM) -> Tensor:
    """The U-matrix: each prototype's mean distance to those beside, above and below it, float32 (rows, columns).

    Source: Ultsch and Siemon 1990. NaN for a map of one unit.
    """
    grid = som.prototypes.cpu().reshape(som.rows, som.columns, -1)
    sums, counts = torch.zeros(som.rows, som.columns), torch.zeros(som.rows, som.columns)
    down = torch.linalg.vector_norm(grid[1:] - grid[:-1], dim=2)
    across = torch.linalg.vector_norm(grid[:, 1:] - grid[:, :-1], dim=2)
    for found, first, second in (
        (down, (slice(1, None), slice(None)), (slice(None, -1), slice(None))),
        (across, (slice(None), slice(1, None)), (slice(None), slice(None, -1))),
    ):
        for place in (first, second):
            sums[place] += found
            counts[place] += 1
    return sums / counts


def class_distances(som: SOM, units: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean distance on the map between two images of one class, and between two of different classes.

    Args:
        som: the map.
        units: of the images, int64 (n,).
        labels: int64 (n,).

    Returns:
        in grid steps; NaN where there is no such pair.
    """
    classes = int(labels.max()) + 1 if len(labels) else 1
    counts = class_counts(units.cpu(), labels, (classes, som.units)).double()
    every = torch.arange(som.units)
    steps = som.grid_distance(every[:, None], every).double()
    # An image is at distance 0 from itself: only the number of pairs must leave it out.
    sums = counts @ steps @ counts.T
    sizes = counts.sum(1)
    same_pairs = float((sizes * (sizes - 1)).sum())
    other_pairs = float(sizes.sum() ** 2 - sizes.square().sum())
    same = float(sums.diagonal().sum())
    other = float(sums.sum()) - same
    return (same / same_pairs if same_pairs else math.nan, other / other_pairs if other_pairs else math.nan)


def variance_share(values: Tensor, units: Tensor, count: int) -> float:
    """The share of the variance of values (n, p) that lies between units, corrected for the number of occupied ones.

    Kelley's adjusted correlation ratio: 0 on average for units that say nothing about the values; NaN where it is not
    defined.
    """
    n = len(values)
    centred = values.double() - values.double().mean(0)
    sums = torch.zeros(count, values.shape[1], dtype=torch.float64).index_add_(0, units, centred)
    sizes = torch.bincount(units, minlength=count)
    total = float(centred.square().sum())
    within = total - float((sums.square().sum(1) / sizes.clamp(min=1)).sum())
    occupied = int((sizes > 0).sum())
    if n <= occupied or not total > 0:
        return math.nan
    return 1 - (within / (n - occupied)) / (total / (n - 1))


def divergence(units: Tensor, groups: Tensor, reference: Tensor) -> float:
    """How far groups of images lie from the units of their class: Jensen-Shannon distance (base 2, 0 to 1).

    The distance is taken class by class and averaged with the number of images, since all classes together occupy
    nearly the same units whoever moved where. It is above 0 also for two samples of one distribution, the more the
    fewer images there are: compare it only with a control of as many.

    Args:
        units: of the images, int64 (n,).
        groups: which class each is compared with, int64 (n,).
        reference: clean images by class and unit, (classes, units).

    Returns:
        NaN without images of a class that the reference knows.
    """
    from scipy.spatial.distance import jensenshannon

    counts = class_counts(units, groups, (reference.shape[0], reference.shape[1])).double()
    weights = counts.sum(1)
    known = (weights > 0) & (reference.sum(1) > 0)
    if not bool(known.any()):
        return math.nan
    distances = jensenshannon(counts[known].numpy(), reference[known].double().numpy(), base=2, axis=1)
    return float((torch.from_numpy(distances) * weights[known]).sum() / weights[known].sum())
