"""Bits of several taps side by side, unpacked a block of images at a time, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ...harness.tracing.bits import packed_size, unpack
from ...harness.tracing.traces import LiveTrace, Traces

_BLOCK = 1 << 22  # unpacked units of a block: 16 MiB in float32
_KEEP = 1 << 29  # packed bytes that are kept in memory between passes
# The eight bits of every byte as float32: looking them up is several times faster than unpacking and converting.
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.float32)


def unpack_as(packed: Tensor, units: int, like: Tensor) -> Tensor:
    """Return packed rows (n, bytes) as 0 and 1, (n, units), of another tensor's type and on its device."""
    if packed.device.type != "cpu" or like.device.type != "cpu":
        return unpack(packed.to(like.device), units).to(like.dtype)
    found = torch.from_numpy(np.take(_BITS, packed.numpy(), axis=0, mode="clip")).flatten(1)
    return found[:, :units].to(like.dtype)


class BitBlocks:
    """The bits of a set of images at some taps, float32 0/1 of shape (images of the block, units), block by block.

    It can be read any number of times; a block is valid until the next one is taken. Packed rows stay in memory between
    passes where they take less than 512 MiB, and are read from the traces again where they do not.

    Args:
        traces: of the images.
        taps: whose bits.
        once: they are read a single time: nothing stays in memory.

    Attributes:
        units: units of each tap, in the order in which they lie side by side.
    """

    def __init__(self, traces: Traces, taps: Sequence[str], once: bool = False) -> None:
        self._traces, self._taps = traces, tuple(taps)
        self.units = tuple(traces.units(tap) for tap in self._taps)
        sizes = [packed_size(units) for units in self.units]
        self._bytes = sum(sizes)
        # Columns that are no padding of a tap's last byte; none to drop where all widths are multiples of 8.
        valid = [torch.arange(8 * size) < units for size, units in zip(sizes, self.units, strict=True)]
        self._columns = None if self.width == 8 * self._bytes else torch.cat(valid).nonzero().squeeze(1)
        self._size = max(1, min(1024, _BLOCK // max(1, self.width)))
        self._kept = list(self._read()) if not once and len(traces) * self._bytes <= _KEEP else None

    def __len__(self) -> int:
        return len(self._traces)

    @property
    def width(self) -> int:
        """Units of all taps together."""
        return sum(self.units)

    def __iter__(self) -> Iterator[Tensor]:
        buffer = np.empty((min(self._size, len(self)), self._bytes, 8), np.float32)
        for packed in self._read() if self._kept is None else self._kept:
            if packed.device.type != "cpu":
                bits = unpack(packed, 8 * self._bytes).float()
                yield bits if self._columns is None else bits[:, self._columns.to(bits.device)]
                continue
            block = buffer[: len(packed)]
            np.take(_BITS, packed.numpy(), axis=0, out=block, mode="clip")
            bits = torch.from_numpy(block).flatten(1)
            yield bits if self._columns is None else bits[:, self._columns]

    def _read(self) -> Iterator[Tensor]:
        for part in self._traces.batches(self._size):
            yield torch.cat([part.bits(tap) for tap in self._taps], 1)


def relaxed_bits(live: LiveTrace, taps: Sequence[str], temperature: float) -> Tensor:
    """Differentiable stand-ins for the bits of :class:`BitBlocks`: sigmoid(z / temperature), float32 (n, units).

    The live trace's own temperature multiplies ``temperature``; straight through, the values are the bits themselves.
    """
    before = torch.cat([live.preactivation(tap) for tap in taps], 1)
    soft = torch.sigmoid(before / (temperature * live.temperature))
    if not live.straight_through:
        return soft
    return (before > 0).to(soft.dtype) + soft - soft.detach()
