"""k-means centroids against scikit-learn and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from aftershock.detectors.codes.codebook import quantisation_error
from aftershock.detectors.codes.kmeans import fit_kmeans
from scipy.cluster.vq import vq
from sklearn.cluster import KMeans
from support.generators import generator_states


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clusters(n: int = 240, d: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    centres = 10 * torch.randn(6, d, generator=seeded(1))
    return centres, centres[torch.arange(n) % 6] + 0.1 * torch.randn(n, d, generator=seeded(2))


def test_planted_clusters_are_found() -> None:
    centres, data = clusters()
    book = fit_kmeans(data, 6, seeded())
    nearest = book.distances(centres).min(1)
    assert nearest.indices.unique().numel() == 6
    assert float(nearest.values.max()) < 0.1


def test_the_inertia_is_no_worse_than_scikit_learns() -> None:
    data = torch.randn(300, 8, generator=seeded(3))
    book = fit_kmeans(data, 20, seeded())
    ours = float(book.match(data)[1].double().square().sum())
    single = [KMeans(20, n_init=1, random_state=s).fit(data.double().numpy()).inertia_ for s in range(10)]
    assert ours < np.mean(single)
    # Lloyd's algorithm stops at a fixed point: every centroid is the mean of its samples.
    units = book.match(data)[0]
    means = torch.stack([data[units == u].mean(0) for u in range(20)])
    torch.testing.assert_close(book.prototypes, means, atol=2e-2, rtol=0)


def test_matches_are_scipys() -> None:
    _, data = clusters()
    book = fit_kmeans(data, 9, seeded())
    units, distances = book.match(data)
    expected = vq(data.double().numpy(), book.prototypes.double().numpy())
    np.testing.assert_array_equal(units.numpy(), expected[0])
    np.testing.assert_allclose(distances.numpy(), expected[1], rtol=1e-4)
    assert quantisation_error(book, data) == pytest.approx(expected[1].mean(), rel=1e-5)


def test_the_generator_decides_and_the_global_states_stay() -> None:
    data = torch.randn(200, 4, generator=seeded(4))
    before = generator_states()
    first, again, other = (fit_kmeans(data, 12, seeded(s)).prototypes for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert generator_states() == before


def test_fewer_distinct_samples_than_units_give_fewer_units() -> None:
    data = torch.tensor([[0.0, 0], [1, 0], [0, 0], [0, 3]])
    book = fit_kmeans(data, 8, seeded())
    assert book.units == 3
    assert quantisation_error(book, data) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("data", "units", "reason"),
    [
        (torch.zeros(0, 3), 2, "at least 1"),
        (torch.zeros(3), 2, r"\(n, d\)"),
        (torch.full((3, 2), torch.nan), 2, "finite"),
        (torch.zeros(3, 2), 0, "at least one centroid"),
    ],
)
def test_what_cannot_be_fitted_says_why(data: torch.Tensor, units: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        fit_kmeans(data, units, seeded())
