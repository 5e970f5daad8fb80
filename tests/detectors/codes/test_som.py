"""The batch SOM against MiniSom, against a plain loop of Kohonen's update, and on planted data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from aftershock.detectors.codes.codebook import quantisation_error
from aftershock.detectors.codes.som import SOM, fit_som, initial_prototypes, radii, topographic_error
from minisom import MiniSom


def planted(n: int = 300, d: int = 6, seed: int = 0) -> torch.Tensor:
    """Four clusters of unequal spread."""
    g = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(4, d, generator=g)
    return centres[torch.arange(n) % 4] + torch.randn(n, d, generator=g) * (1 + torch.arange(n) % 2).unsqueeze(1)


def as_minisom(som: SOM) -> MiniSom:
    """MiniSom's grid is indexed [row, column] too, so that the prototypes only change shape."""
    other = MiniSom(som.rows, som.columns, som.prototypes.shape[1], sigma=1.0)
    other._weights = som.prototypes.double().numpy().reshape(som.rows, som.columns, -1).copy()
    return other


@pytest.mark.parametrize(("rows", "columns"), [(4, 6), (5, 3), (1, 7)])
def test_training_is_minisoms_batch_training(rows: int, columns: int) -> None:
    data, epochs = planted(), 8
    ours = fit_som(data, rows, columns, epochs, last_radius=0.7, repairs=0)
    schedule = radii(rows, columns, epochs, last_radius=0.7)
    theirs = as_minisom(SOM(initial_prototypes(data, rows, columns), rows, columns))
    theirs._learning_rate_decay_function = lambda rate, step, steps: 1.0
    theirs._sigma_decay_function = lambda sigma, step, steps: schedule[step]
    theirs.train_batch_offline(data.double().numpy(), epochs)
    expected = theirs.get_weights().reshape(rows * columns, -1)
    # Float32 against float64 over a few updates; a sample between two units may not change its winner here.
    np.testing.assert_allclose(ours.prototypes.numpy(), expected, atol=1e-4)
    winners = [np.ravel_multi_index(theirs.winner(x), (rows, columns)) for x in data.double().numpy()]
    np.testing.assert_array_equal(ours.match(data)[0].numpy(), winners)


def test_training_is_kohonens_update_written_out() -> None:
    data = planted(40, 3)
    rows, columns, epochs = 3, 4, 5
    weights = initial_prototypes(data, rows, columns).double().numpy()
    x = data.double().numpy()
    places = [(u // columns, u % columns) for u in range(rows * columns)]
    for radius in radii(rows, columns, epochs, 2.0, 0.8):
        won = [int(np.argmin([np.sum((s - w) ** 2) for w in weights])) for s in x]
        updated = []
        for place in places:
            share = [math.exp(-(math.dist(place, places[w]) ** 2) / (2 * radius**2)) for w in won]
            updated.append(sum(h * s for h, s in zip(share, x, strict=True)) / sum(share))
        weights = np.array(updated)
    found = fit_som(data, rows, columns, epochs, first_radius=2.0, last_radius=0.8, repairs=0)
    np.testing.assert_allclose(found.prototypes.numpy(), weights, atol=1e-5)


def test_errors_are_minisoms() -> None:
    data, unseen = planted(), planted(200, seed=1)
    som = fit_som(data, 6, 5, 6)
    for x in (data, unseen):
        theirs = as_minisom(som)
        assert quantisation_error(som, x) == pytest.approx(theirs.quantization_error(x.double().numpy()), rel=1e-5)
        assert topographic_error(som, x) == pytest.approx(theirs.topographic_error(x.double().numpy()), abs=1e-9)
    assert 0 < topographic_error(som, unseen) < 1


def test_a_shuffled_map_has_a_large_topographic_error() -> None:
    som = fit_som(planted(), 6, 6)
    order = torch.randperm(36, generator=torch.Generator().manual_seed(0))
    assert topographic_error(SOM(som.prototypes[order], 6, 6), planted()) > topographic_error(som, planted()) + 0.3


def test_a_planted_ring_is_mapped_in_order() -> None:
    g = torch.Generator().manual_seed(0)
    angle = torch.linspace(0, 2 * math.pi, 401)[:-1]
    ring = torch.stack([angle.cos(), angle.sin()], 1) @ torch.randn(2, 10, generator=g)
    som = fit_som(ring, 6, 6, epochs=30, last_radius=1.0)
    assert topographic_error(som, ring) < 0.02
    # Neighbours on the ring are neighbours on the map: what a code shift's distance relies on.
    units = som.match(ring)[0]
    steps = som.grid_distance(units, units.roll(1))
    opposite = som.grid_distance(units, units.roll(200))
    assert steps.mean() < 0.5
    assert opposite.min() > 2


def test_repairs_unfold_a_map_and_leave_one_that_is_not_folded() -> None:
    """Samples of five dimensions fold a map of two; samples of two do not."""
    g = torch.Generator().manual_seed(0)
    deep, flat = torch.randn(2000, 5, generator=g), torch.rand(2000, 2, generator=g)
    before, after = (fit_som(deep, 8, 8, repairs=n) for n in (0, 3))
    assert topographic_error(after, deep) < 0.8 * topographic_error(before, deep)
    assert quantisation_error(after, deep) < 1.05 * quantisation_error(before, deep)
    plain, repaired = (fit_som(flat, 6, 6, repairs=n) for n in (0, 3))
    assert topographic_error(repaired, flat) == 0
    assert quantisation_error(repaired, flat) <= 1.001 * quantisation_error(plain, flat)


def test_training_lowers_the_quantisation_error() -> None:
    data = planted(500, 8)
    start = SOM(initial_prototypes(data, 7, 7), 7, 7)
    assert quantisation_error(fit_som(data, 7, 7), data) < 0.8 * quantisation_error(start, data)


def test_matches_and_distances_are_exact_far_from_the_origin() -> None:
    # |x|^2 + |w|^2 - 2 x.w has a rounding error of about 1 here, the true distances are below 0.2.
    points = torch.tensor([[4096.0, 4096.0], [4096.125, 4096.0], [4096.0, 4096.0625]])
    som = SOM(points, 1, 3)
    units, distances = som.match(points.flip(0))
    assert units.tolist() == [2, 1, 0]
    assert distances.tolist() == [0, 0, 0]
    assert som.second_match(points).tolist() == [2, 0, 0]
    assert som.match(points[:1] + torch.tensor([[0.0, 0.03125]]))[1].tolist() == [0.03125]


def test_an_offset_of_the_data_only_moves_the_map() -> None:
    data = planted()
    near, far = fit_som(data, 4, 4), fit_som(data + 1000, 4, 4)
    np.testing.assert_allclose(far.prototypes.numpy() - 1000, near.prototypes.numpy(), atol=5e-3)


def test_matching_does_not_depend_on_the_batch() -> None:
    data = planted()
    som = fit_som(data, 5, 5)
    units, distances = som.match(data)
    for size in (1, 7):
        parts = [som.match(part) for part in data.split(size)]
        assert torch.equal(torch.cat([p[0] for p in parts]), units)
        assert torch.equal(torch.cat([p[1] for p in parts]), distances)


@pytest.mark.parametrize(
    "data",
    [
        torch.ones(5, 3),
        torch.zeros(1, 1),
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([[0.0], [0.0], [1.0]]),
        torch.tensor([[0.0, 1.0]]).repeat(30, 1).index_add(0, torch.tensor([0]), torch.tensor([[9.0, 9.0]])),
        torch.arange(12.0).reshape(4, 3) * 1e-6 + 7,
        torch.randn(6, 1500, generator=torch.Generator().manual_seed(0)),
    ],
    ids=["constant", "one number", "one sample", "one dimension", "duplicates", "tiny spread", "wide"],
)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 4), (25, 2)])
def test_poor_data_give_a_finite_map(data: torch.Tensor, rows: int, columns: int) -> None:
    som = fit_som(data, rows, columns)
    assert som.prototypes.isfinite().all()
    # Every prototype is a weighted mean of samples, empty units included.
    slack = 1e-5 * (1 + data.abs().max())
    assert (som.prototypes >= data.amin(0) - slack).all()
    assert (som.prototypes <= data.amax(0) + slack).all()
    assert math.isfinite(quantisation_error(som, data))


def test_a_unit_that_wins_nothing_lies_between_its_neighbours() -> None:
    data = torch.tensor([[0.0], [1.0]]).repeat(20, 1)
    som = fit_som(data, 1, 41, last_radius=0.5)
    assert set(som.match(data)[0].tolist()) != set(range(41))
    steps = som.prototypes.flatten().diff()
    assert (steps >= -1e-6).all()


def test_it_is_deterministic_and_draws_nothing() -> None:
    before = torch.get_rng_state()
    first, second = fit_som(planted(), 5, 4), fit_som(planted(), 5, 4)
    assert torch.equal(first.prototypes, second.prototypes)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dimensions", [6, 1200])
def test_the_first_grid_spans_the_principal_plane(dimensions: int) -> None:
    g = torch.Generator().manual_seed(0)
    coordinates = torch.randn(60, 2, generator=g) * torch.tensor([5.0, 2.0])
    data = coordinates @ torch.linalg.qr(torch.randn(dimensions, 2, generator=g)).Q.T + 3
    grid = initial_prototypes(data, 3, 5).double().numpy()
    centred = (data - data.mean(0)).double().numpy()
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    spread = singular[:2] / math.sqrt(60)
    for axis, (first, last) in enumerate([(grid[5], grid[9]), (grid[2], grid[12])]):
        side = last - first
        np.testing.assert_allclose(np.linalg.norm(side), 4 * spread[axis], rtol=1e-3)
        np.testing.assert_allclose(abs(side @ right[axis]), 4 * spread[axis], rtol=1e-3)
        assert side[np.abs(side).argmax()] > 0


def test_the_radius_shrinks_geometrically_from_half_the_longer_side() -> None:
    schedule = radii(4, 10, 5)
    assert schedule[0] == 5
    assert schedule[-1] == pytest.approx(0.85)
    np.testing.assert_allclose(np.diff(np.log(schedule)), np.log(0.85 / 5) / 4)
    assert radii(1, 1, 1) == [0.85]
    assert radii(4, 4, 2, 3.0, 1.0) == [3.0, 1.0]


def test_grid_distances_are_euclidean_on_the_grid() -> None:
    som = SOM(torch.zeros(12, 1), 3, 4)
    a, b = torch.tensor([0, 0, 0, 5]), torch.tensor([0, 3, 11, 10])
    expected = [0, 3, math.hypot(2, 3), math.hypot(1, 1)]
    np.testing.assert_allclose(som.grid_distance(a, b).numpy(), expected, rtol=1e-6)


def test_no_samples_and_one_unit() -> None:
    som = fit_som(planted(), 2, 2)
    units, distances = som.match(torch.empty(0, 6))
    assert units.dtype == torch.int64
    assert units.shape == distances.shape == (0,)
    assert math.isnan(quantisation_error(som, torch.empty(0, 6)))
    single = fit_som(planted(), 1, 1)
    np.testing.assert_allclose(single.prototypes[0].numpy(), planted().mean(0).numpy(), atol=1e-5)
    assert math.isnan(topographic_error(single, planted()))
    with pytest.raises(ValueError, match="no second-best"):
        single.second_match(planted())


@pytest.mark.parametrize(
    ("data", "options", "reason"),
    [
        (torch.empty(0, 3), {}, "at least 1"),
        (torch.zeros(4), {}, "shape"),
        (torch.tensor([[math.nan]]), {}, "finite"),
        (torch.zeros(4, 2), {"epochs": 0}, "at least 1"),
        (torch.zeros(4, 2), {"first_radius": 0.0}, "positive"),
        (torch.zeros(4, 2), {"last_radius": -1.0}, "positive"),
    ],
)
def test_what_cannot_be_fitted_says_why(data: torch.Tensor, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        fit_som(data, 2, 2, **options)


def test_prototypes_must_fit_the_grid() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        SOM(torch.zeros(5, 2), 2, 3)
