"""ReLU bits, packed eight units a byte, and Hamming distances computed from them.

Bit ``i`` of byte ``j`` belongs to unit ``8 j + i`` (little-endian); the padding bits of the last byte are 0.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Eight 0/1 bytes in one int64 times this constant: the top byte collects them as eight bits.
_GATHER = 0x0102040810204080


def packed_size(units: int) -> int:
    """Bytes that ``units`` bits take."""
    return (units + 7) // 8


def pack(bits: Tensor) -> Tensor:
    """Pack booleans of shape (n, units) into uint8 of shape (n, ceil(units / 8)), on the same device."""
    if bits.dtype != torch.bool or bits.ndim != 2:
        raise ValueError(f"pack takes booleans of shape (n, units), not {bits.dtype} of shape {tuple(bits.shape)}")
    bits = bits.contiguous()
    return _pack_numpy(bits) if bits.device.type == "cpu" else _pack_words(bits)


def unpack(packed: Tensor, units: int) -> Tensor:
    """The inverse of :func:`pack`: booleans of shape (n, units)."""
    return _unpack_numpy(packed, units) if packed.device.type == "cpu" else _unpack_shifts(packed, units)


def _pack_numpy(bits: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(bits.numpy(), axis=1, bitorder="little"))


def _pack_words(bits: Tensor) -> Tensor:
    """Any device: eight booleans are read as one int64, and a product gathers them in its top byte."""
    padding = -bits.shape[1] % 8
    if padding:
        bits = torch.nn.functional.pad(bits, (0, padding))
    if not bits.numel():
        return torch.empty(len(bits), bits.shape[1] // 8, dtype=torch.uint8, device=bits.device)
    # The sum of the byte times its weight is exact in int64; the shift brings it down, the mask drops the sign.
    return ((bits.view(torch.int64) * _GATHER) >> 56).bitwise_and_(0xFF).to(torch.uint8)


def _unpack_numpy(packed: Tensor, units: int) -> Tensor:
    array = np.unpackbits(packed.contiguous().numpy(), axis=1, bitorder="little", count=units)
    return torch.from_numpy(array).view(torch.bool)


def _unpack_shifts(packed: Tensor, units: int) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    spread = packed.unsqueeze(-1).bitwise_right_shift(shifts).bitwise_and_(1)
    return spread.flatten(1)[:, :units].to(torch.bool)


def hamming(a: Tensor, b: Tensor, units: int, block: int = 8192) -> Tensor:
    """Hamming distances between all pairs of packed rows.

    Args:
        a: uint8 of shape (n, bytes).
        b: uint8 of shape (m, bytes).
        units: number of valid bits in a row.
        block: units that are unpacked at a time; bounds the memory.

    Returns:
        int32 of shape (n, m): the number of units in which the rows differ. H(a, b) = |a| + |b| − 2 a·b.
    """
    distance = torch.zeros(len(a), len(b), device=a.device)
    step = packed_size(block)
    for start in range(0, a.shape[1], step):
        part = slice(start, start + step)
        count = min(units - 8 * start, 8 * step)
        x, y = unpack(a[:, part], count).float(), unpack(b[:, part], count).float()
        # Exact in float32: every partial sum is a whole number below 2^24 within a block.
        distance += x.sum(1, keepdim=True) + y.sum(1) - 2 * (x @ y.T)
    return distance.round_().to(torch.int32)


def flips(a: Tensor, b: Tensor) -> Tensor:
    """In how many bits row i of ``a`` differs from row i of ``b`` (packed, (n, bytes) each): int64 (n,)."""
    x = a ^ b
    # A byte's ones, counted in pairs, then fours, then all eight bits at once; no wider copy of the bytes is made.
    x = x - ((x >> 1) & 0x55)
    x = (x & 0x33) + ((x >> 2) & 0x33)
    return ((x + (x >> 4)) & 0x0F).sum(1, dtype=torch.int64)
