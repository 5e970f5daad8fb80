"""ReLU bits, packed eight units a byte, and distances computed from them.

Bit ``i`` of byte ``j`` belongs to unit ``8 j + i`` (little-endian); the padding bits of the last byte are 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Eight 0/1 bytes in one int64 times this constant: the top byte collects them as eight bits.
_GATHER = 0x0102040810204080
# Units of a block of products: the largest multiple of eight whose count fits 12 bits.
_DIGIT_UNITS = 4088
# Rows of either side that are unpacked at once, and rows of a strip where only the upper triangle is needed.
_ROWS, _STRIP = 2048, 128
# Number of rows on one side up to which counting words costs less than unpacking the other side.
_FEW = 32
# Words that are compared at a time: 2 MiB.
_POPCOUNT_WORDS = 1 << 18
# NumPy 2 and newer; before, bytes are looked up in a table.
_bitwise_count = getattr(np, "bitwise_count", None)
_BYTE_COUNTS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)


def packed_size(units: int) -> int:
    """Bytes that ``units`` bits take."""
    return (units + 7) // 8


def pack(bits: Tensor) -> Tensor:
    """Pack booleans of shape (n, units) into uint8 of shape (n, ceil(units / 8)), on the same device."""
    if bits.dtype != torch.bool or bits.ndim != 2:
        raise ValueError(f"pack takes booleans of shape (n, units), not {bits.dtype} of shape {tuple(bits.shape)}")
    bits = bits.contiguous()
    return _pack_numpy(bits) if bits.device.type == "cpu" else _pack_words(bits)


def pack_positive(values: Tensor) -> Tensor:
    """Pack which values (n, units) are above 0, as :func:`pack` does: uint8 of shape (n, ceil(units / 8))."""
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return pack(values > 0)
    return torch.from_numpy(np.packbits(np.greater(values.detach().numpy(), 0), axis=1, bitorder="little"))


def unpack(packed: Tensor, units: int) -> Tensor:
    """Return the inverse of :func:`pack`: booleans of shape (n, units)."""
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


def intersections(a: Tensor, b: Tensor, units: int, block: int = _DIGIT_UNITS) -> Tensor:
    """Return how many units are on in both rows, for all pairs of packed rows.

    On the CPU a float32 matrix product of unpacked blocks in which each float carries two rows, as x + 4096 y: their
    sums stay apart as two digits of the 24 exact bits, which halves the multiplications. A few rows are compared by
    popcount. Elsewhere, and on CPUs whose instructions multiply int8, an int8 product. All of them are exact.

    Args:
        a: uint8 of shape (n, bytes).
        b: uint8 of shape (m, bytes); ``a`` itself saves nearly half of the products.
        units: number of valid bits in a row.
        block: units that are unpacked at a time, for at most 2048 rows of each side; bounds the memory.

    Returns:
        int32 of shape (n, m). Cost O(n m units).
    """
    common = torch.zeros(len(a), len(b), dtype=torch.int32, device=a.device)
    if not common.numel():
        return common
    if a.device.type == "cpu" and min(len(a), len(b)) <= _FEW:
        return _popcounts(a, b, common)
    product = _int8_product if a.device.type != "cpu" or _multiplies_int8() else _float_product
    step = max(1, min(block, _DIGIT_UNITS) // 8)
    for top in range(0, len(a), _ROWS):
        for left in range(top if b is a else 0, len(b), _ROWS):
            rows, columns = slice(top, top + _ROWS), slice(left, left + _ROWS)
            diagonal = b is a and top == left
            for start in range(0, a.shape[1], step):
                part = slice(start, start + step)
                count = min(units - 8 * start, 8 * step)
                x = unpack(a[rows, part], count)
                y = x if diagonal else unpack(b[columns, part], count)
                product(x, y, common[rows, columns])
            if diagonal:
                _mirror(common[rows, columns])
            elif b is a:
                common[columns, rows] = common[rows, columns].T
    return common


def ones(packed: Tensor) -> Tensor:
    """Return how many bits are on in each packed row (n, bytes): int64 (n,)."""
    if packed.device.type == "cpu":
        return torch.from_numpy(_units_on(_words(packed))).long()
    # A byte's ones, counted in pairs, then fours, then all eight bits at once; no wider copy of the bytes is made.
    x = packed - ((packed >> 1) & 0x55)
    x = (x & 0x33) + ((x >> 2) & 0x33)
    return ((x + (x >> 4)) & 0x0F).sum(1, dtype=torch.int64)


def hamming(a: Tensor, b: Tensor, units: int, block: int = _DIGIT_UNITS) -> Tensor:
    """Hamming distances between all pairs of packed rows: H(a, b) = |a| + |b| − 2 |a ∧ b|.

    Arguments and cost as of :func:`intersections`.

    Returns:
        int32 of shape (n, m): the number of units in which the rows differ.
    """
    distance = intersections(a, b, units, block)
    # A row shares with itself the units that are on in it.
    left = distance.diagonal().clone() if b is a else ones(a).int()
    right = left if b is a else ones(b).int()
    return distance.mul_(-2).add_(left.unsqueeze(1)).add_(right)


def hamming_each(a: Sequence[Tensor], b: Sequence[Tensor], units: Sequence[int]) -> list[Tensor]:
    """Return :func:`hamming` of several parts of the same rows, each int32 (n, m); of a few rows in one go.

    Args:
        a: uint8 (n, bytes) for each part.
        b: uint8 (m, bytes) for each part.
        units: number of valid bits in a row of each part.
    """
    if a[0].device.type != "cpu" or min(len(a[0]), len(b[0])) > _FEW:
        return [hamming(x, y, count) for x, y, count in zip(a, b, units, strict=True)]
    left, right = ([_words(part) for part in side] for side in (a, b))
    ends = np.cumsum([words.shape[1] for words in left])[:-1]
    one, other = np.concatenate(left, 1), np.concatenate(right, 1)
    found = [torch.empty(len(one), len(other), dtype=torch.int32) for _ in units]
    block = max(1, _POPCOUNT_WORDS // max(1, one.size))
    for start in range(0, len(other), block):
        counts = _counts(one[:, None] ^ other[None, start : start + block])
        for distance, part in zip(found, np.split(counts, ends, axis=-1), strict=True):
            distance[:, start : start + block] = torch.from_numpy(part.sum(-1, dtype=np.int32))
    return found


def jaccard(a: Tensor, b: Tensor, units: int, block: int = _DIGIT_UNITS) -> Tensor:
    """Jaccard similarities |a ∧ b| / |a ∨ b| between all pairs of packed rows; 1 where both rows are all off.

    Unlike the Hamming distance it does not count the units that are off in both, the most of a sparse code. Arguments
    and cost as of :func:`intersections`.

    Returns:
        float64 of shape (n, m).
    """
    common = intersections(a, b, units, block)
    either = ones(a).unsqueeze(1) + ones(b) - common
    return torch.where(either > 0, common.double() / either.clamp(min=1), 1.0)


def weighted_hamming(a: Tensor, b: Tensor, weights: Tensor, block: int = _DIGIT_UNITS) -> Tensor:
    """Sums of the weights of the units in which packed rows differ, for all pairs.

    Args:
        a: uint8 of shape (n, bytes).
        b: uint8 of shape (m, bytes).
        weights: uint8 of shape (units,); whole numbers, so that the sums are exact in every order.
        block: units that are unpacked at a time, for at most 2048 rows of each side; bounds the memory.

    Returns:
        int32 of shape (n, m). Cost O(n m units).
    """
    distance = torch.zeros(len(a), len(b), dtype=torch.int32, device=a.device)
    step = max(1, min(block, _DIGIT_UNITS) // 8)
    for top in range(0, len(a), _ROWS):
        for left in range(0, len(b), _ROWS):
            tile = distance[top : top + _ROWS, left : left + _ROWS]
            for start in range(0, a.shape[1], step):
                weight = weights[8 * start : 8 * (start + step)].float()
                x = unpack(a[top : top + _ROWS, start : start + step], len(weight)).float() * weight
                y = unpack(b[left : left + _ROWS, start : start + step], len(weight)).float()
                # At most 255 * 4088 < 2^24: whole numbers, exact in float32; a weight has eight bits, as bfloat16 has.
                tile += (x.sum(1, keepdim=True) + y @ weight - 2 * (x @ y.T)).int()
    return distance


def _float_product(x: Tensor, y: Tensor, common: Tensor) -> None:
    """Add the intersections of boolean rows to ``common`` (n, m); where x is y, those on and above the diagonal."""
    right = y.float()
    digits = _keeps_24_bits()
    strip = 2 * _STRIP if x is y else len(x)
    for start in range(0, len(x), strip):
        columns = slice(start if x is y else 0, None)
        rows = right[start : start + strip] if x is y else x.float()
        out = common[start : start + strip, columns]
        if not digits:
            out += (rows @ right[columns].T).int()
            continue
        half = (len(rows) + 1) // 2
        pairs = rows[:half].clone()
        pairs[: len(rows) - half] += rows[half:] * 4096
        sums = (pairs @ right[columns].T).int()
        out[:half] += sums & 4095
        out[half:] += sums[: len(rows) - half] >> 12


def _int8_product(x: Tensor, y: Tensor, common: Tensor) -> None:
    """As :func:`_float_product`."""
    left, right = x.view(torch.int8), y.view(torch.int8)
    if x.device.type != "cpu":
        # cuBLAS needs multiples of eight and more than 16 rows.
        width, rows, columns = (-x.shape[1] % 8, *(max(-len(side) % 8, 24 - len(side)) for side in (x, y)))
        left, right = (torch.nn.functional.pad(s, (0, width, 0, n)) for s, n in ((left, rows), (right, columns)))
        common += torch._int_mm(left, right.T)[: len(x), : len(y)]
        return
    # The right side is the narrow one: it is what the product copies into an order of its own.
    strip = _STRIP if x is y else max(1, len(y))
    for start in range(0, len(y), strip):
        end = start + strip
        above = end if x is y else len(x)
        common[:above, start:end] += torch._int_mm(left[:above], right[start:end].T)


def _mirror(square: Tensor) -> None:
    """Write what is above the diagonal below it, strip by strip: what is turned at once fits the cache."""
    for start in range(0, len(square), _STRIP):
        end = start + _STRIP
        square[end:, start:end] = square[start:end, end:].T
        block = square[start:end, start:end]
        block.copy_(block.triu() + block.triu(1).T)


def _popcounts(a: Tensor, b: Tensor, common: Tensor) -> Tensor:
    """Fill ``common`` by popcount, with at most 2 MiB of words at a time."""
    left, right = _words(a), _words(b)
    if len(left) > len(right):
        return _popcounts(b, a, common.T).T
    block = max(1, _POPCOUNT_WORDS // max(1, left.size))
    for start in range(0, len(right), block):
        both = left[:, None] & right[None, start : start + block]
        common[:, start : start + block] = torch.from_numpy(_units_on(both))
    return common


def _units_on(words: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Count the bits that are on, over the last axis."""
    found: NDArray[np.int32] = _counts(words).sum(-1, dtype=np.int32)
    return found


def _counts(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Count the bits that are on in every word."""
    if _bitwise_count is None:
        in_bytes = _BYTE_COUNTS[words.view(np.uint8)].reshape(*words.shape, 8)
        return in_bytes.sum(-1, dtype=np.uint8)
    found: NDArray[np.uint8] = _bitwise_count(words)
    return found


def _words(packed: Tensor) -> NDArray[np.uint64]:
    array = packed.numpy()
    padding = -array.shape[1] % 8
    padded = np.pad(array, ((0, 0), (0, padding))) if padding else np.ascontiguousarray(array)
    return padded.view(np.uint64)


def _keeps_24_bits() -> bool:
    """Whether float32 products are float32: a user may have allowed bfloat16, in which 4097 cannot be written."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    allowed = torch.get_float32_matmul_precision(), getattr(matmul, "fp32_precision", "none")
    return allowed[0] == "highest" and allowed[1] in ("none", "ieee")


def _multiplies_int8() -> bool:
    """Whether the CPU has the instructions without which torch's int8 product is dozens of times slower than float."""
    # Torch before 2.9 does not tell; both products give the same counts.
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(found.get("avx512_vnni") or found.get("amx_int8"))


def flips(a: Tensor, b: Tensor) -> Tensor:
    """In how many bits row i of ``a`` differs from row i of ``b`` (packed, (n, bytes) each): int64 (n,)."""
    return ones(a ^ b)
