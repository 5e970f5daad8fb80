"""Traces as messages carry them: JSON that says what there is, and tensors by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...core.errors import UsageError
from ...tracing.rows import Rows
from ...tracing.traces import LiveTrace, Need, TapInfo, Traces, undeclared


class CopiedRows:
    """Received rows; every slice is a copy, so that no slice keeps the whole of a large set in memory."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows
        self.shape = tuple(rows.shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice) -> Tensor:
        return self._rows[rows].clone()


class _Window:
    """The rows of a window of a stored set, read while they are sent."""

    def __init__(self, rows: Rows, start: int, stop: int) -> None:
        self._rows, self._start = rows, start
        self.shape = (stop - start, *rows.shape[1:])

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(len(self))
        return self._rows[self._start + start : self._start + max(start, stop)]


def pack_traces(traces: Traces) -> tuple[dict[str, Tensor | Rows], dict[str, Any]]:
    """Return the rows of traces by name, and JSON values that say how to put them together again.

    Labels and sources travel where the traces have them, which is in ``fit`` alone; nothing is read yet.
    """
    found: dict[str, Tensor | Rows] = {}

    def walk(part: Traces, at: str) -> dict[str, Any]:
        start, stop, _ = part.window.indices(len(part.logits_rows))

        def put(name: str, rows: Rows) -> None:
            found[f"{at}{name}"] = _Window(rows, start, max(start, stop))

        put("logits", part.logits_rows)
        codes: dict[str, list[str]] = {}
        for code, taps in part.codes.items():
            codes[code] = list(taps)
            for number, rows in enumerate(taps.values()):
                put(f"{code}/{number}", rows)
        for number, rows in enumerate(part.gradient_rows.values()):
            put(f"gradient/{number}", rows)
        if part.label_rows is not None:
            put("labels", part.label_rows)
        if part.source_rows is not None:
            put("sources", part.source_rows)
        views = {name: walk(view, f"{at}view{number}/") for number, (name, view) in enumerate(part.view_traces.items())}
        return {
            "at": at, "codes": codes, "gradients": list(part.gradient_rows), "views": views,
            "taps": pack_taps(part.taps), "needs": pack_needs(part.needs),
        }  # fmt: skip

    return found, walk(traces, "traces/")


def unpack_traces(tensors: Mapping[str, Any], described: Mapping[str, Any]) -> Traces:
    """Return the traces that :func:`pack_traces` described."""
    at = described["at"]

    def rows(name: str) -> Rows:
        return CopiedRows(tensors[f"{at}{name}"])

    return Traces(
        rows("logits"),
        unpack_taps(described["taps"]),
        {
            code: {tap: rows(f"{code}/{number}") for number, tap in enumerate(taps)}
            for code, taps in described["codes"].items()
        },
        unpack_needs(described["needs"]),
        {name: unpack_traces(tensors, view) for name, view in described["views"].items()},
        {name: rows(f"gradient/{number}") for number, name in enumerate(described["gradients"])},
        rows("labels") if f"{at}labels" in tensors else None,
        source_rows=rows("sources") if f"{at}sources" in tensors else None,
    )


def pack_live(live: LiveTrace, views: Sequence[str] = ()) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a live trace that its owner reads, by name, and what else it holds as JSON values.

    Args:
        live: the trace.
        views: names of the views that its owner may read, too.
    """
    read = list(dict.fromkeys(t.name for need in live.needs for t in need.select(live.taps)))
    found = {"images": live.images, "logits": live.logits}
    for number, name in enumerate(read):
        found[f"activation/{number}"] = live.activations[name]
        if name in live.preactivations:
            found[f"preactivation/{number}"] = live.preactivations[name]
    described: dict[str, Any] = {
        "read": read, "taps": pack_taps(live.taps), "needs": pack_needs(live.needs), "temperature": live.temperature,
        "straight_through": live.straight_through, "views": {},
    }  # fmt: skip
    for number, name in enumerate(views):
        tensors, described["views"][name] = pack_live(live.view(name))
        found |= {f"view/{number}/{of_view}": tensor for of_view, tensor in tensors.items()}
    return found, described


def unpack_live(tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> LiveTrace:
    """Return the live trace that :func:`pack_live` described; its tensors are those given, whatever their graph."""
    read = described["read"]
    live = LiveTrace(
        tensors["images"], tensors["logits"], unpack_taps(described["taps"]),
        {name: tensors[f"activation/{n}"] for n, name in enumerate(read)},
        {name: tensors[f"preactivation/{n}"] for n, name in enumerate(read) if f"preactivation/{n}" in tensors},
        unpack_needs(described["needs"]),
    )  # fmt: skip
    views = {}
    for number, (name, of_view) in enumerate(described["views"].items()):
        prefix = f"view/{number}/"
        own = {n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)}
        views[name] = unpack_live(own, of_view)

    def view_of(name: str) -> LiveTrace:
        if name not in views:
            raise UsageError(undeclared(name))
        return views[name]

    return replace(
        live, temperature=described["temperature"], straight_through=described["straight_through"], view_of=view_of
    )


def pack_taps(taps: tuple[TapInfo, ...]) -> list[dict[str, Any]]:
    """Taps as JSON values."""
    # Not by `asdict`, whose deep copies take longer than the question.
    return [dict(vars(tap)) for tap in taps]


def unpack_taps(described: Any) -> tuple[TapInfo, ...]:
    """Return the taps of :func:`pack_taps`."""
    return tuple(TapInfo(**{**tap, "shape": tuple(tap["shape"])}) for tap in described)


def pack_needs(needs: tuple[Need, ...]) -> list[dict[str, Any]]:
    """Return needs as JSON values."""
    return [dict(vars(need)) for need in needs]


def unpack_needs(described: Any) -> tuple[Need, ...]:
    """Return the needs of :func:`pack_needs`."""
    return tuple(
        Need(**{**need, "taps": need["taps"] if isinstance(need["taps"], str) else tuple(need["taps"])})
        for need in described
    )
