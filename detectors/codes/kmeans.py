"""k-means centroids: codes without a map, the control for what a map's topology adds."""

from __future__ import annotations

import torch
from torch import Tensor

from .codebook import Codebook

_STARTS = 3


def fit_kmeans(data: Tensor, units: int, generator: torch.Generator) -> Codebook:
    """Lloyd's algorithm from the best of three k-means++ starts (scikit-learn's ``KMeans``).

    Args:
        data: samples of shape (n, d), n of at least 1.
        units: how many centroids; fewer come back where fewer samples differ.
        generator: draws the seed (CPU).

    Raises:
        ValueError: for data that are empty or not finite.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    if data.ndim != 2 or not data.numel():
        raise ValueError(f"fit_kmeans takes samples (n, d) with n and d of at least 1, not {tuple(data.shape)}")
    if units < 1:
        raise ValueError("fit_kmeans finds at least one centroid")
    samples = data.detach().cpu().double()
    if not bool(samples.isfinite().all()):
        raise ValueError("fit_kmeans takes finite data")
    seed = int(torch.randint(2**31, (), generator=generator))
    units = min(units, len(torch.unique(samples, dim=0)))
    # Threads add up their parts of a centroid in any order: one thread keeps the last digits the same.
    with threadpool_limits(1):
        found = KMeans(units, n_init=_STARTS, random_state=seed).fit(samples.numpy())
    return Codebook(torch.from_numpy(found.cluster_centers_).float().to(data.device))
