"""Similarity graphs of images and their Fiedler partition: what :mod:`~aftershock.analyses.rdm` computes at each tap.

All arrays are NumPy and float64 unless said otherwise. Nothing here sees a label but :func:`agreement` and
:func:`permuted`, which judge a partition that is already made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...harness.statistics.intervals import Estimate, jackknife
from ...harness.tracing import bits

Array = NDArray[np.float64]
Signs = NDArray[np.int8]
Flags = NDArray[np.bool_]

# Eigenvalues closer than this, by the Laplacian's bound, count as one: LAPACK errs by about 1e-15 times the size.
_TIED = 1e-9
# An entry of the Fiedler vector below this, by the largest, is 0: its image belongs to neither side.
_ZERO = 1e-9


@dataclass(frozen=True, eq=False)
class Partition:
    """A graph in two parts.

    Attributes:
        vector: (n,), the Fiedler vector f; for the normalised Laplacian that of the random walk, D^(-1/2) v. Defined
            but for its sign; all 0 where the graph has none of its own.
        sides: int8 (n,), its signs: -1, 1, or 0 for an image on neither side.
    """

    vector: Array
    sides: Signs

    @property
    def smaller(self) -> float:
        """The share of images in the smaller part; 0 where there is no partition."""
        ahead, behind = int((self.sides > 0).sum()), int((self.sides < 0).sum())
        return min(ahead, behind) / max(1, len(self.sides))

    @property
    def unique(self) -> bool:
        """Whether the graph has a Fiedler vector."""
        return bool(self.sides.any())


def matching(packed: Tensor, others: Tensor, units: int) -> Array:
    """The shares of units in which packed rows (n, bytes) and (m, bytes) agree: (n, m), from 0 to 1."""
    return 1 - bits.hamming(packed, others, units).double().cpu().numpy() / units


def overlap(packed: Tensor, units: int) -> Array:
    """Jaccard similarities between all pairs of packed rows (n, bytes): (n, n), from 0 to 1."""
    found: Array = bits.jaccard(packed, packed, units).cpu().numpy()
    return found


def cosine(values: Tensor) -> Array:
    """Cosine similarities between all pairs of rows (n, d): (n, n), from 0 to 1.

    A negative cosine, which ReLU activations never have, is no edge. Rows of zeros are alike, and unlike all others.
    """
    norms = values.double().norm(dim=1)
    dead = norms == 0
    unit = values.double() / norms.clamp(min=1e-300).unsqueeze(1)
    found = (unit @ unit.T).clamp(0, 1)
    found[dead.unsqueeze(1) & dead] = 1.0
    alike: Array = found.cpu().numpy()
    return alike


def fiedler(similarities: Array, normalised: bool = True) -> Partition:
    """Split a graph by the signs of the second eigenvector of its Laplacian (Fiedler 1973; Shi & Malik 2000).

    L = D - W, or normalised I - D^(-1/2) W D^(-1/2), with the similarities as weights W, no image its own neighbour,
    and D their row sums. The first eigenvector is known (1, or D^(1/2) 1) and is moved out of the way, so that a graph
    of two components is split into them, whatever basis LAPACK would choose for the eigenvalue 0.

    An image without a neighbour belongs to neither side. Nor does any image of a graph whose second eigenvalue
    repeats (all similarities equal, three components or more): no direction is better than others there, and the one
    that LAPACK returns may follow the order of the rows, hence the classes.

    Args:
        similarities: (n, n), symmetric, not negative; the diagonal does not matter.
        normalised: which Laplacian.

    Returns:
        The same partition, but for rounding, in every order of the images. Cost O(n^3).
    """
    from scipy.linalg import eigh
    from scipy.sparse import csgraph

    n = len(similarities)
    nothing = Partition(np.zeros(n), np.zeros(n, np.int8))
    linked = similarities.sum(1) - similarities.diagonal() > 0
    weights = similarities[np.ix_(linked, linked)]
    if len(weights) < 2:
        return nothing
    # With the normalised Laplacian SciPy returns the roots of the degrees, else the degrees.
    laplacian, scale = csgraph.laplacian(weights, normed=normalised, return_diag=True)
    first = scale if normalised else np.ones(len(weights))
    first = first / np.linalg.norm(first)
    bound = 2.0 if normalised else 2 * float(scale.max())
    # Above every other eigenvalue, which are at most the bound.
    laplacian += 2 * bound * np.outer(first, first)
    values, vectors = eigh(laplacian, subset_by_index=[0, min(1, len(weights) - 2)], overwrite_a=True)
    if len(values) > 1 and values[1] - values[0] <= _TIED * bound:
        return nothing
    vector = vectors[:, 0] / scale if normalised else vectors[:, 0]
    vector = np.where(np.abs(vector) > _ZERO * np.abs(vector).max(), vector, 0.0)
    whole = np.zeros(n)
    whole[linked] = vector
    return Partition(whole, np.sign(whole).astype(np.int8))


def extend(partition: Partition, similarities: Array) -> Signs:
    """The sides on which other images fall, by the Nyström extension of the Fiedler vector.

    f(x) is proportional to the sum of w(x, j) f(j) (Bengio et al. 2004), with a positive factor for similarities that
    are kernels, as matching, Jaccard and cosine are. The partition stays as it is. An image that shall have no say
    weighs as much as the others do on average: without any weight, it would push away its own copy, as the weighted
    sum of f over all images is 0.

    Args:
        partition: of n images.
        similarities: (m, n), of m other images to them; NaN where an image shall have no say.

    Returns:
        int8 (m,): -1, 1, or 0 for neither.
    """
    unknown = np.isnan(similarities)
    rest = np.nansum(similarities, axis=1, keepdims=True) / np.maximum(1, (~unknown).sum(1, keepdims=True))
    found: Signs = np.sign(np.where(unknown, rest, similarities) @ partition.vector).astype(np.int8)
    return found


def agreement(partition: Partition, truth: NDArray[np.integer]) -> Array:
    """How well a partition agrees with two groups: the better of the two ways to name its sides.

    Args:
        partition: of n images.
        truth: (n,) or (n, k), -1 and 1: one or several ways to group them.

    Returns:
        () or (k,), from 0.5 to 1; an image on neither side counts as half right.
    """
    # The sum of products is (right - wrong), whichever way the sides are named.
    balance = partition.sides.astype(np.float64) @ truth.astype(np.float64)
    found: Array = 0.5 + np.abs(balance) / (2 * len(partition.sides))
    return found


def orientation(partition: Partition, truth: NDArray[np.integer]) -> int:
    """1 where the positive side of a partition is group 1 of ``truth`` (n,), -1 where it is group -1, 0: neither."""
    return int(np.sign(partition.sides.astype(np.int64) @ truth.astype(np.int64)))


def truth_of(images: int) -> Signs:
    """Two groups of so many images each, one after the other: int8 (2 images,), -1 and 1."""
    return np.repeat(np.array([-1, 1], np.int8), images)


def permuted(images: int, permutations: int, draws: torch.Generator) -> Signs:
    """Random groupings of 2 ``images`` into halves: int8 (2 images, permutations)."""
    order = torch.rand(2 * images, permutations, generator=draws).argsort(0)
    return torch.where(order < images, -1, 1).to(torch.int8).numpy()


def class_interval(
    values: Array, members: Sequence[tuple[int, ...]], bounds: tuple[float, float] = (0.0, 1.0)
) -> Estimate:
    """A mean over pairs of classes, and its interval by the jackknife over classes.

    Pairs that share a class are not independent, which a standard error over pairs would take them to be: each class
    is left out in turn with all its pairs. There is no interval for fewer than three classes.

    Args:
        values: (p,).
        members: the classes that each value belongs to: one, or the two of a pair.
        bounds: that a mean cannot leave.
    """
    classes = sorted({c for group in members for c in group})
    if len(classes) < 3:
        return Estimate(float(values.mean()))
    without = [values[[c not in group for group in members]].mean() for c in classes]
    return jackknife(float(values.mean()), np.array(without)).within(*bounds)
