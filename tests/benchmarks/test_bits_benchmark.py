"""All-pairs Hamming distances of packed bits beside SciPy's and faiss's; nothing here asserts a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from aftershock.harness.tracing.bits import hamming, pack

IMAGES, UNITS = 1000, 16_384


@pytest.fixture(scope="module")
def bits() -> torch.Tensor:
    return torch.rand(IMAGES, UNITS, generator=torch.Generator().manual_seed(0)) < 0.3


def fastest(run: Callable[[], Any], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def record(benchmark: Any, name: str, theirs: Callable[[], Any], rounds: int) -> None:
    """The fastest round of each side: what else the machine does only adds."""
    if benchmark.stats is None:
        return
    seconds = fastest(theirs, rounds)
    benchmark.extra_info[f"{name}_seconds"] = seconds
    benchmark.extra_info[f"{name}_seconds_over_ours"] = seconds / benchmark.stats.stats.min


def test_one_set_beside_scipys_pdist(benchmark: Any, bits: torch.Tensor) -> None:
    from scipy.spatial.distance import pdist, squareform

    packed = pack(bits)
    found = benchmark.pedantic(hamming, (packed, packed, UNITS), rounds=3, warmup_rounds=1)
    rows = bits.numpy()
    record(benchmark, "scipy_pdist", lambda: pdist(rows, "hamming"), 1)
    part = squareform(np.rint(pdist(rows[:100], "hamming") * UNITS))
    np.testing.assert_array_equal(found[:100, :100].numpy(), part)


def test_two_sets_beside_scipys_cdist(benchmark: Any, bits: torch.Tensor) -> None:
    from scipy.spatial.distance import cdist

    packed, other = pack(bits), pack(bits.flip(1))
    found = benchmark.pedantic(hamming, (packed, other, UNITS), rounds=3, warmup_rounds=1)
    rows, others = bits.numpy(), bits.flip(1).numpy()
    record(benchmark, "scipy_cdist", lambda: cdist(rows, others, "hamming"), 1)
    expected = np.rint(cdist(rows[:30], others[:30], "hamming") * UNITS)
    np.testing.assert_array_equal(found[:30, :30].numpy(), expected)


def test_two_sets_beside_faiss(benchmark: Any, bits: torch.Tensor) -> None:
    faiss = pytest.importorskip("faiss")
    packed, other = pack(bits), pack(bits.flip(1))
    found = benchmark.pedantic(hamming, (packed, other, UNITS), rounds=3, warmup_rounds=1)
    faiss.omp_set_num_threads(1)
    index = faiss.IndexBinaryFlat(UNITS)
    index.add(other.numpy())
    record(benchmark, "faiss_all", lambda: index.search(packed.numpy(), IMAGES), 3)
    # The nearest alone spares faiss the sorting of all; it is what a nearest-pattern detector needs.
    record(benchmark, "faiss_nearest", lambda: index.search(packed.numpy(), 1), 3)
    distances, _ = index.search(packed.numpy(), IMAGES)
    np.testing.assert_array_equal(found.sort(1).values.numpy(), distances)
