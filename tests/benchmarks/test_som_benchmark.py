"""How long fitting a map takes beside MiniSom's batch training of the same schedule; nothing here asserts a time."""

from __future__ import annotations

import time

import pytest
import torch
from aftershock.detectors.codes.som import SOM, fit_som, initial_prototypes, quantisation_error, radii
from minisom import MiniSom

SAMPLES, UNITS, SIDE, EPOCHS, LAST_RADIUS = 2000, 64, 10, 10, 0.7


def test_fit_som_beside_minisom(benchmark) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(20, UNITS, generator=generator)
    data = centres[torch.arange(SAMPLES) % 20] + torch.randn(SAMPLES, UNITS, generator=generator)
    som = benchmark.pedantic(
        fit_som, (data, SIDE, SIDE, EPOCHS), {"last_radius": LAST_RADIUS}, rounds=5, warmup_rounds=1
    )

    # The same start and the same radii, or the errors would compare schedules and not implementations.
    other = MiniSom(SIDE, SIDE, UNITS)
    schedule = radii(SIDE, SIDE, EPOCHS, last_radius=LAST_RADIUS)
    start = SOM(initial_prototypes(data, SIDE, SIDE), SIDE, SIDE)
    other._weights = start.prototypes.double().numpy().reshape(SIDE, SIDE, UNITS).copy()
    other._learning_rate_decay_function = lambda rate, step, steps: 1.0
    other._sigma_decay_function = lambda sigma, step, steps: schedule[step]
    samples = data.double().numpy()
    began = time.perf_counter()
    other.train_batch_offline(samples, EPOCHS)
    theirs = time.perf_counter() - began

    errors = quantisation_error(som, data), float(other.quantization_error(samples))
    benchmark.extra_info["quantisation_error"] = errors[0]
    benchmark.extra_info["minisom_quantisation_error"] = errors[1]
    benchmark.extra_info["minisom_seconds"] = theirs
    if benchmark.stats is not None:
        benchmark.extra_info["minisom_seconds_over_ours"] = theirs / benchmark.stats.stats.median
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)
    assert errors[0] < 0.5 * quantisation_error(SOM(data.mean(0, keepdim=True), 1, 1), data)
