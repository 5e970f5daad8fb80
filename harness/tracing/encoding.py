"""Activations into codes while they are hot: bits, pooled vectors and samples, for everybody at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import bits
from .taps import TapCall
from .traces import Need, TapInfo, pool, sampled_units

# Bytes of an activation that are encoded at once on a CPU: what bits were read from is still in the cache when it is
# pooled. Bits and means of a ResNet-20's 96 MB take 12 ms so, 18 ms tap by tap, and more in smaller blocks.
_BLOCK = 2 << 20


def encode(need: Need, activation: Tensor, signs: Tensor, kept: Tensor | None) -> Tensor:
    """Return what is stored of one tap, first axis n, on the activation's device.

    Args:
        need: which code.
        activation: post-activation, (n, ...), arranged.
        signs: of its shape: a unit's bit is 1 where this is positive, or true.
        kept: positions of the units that are kept (:func:`~.traces.sampled_units`), on that device; ``None`` for all.
    """
    if need.representation == "pooled":
        return pool(activation, need.statistic)
    flat = (activation if need.representation == "full" else signs).flatten(1)
    if kept is not None:
        flat = flat.index_select(1, kept)
    if need.representation == "full":
        return flat.float()
    return bits.pack(flat) if flat.dtype == torch.bool else bits.pack_positive(flat)


class Encoder:
    """What the taps of one pass after another show, encoded into tensors for the whole set, which lie on the CPU.

    Args:
        taps: of the model.
        needs: the union of what is asked for.
        count: images of the set.
        device: where the model computes.

    Attributes:
        signs: names of the taps whose signs are read.
        seen: names of the taps that the present batch went through.
    """

    def __init__(self, taps: Sequence[TapInfo], needs: Sequence[Need], count: int, device: torch.device) -> None:
        self._wanted: dict[str, list[Need]] = {tap.name: [] for tap in taps}
        for need in {n.code: n for n in needs}.values():
            chosen = {t.name for other in needs if other.code == need.code for t in other.select(taps)}
            for name in chosen:
                self._wanted[name].append(need)
        self.signs = {name for name, found in self._wanted.items() if any(n.representation == "bits" for n in found)}
        self._taps = {tap.name: tap for tap in taps}
        units = {n.units for n in needs}
        self._kept = {
            (t.name, u): None if (k := sampled_units(t, u)) is None else k.to(device) for t in taps for u in units
        }
        self._codes: dict[str, dict[str, Tensor]] = {n.code: {} for n in needs}
        self._count, self._near = count, device.type == "cpu"
        self._batch = slice(0, 0)
        # Codes of the present batch that have not come to the CPU.
        self._away: list[tuple[Need, str, Tensor]] = []
        self.seen: list[str] = []

    def begin(self, batch: slice) -> None:
        """Say which images of the set go through the model next."""
        self._batch, self._away, self.seen = batch, [], []

    def __call__(self, call: TapCall) -> None:
        tap, rows = self._taps.get(call.name), self._batch.stop - self._batch.start
        if tap is not None or (rows > 1 and call.activation.shape[:1] == (rows,)):
            # Calls that were left out when the taps were listed have no row for each image.
            self.seen.append(call.name)
        needs = self._wanted.get(call.name)
        if tap is None or not needs:
            return
        activation = tap.arranged(call.activation)
        signs = activation if call.positive is None else tap.arranged(call.positive)
        if not self._near:
            self._away += [(need, call.name, self._encode(need, call.name, activation, signs)) for need in needs]
            return
        block = max(1, _BLOCK // max(1, activation[:1].numel() * activation.element_size()))
        for start in range(0, len(activation), block):
            part = slice(start, start + block)
            for need in needs:
                self._put(need, call.name, start, self._encode(need, call.name, activation[part], signs[part]))

    def end(self, logits: Tensor) -> Tensor:
        """Bring what the batch left to the CPU, in one copy, and return its logits there, float32."""
        logits = logits.float()
        if self._near:
            return logits
        near, *codes = together([logits, *(value for _, _, value in self._away)])
        for (need, tap, _), value in zip(self._away, codes, strict=True):
            self._put(need, tap, 0, value)
        self._away = []
        # Not a view, which would keep the codes as well.
        return near.clone()

    def codes(self) -> dict[str, dict[str, Tensor]]:
        """Return code name to tap name to rows, taps in execution order."""
        return {c: {t: rows[t] for t in self._taps if t in rows} for c, rows in self._codes.items()}

    def _encode(self, need: Need, tap: str, activation: Tensor, signs: Tensor) -> Tensor:
        return encode(need, activation, signs, self._kept[tap, need.units])

    def _put(self, need: Need, tap: str, start: int, value: Tensor) -> None:
        rows = self._codes[need.code].get(tap)
        if rows is None:
            rows = torch.empty(self._count, *value.shape[1:], dtype=value.dtype)
            self._codes[need.code][tap] = rows
        first = self._batch.start + start
        rows[first : first + len(value)] = value


def together(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Bring tensors of one device to the CPU in a single copy, since each copy waits for all that was asked before."""
    # Bytes of every size begin where a number of eight bytes may begin.
    parts = [t.detach().contiguous().flatten().view(torch.uint8) for t in tensors]
    padded = [torch.nn.functional.pad(part, (0, -len(part) % 8)) for part in parts]
    bytes_ = torch.cat(padded).cpu() if padded else torch.empty(0, dtype=torch.uint8)
    found, start = [], 0
    for tensor, part, whole in zip(tensors, parts, padded, strict=True):
        found.append(bytes_[start : start + len(part)].view(tensor.dtype).view(tensor.shape))
        start += len(whole)
    return found
