"""All-pairs Hamming distances of packed bits beside SciPy's and faiss's; nothing here asserts a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from aftershock.harness.tracing.bits import hamming, pack
from support.timing import beside

IMAGES, UNITS = 1000, 16_384


@pytest.fixture(scope="module")
def bits() -> torch.Tensor:
    return torch.rand(IMAGES, UNITS, generator=torch.Generator().manual_seed(0)) < 0.3


@pytest.mark.parametrize("sets", [1, 2])
def test_hamming_beside_scipys(benchmark: Any, bits: torch.Tensor, sets: int) -> None:
    from scipy.spatial.distance import cdist, pdist

    others = bits if sets == 1 else bits.flip(1)
    a = pack(bits)
    b = a if sets == 1 else pack(others)
    rows, columns = bits.numpy(), others.numpy()
    theirs = {1: lambda: pdist(rows, "hamming"), 2: lambda: cdist(rows, columns, "hamming")}[sets]
    beside(benchmark, lambda: hamming(a, b, UNITS), {"scipy": theirs}, 1)
    expected = np.rint(cdist(rows[:100], columns[:100], "hamming") * UNITS)
    np.testing.assert_array_equal(hamming(a, b, UNITS)[:100, :100].numpy(), expected)


@pytest.mark.parametrize("sets", [1, 2])
def test_hamming_beside_faiss(benchmark: Any, bits: torch.Tensor, sets: int) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss is not installed")
    a = pack(bits)
    b = a if sets == 1 else pack(bits.flip(1))
    faiss.omp_set_num_threads(1)
    index = faiss.IndexBinaryFlat(UNITS)
    index.add(b.numpy())
    benchmark.extra_info["faiss"] = faiss.__version__
    # The nearest alone spares faiss the sorting of all; it is what a nearest-pattern detector needs.
    peers = {"faiss_all": lambda: index.search(a.numpy(), IMAGES), "faiss_nearest": lambda: index.search(a.numpy(), 1)}
    beside(benchmark, lambda: hamming(a, b, UNITS), peers)
    distances, _ = index.search(a.numpy(), IMAGES)
    np.testing.assert_array_equal(hamming(a, b, UNITS).sort(1).values.numpy(), distances)
