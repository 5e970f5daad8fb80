"""All-pairs counts of packed bits against SciPy and plain NumPy, on every path that computes them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from aftershock.harness.tracing import bits as codes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist

PAIRS = st.integers(1, 60).flatmap(
    lambda units: st.tuples(
        arrays(np.bool_, st.tuples(st.integers(0, 5), st.just(units))),
        arrays(np.bool_, st.tuples(st.integers(1, 5), st.just(units))),
    )
)


def packed(array: np.ndarray) -> torch.Tensor:
    return codes.pack(torch.from_numpy(array))


@pytest.fixture(params=["popcount", "table", "digits", "plain", "int8"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every way in which intersections are counted, with tiles and strips so small that all borders are crossed."""
    monkeypatch.setattr(codes, "_ROWS", 70)
    monkeypatch.setattr(codes, "_STRIP", 9)
    monkeypatch.setattr(codes, "_FEW", 1 << 30 if request.param in ("popcount", "table") else 0)
    if request.param == "table":
        monkeypatch.setattr(codes, "_bitwise_count", None)
    monkeypatch.setattr(codes, "_keeps_24_bits", lambda: request.param == "digits")
    monkeypatch.setattr(codes, "_multiplies_int8", lambda: request.param == "int8")
    return str(request.param)


@pytest.mark.parametrize(("n", "m", "units"), [(1, 1, 1), (3, 150, 77), (150, 75, 1001), (71, 5, 4096)])
def test_every_path_counts_the_same(path: str, n: int, m: int, units: int) -> None:
    draw = np.random.default_rng(n)
    a, b = draw.random((n, units)) < 0.4, draw.random((m, units)) < 0.7
    found = codes.intersections(packed(a), packed(b), units, 256)
    assert found.dtype == torch.int32
    np.testing.assert_array_equal(found.numpy(), a.astype(int) @ b.T.astype(int))
    np.testing.assert_array_equal(codes.hamming(packed(a), packed(b), units).numpy(), cdist(a, b, "cityblock"))


def test_a_set_with_itself_is_the_same_as_with_a_copy(path: str) -> None:
    a = packed(np.random.default_rng(0).random((151, 333)) < 0.5)
    own = codes.hamming(a, a, 333)
    assert torch.equal(own, codes.hamming(a, a.clone(), 333))
    assert torch.equal(own, own.T) and not bool(own.diagonal().any())


def test_the_largest_counts_do_not_run_into_each_other(path: str) -> None:
    """All on: a block of 4088 units fills a digit of twelve bits to the brim, whatever the caller asks for."""
    a = packed(np.ones((40, 20_003), bool))
    assert torch.equal(codes.intersections(a, a.clone(), 20_003, 1 << 20), torch.full((40, 40), 20_003).int())


@given(PAIRS)
@settings(max_examples=60, deadline=None)
def test_jaccard_is_scipys(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    # SciPy too calls two empty sets equal.
    expected = 1 - cdist(a, b, "jaccard")
    found = codes.jaccard(packed(a), packed(b), a.shape[1])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


@given(PAIRS, st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_weighted_hamming_is_scipys_weighted_city_block(pair: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    a, b = pair
    weights = np.random.default_rng(seed).integers(0, 256, a.shape[1]).astype(np.uint8)
    found = codes.weighted_hamming(packed(a), packed(b), torch.from_numpy(weights), 16)
    differs = (a[:, None] != b[None]).astype(int)
    np.testing.assert_array_equal(found.numpy(), (differs * weights.astype(int)).sum(2))


def test_the_heaviest_weights_are_summed_exactly() -> None:
    a, b = packed(np.ones((2, 9000), bool)), packed(np.zeros((3, 9000), bool))
    found = codes.weighted_hamming(a, b, torch.full((9000,), 255, dtype=torch.uint8))
    assert found.tolist() == [[255 * 9000] * 3] * 2


@pytest.fixture
def reduced_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("reduced_precision")
def test_no_digits_where_products_may_be_rounded() -> None:
    assert not codes._keeps_24_bits()
    a = np.random.default_rng(1).random((100, 5000)) < 0.5
    found = codes.intersections(packed(a), packed(a), 5000)
    np.testing.assert_array_equal(found.numpy(), a.astype(int) @ a.T.astype(int))


def test_ones_of_every_byte() -> None:
    every = torch.arange(256, dtype=torch.uint8).unsqueeze(1)
    assert codes.ones(every).tolist() == [i.bit_count() for i in range(256)]
