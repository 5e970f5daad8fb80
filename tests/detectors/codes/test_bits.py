"""Packed bits against NumPy's packbits and SciPy's Hamming distance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from aftershock.harness.tracing import bits as codes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist

BITS = st.tuples(st.integers(0, 5), st.integers(1, 70)).flatmap(lambda shape: arrays(np.bool_, shape))


@given(BITS)
@settings(max_examples=100, deadline=None)
def test_unpack_inverts_pack(array: np.ndarray) -> None:
    packed = codes.pack(torch.from_numpy(array))
    assert packed.dtype == torch.uint8
    assert packed.shape == (len(array), codes.packed_size(array.shape[1]))
    np.testing.assert_array_equal(codes.unpack(packed, array.shape[1]).numpy(), array)


@given(BITS)
@settings(max_examples=100, deadline=None)
def test_the_path_of_other_devices_gives_the_same_bytes_and_bits(array: np.ndarray) -> None:
    expected = np.packbits(array, axis=1, bitorder="little")
    np.testing.assert_array_equal(codes._pack_words(torch.from_numpy(array)).numpy(), expected)
    packed = torch.from_numpy(expected)
    np.testing.assert_array_equal(codes._unpack_shifts(packed, array.shape[1]).numpy(), array)


def test_every_byte_is_gathered_whatever_its_bits() -> None:
    every = ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).bool()
    np.testing.assert_array_equal(codes._pack_words(every).flatten().numpy(), np.arange(256))
    np.testing.assert_array_equal(codes.pack(every).flatten().numpy(), np.arange(256))


def test_padding_bits_are_zero() -> None:
    for pack in (codes.pack, codes._pack_words):
        assert pack(torch.ones(1, 9, dtype=torch.bool)).tolist() == [[255, 1]]


@given(
    st.integers(1, 60).flatmap(
        lambda units: st.tuples(
            arrays(np.bool_, st.tuples(st.integers(1, 4), st.just(units))),
            arrays(np.bool_, st.tuples(st.integers(1, 4), st.just(units))),
        )
    ),
    st.sampled_from([8, 16, 8192]),
)
@settings(max_examples=100, deadline=None)
def test_hamming_is_scipys(pair: tuple[np.ndarray, np.ndarray], block: int) -> None:
    a, b = pair
    units = a.shape[1]
    found = codes.hamming(codes.pack(torch.from_numpy(a)), codes.pack(torch.from_numpy(b)), units, block)
    assert found.dtype == torch.int32
    np.testing.assert_array_equal(found.numpy(), np.rint(cdist(a, b, "hamming") * units))


def test_hamming_of_many_units_is_exact() -> None:
    a = torch.rand(3, 20_001, generator=torch.Generator().manual_seed(0)) < 0.5
    flipped = a.clone()
    flipped[:, :12_345] ^= True
    found = codes.hamming(codes.pack(a), codes.pack(flipped), 20_001)
    assert found.diagonal().tolist() == [12_345] * 3


def test_flips_of_all_pairs_of_bytes_are_counted() -> None:
    a, b = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    pairs = a.reshape(-1, 1).to(torch.uint8), b.reshape(-1, 1).to(torch.uint8)
    expected = [(i ^ j).bit_count() for i in range(256) for j in range(256)]
    assert codes.flips(*pairs).tolist() == expected


def test_flips_are_the_diagonal_of_the_hamming_distances() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (codes.pack(torch.rand(6, 3001, generator=g) < 0.5) for _ in range(2))
    assert codes.flips(a, b).tolist() == codes.hamming(a, b, 3001).diagonal().tolist()
    assert codes.flips(a[:0], b[:0]).shape == (0,)


@pytest.mark.parametrize("wrong", [torch.zeros(2, 8), torch.zeros(8, dtype=torch.bool)])
def test_pack_takes_booleans_of_two_axes(wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="booleans of shape"):
        codes.pack(wrong)


@pytest.mark.parametrize("rows", [0, 1, 5, 40])
@pytest.mark.parametrize("counts_words", [True, False])
def test_parts_of_rows_are_compared_as_each_alone(
    rows: int, counts_words: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not counts_words:
        monkeypatch.setattr(codes, "_bitwise_count", None)
    monkeypatch.setattr(codes, "_POPCOUNT_WORDS", 50)
    draw, units = torch.Generator().manual_seed(0), (100, 7, 64)
    one, other = ([torch.rand(n, count, generator=draw) > 0.5 for count in units] for n in (rows, 33))
    found = codes.hamming_each([codes.pack(b) for b in one], [codes.pack(b) for b in other], units)
    for a, b, distance in zip(one, other, found, strict=True):
        assert torch.equal(distance, (a[:, None] != b[None]).sum(2).int())
