"""Codes and images of some rows of a large set, read in batches, within a bound of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ...harness.tracing.traces import Need, TapInfo, Traces

# Images that are read and traced at once.
BATCH = 256
# Bytes of codes that are held at once, beside those of one tap.
MEMORY = 1 << 28
T = TypeVar("T")


def batches(length: int, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The runs of at most 256 consecutive positions that hold some of ``rows`` (ascending), and where in each."""
    for start in range(0, length, BATCH):
        inside = rows[(rows >= start) & (rows < start + BATCH)] - start
        if len(inside):
            yield slice(start, min(start + BATCH, length)), inside


def gather(length: int, rows: Tensor, read: Callable[[slice, Tensor], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Some rows of something that is read in batches, by name, in the order of ``rows`` (int64, (n,)).

    Args:
        length: how many rows there are.
        rows: positions.
        read: a run of positions, and those that are wanted within it, to their values by name.
    """
    order = rows.argsort(stable=True)
    parts: dict[str, list[Tensor]] = {}
    for part, inside in batches(length, rows[order]):
        for name, values in read(part, inside).items():
            parts.setdefault(name, []).append(values)
    back = order.argsort()
    return {name: torch.cat(values)[back] for name, values in parts.items()}


def record_rows(
    read: Callable[[slice], Tensor], length: int, rows: Tensor, trace: Callable[[Tensor], Traces]
) -> Traces:
    """Traces of some images, in memory, in the order of ``rows``; at least one."""
    seen: list[Traces] = []

    def parts(part: slice, inside: Tensor) -> dict[str, Tensor]:
        found = trace(read(part)[inside])
        seen.append(found)
        codes = {f"{code} {tap}": kept[:] for code, taps in found.codes.items() for tap, kept in taps.items()}
        return {"": found.logits, **codes}

    values = gather(length, rows, parts)
    codes = {code: {tap: values[f"{code} {tap}"] for tap in taps} for code, taps in seen[0].codes.items()}
    return Traces(values[""], seen[0].taps, codes, seen[0].needs)


def read_images(read: Callable[[slice], Tensor], length: int, rows: Tensor) -> Tensor:
    """Some images in the order of ``rows``; none where there are no rows."""
    return gather(length, rows, lambda part, inside: {"": read(part)[inside]}).get("", read(slice(0, 0)))


def pooled_rows(traces: Traces, tap: str, rows: Tensor) -> Tensor:
    """Stored pooled codes of some images, float32 (n, maps), in the order of ``rows``; (0, 0) without any."""
    found = gather(len(traces), rows, lambda part, inside: {"": traces[part].pooled(tap)[inside]})
    return found.get("", torch.empty(0, 0))


def tap_groups(taps: Sequence[TapInfo], needs: Sequence[Need], images: int) -> Iterator[tuple[str, ...]]:
    """Names of taps whose codes of some images are held at the same time: one tap at least, or 256 MiB.

    Args:
        taps: in order.
        needs: all codes that are held of each.
        images: how many.
    """
    group: list[str] = []
    held = 0
    for info in taps:
        size = images * sum(_bytes(info, need) for need in needs)
        if group and held + size > MEMORY:
            yield tuple(group)
            group, held = [], 0
        group.append(info.name)
        held += size
    if group:
        yield tuple(group)


def _bytes(info: TapInfo, need: Need) -> int:
    units = info.units if need.units is None else min(info.units, need.units)
    if need.representation == "pooled":
        # As pooling does: (tokens, features) keeps features, anything else its first axis.
        return 4 * (info.shape[-1] if len(info.shape) == 2 else info.shape[0] if info.shape else 1)
    return units // 8 + 1 if need.representation == "bits" else 4 * units


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of so many positions, evenly spread from the first to the last; the last alone for one."""
    if most == 1:
        return [count - 1]
    shown = min(most, count)
    return [round(i * (count - 1) / max(1, shown - 1)) for i in range(shown)]
