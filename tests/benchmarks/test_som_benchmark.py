"""How long fitting a map of 10 x 10 units to 10,000 x 128 numbers takes beside two libraries.

The errors are asserted (a faster map must not be a worse one), times are only recorded: in ``extra_info``, each peer's
seconds over ours, with quantisation and topographic error beside them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from aftershock.detectors.codes.codebook import quantisation_error
from aftershock.detectors.codes.som import SOM, fit_som, initial_prototypes, radii, topographic_error
from minisom import MiniSom
from torch import Tensor

SAMPLES, UNITS, SIDE, EPOCHS, LAST_RADIUS = 10_000, 128, 10, 10, 0.7

# For peers that take the same schedule: the plain batch update.
SAME = {"epochs": EPOCHS, "last_radius": LAST_RADIUS, "repairs": 0}


@pytest.fixture(scope="module")
def data() -> Tensor:
    """Twenty clusters with noise in every direction."""
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(20, UNITS, generator=generator)
    return centres[torch.arange(SAMPLES) % 20] + torch.randn(SAMPLES, UNITS, generator=generator)


def ours_beside(benchmark: Any, data: Tensor, peer: str, theirs: Callable[[], SOM], **options: Any) -> tuple[SOM, SOM]:
    """Measure both; returns our map, fitted with some options, and the peer's."""
    som = benchmark.pedantic(fit_som, (data, SIDE, SIDE), options, rounds=3, warmup_rounds=1)
    began = time.perf_counter()
    other = theirs()
    seconds = time.perf_counter() - began
    for name, found in (("ours", som), (peer, other)):
        benchmark.extra_info[f"{name}_quantisation_error"] = quantisation_error(found, data)
        benchmark.extra_info[f"{name}_topographic_error"] = topographic_error(found, data)
    benchmark.extra_info[f"{peer}_seconds"] = seconds
    if benchmark.stats is not None:
        benchmark.extra_info[f"{peer}_seconds_over_ours"] = seconds / benchmark.stats.stats.median
    return som, other


def as_som(weights: Any) -> SOM:
    return SOM(torch.as_tensor(weights).float().reshape(SIDE * SIDE, UNITS).contiguous(), SIDE, SIDE)


def test_fit_som_beside_minisoms_batch_training(benchmark: Any, data: Tensor) -> None:
    samples = data.double().numpy()

    def theirs() -> SOM:
        # The same start and the same radii, or the errors would compare schedules and not implementations.
        other = MiniSom(SIDE, SIDE, UNITS)
        schedule = radii(SIDE, SIDE, EPOCHS, last_radius=LAST_RADIUS)
        other._weights = initial_prototypes(data, SIDE, SIDE).double().numpy().reshape(SIDE, SIDE, UNITS).copy()
        other._learning_rate_decay_function = lambda rate, step, steps: 1.0
        other._sigma_decay_function = lambda sigma, step, steps: schedule[step]
        other.train_batch_offline(samples, EPOCHS)
        return as_som(other.get_weights())

    som, other = ours_beside(
        benchmark, data, "minisom_batch", theirs, epochs=EPOCHS, last_radius=LAST_RADIUS, repairs=0
    )
    assert quantisation_error(som, data) == pytest.approx(quantisation_error(other, data), rel=1e-3)
    assert quantisation_error(som, data) < 0.5 * quantisation_error(SOM(data.mean(0, keepdim=True), 1, 1), data)


def test_fit_som_beside_minisoms_online_training(benchmark: Any, data: Tensor) -> None:
    samples = data.double().numpy()

    def theirs() -> SOM:
        # Its own schedule, which ends at a third of the first radius: here at ours, or errors could not be compared.
        other = MiniSom(SIDE, SIDE, UNITS, sigma=3 * LAST_RADIUS, learning_rate=0.5, random_seed=0)
        other.pca_weights_init(samples)
        other.train_random(samples, SAMPLES)
        return as_som(other.get_weights())

    som, other = ours_beside(
        benchmark, data, "minisom_online", theirs, epochs=EPOCHS, last_radius=LAST_RADIUS, repairs=0
    )
    assert quantisation_error(som, data) <= 1.001 * quantisation_error(other, data)


def test_fit_som_beside_torchsom(benchmark: Any, data: Tensor) -> None:
    core = pytest.importorskip("torchsom.core", reason="torchsom is not installed")

    def theirs() -> SOM:
        other = core.SOM(
            x=SIDE, y=SIDE, num_features=UNITS, epochs=EPOCHS, batch_size=256, sigma=3 * LAST_RADIUS, learning_rate=0.5,
            initialization_mode="pca", device="cpu", random_seed=0,
        )  # fmt: skip
        other.initialize_weights(data)
        other.fit(data, verbose=False)
        return as_som(other.weights.detach())

    # Fewer epochs of ours give no larger error than theirs.
    som, other = ours_beside(benchmark, data, "torchsom", theirs, epochs=5)
    assert quantisation_error(som, data) <= quantisation_error(other, data)
    assert topographic_error(som, data) <= 0.02
