"""Traces: what one forward pass left at the taps for a set of images, already encoded.

Detectors state what they need (:class:`Need`); the harness records the union in one instrumented forward and hands
every detector a :class:`Traces` with exactly its own codes. Stored sets are memory-mapped and read in slices.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Literal

import torch
from torch import Tensor

from ..core.errors import UsageError
from .rows import PickedRows, Rows

Representation = Literal["bits", "pooled", "full"]
Statistic = Literal["mean", "max", "std"]


@dataclass(frozen=True)
class TapInfo:
    """One tap of a model.

    Attributes:
        name: the owning module's path, with ``:2``, ``:3`` ... from the second call on.
        kind: the function that was called (``relu``, ``gelu``, ...) or ``module``.
        shape: of one activation, without the batch axis, arranged (:meth:`arranged`).
        channel_axis: the axis (0 is the batch) that holds the channels as the model computes the activation; ``None``
            where that cannot be told, and they are taken to be where they usually are.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    channel_axis: int | None = None

    @property
    def units(self) -> int:
        """The number of units: the product of the shape."""
        return int(torch.Size(self.shape).numel())

    def arranged(self, activation: Tensor) -> Tensor:
        """Return an activation as everything here reads it, whichever way the model computes it; a view.

        That is (n, channels, positions...), or (n, positions, features) with a single axis of positions.
        """
        moved = self._moved(activation.ndim)
        return activation if moved is None else activation.movedim(*moved)

    def as_computed(self, arranged: Tensor) -> Tensor:
        """Return what :meth:`arranged` gave, as the model computes it; a view."""
        moved = self._moved(arranged.ndim)
        return arranged if moved is None else arranged.movedim(*reversed(moved))

    def _moved(self, ndim: int) -> tuple[int, int] | None:
        usual = 1 if ndim > 3 else ndim - 1
        return None if ndim < 3 or self.channel_axis in (None, usual) else (self.channel_axis, usual)


@dataclass(frozen=True)
class Need:
    """A representation of the activations that a detector asks for.

    Attributes:
        representation: ``bits`` (packed, see ``codes.bits``), ``pooled`` (one number per map) or ``full`` (the
            activation of every unit).
        taps: ``all``, ``last:N``, ``first:N``, or tap names.
        statistic: for ``pooled``: mean, max or standard deviation over a map's positions.
        units: for ``bits`` and ``full``: maximum number of units per tap, a seeded sample; ``None`` keeps all.
    """

    representation: Representation
    taps: str | tuple[str, ...] = "all"
    statistic: Statistic = "mean"
    units: int | None = None

    def __post_init__(self) -> None:
        if self.representation not in ("bits", "pooled", "full"):
            raise UsageError(f"There is no representation {self.representation!r}; there are bits, pooled and full.")
        if self.statistic not in ("mean", "max", "std"):
            raise UsageError(f"There is no statistic {self.statistic!r}; there are mean, max and std.")

    @property
    def code(self) -> str:
        """The name of what is recorded, whatever the taps: ``bits``, ``pooled:mean``, ``full:256``."""
        if self.representation == "pooled":
            return f"pooled:{self.statistic}"
        return self.representation if self.units is None else f"{self.representation}:{self.units}"

    def select(self, taps: Sequence[TapInfo]) -> tuple[TapInfo, ...]:
        """Return the taps that this need means, in execution order.

        Raises:
            UsageError: for a selection that cannot be read, an unknown name, or no tap at all.
        """
        return select_taps(self.taps, taps)


def capped(need: Need, bits_per_tap: int | None) -> Need:
    """Return a need on a model with a maximum number of bits per tap (``None``: all)."""
    if need.representation != "bits" or bits_per_tap is None:
        return need
    return replace(need, units=min(bits_per_tap, need.units or bits_per_tap))


def select_taps(selection: str | Sequence[str], taps: Sequence[TapInfo]) -> tuple[TapInfo, ...]:
    """Resolve ``all``, ``last:N``, ``first:N``, one tap name, or several; raises :class:`UsageError`."""
    names = [t.name for t in taps]
    if selection == "all":
        return tuple(taps)
    if isinstance(selection, str) and selection.partition(":")[0] in ("last", "first") and selection not in names:
        side, _, number = selection.partition(":")
        if not number.isdigit() or int(number) == 0:
            raise UsageError(f"taps = {selection!r}: write last:N or first:N with N of at least 1.")
        return tuple(taps[-int(number) :] if side == "last" else taps[: int(number)])
    wanted = [selection] if isinstance(selection, str) else list(selection)
    unknown = [w for w in wanted if w not in names]
    if unknown or not wanted:
        raise UsageError(
            f"There is no tap {', '.join(map(repr, unknown)) or '(none named)'}; there are {', '.join(names)}."
        )
    return tuple(t for t in taps if t.name in wanted)


def has_taps(need: Need, taps: Sequence[TapInfo]) -> bool:
    """Return whether a model has the taps that a need names."""
    try:
        need.select(taps)
    except UsageError:
        return False
    return True


def sampled_units(tap: TapInfo, units: int | None) -> Tensor | None:
    """Which units of a tap are kept (sorted int64 indices), or ``None`` for all; the same for every seed and run."""
    return None if units is None or tap.units <= units else _drawn_units(tap.name, tap.units, units).clone()


# An attack asks for the same draws at every step.
@lru_cache(256)
def _drawn_units(name: str, count: int, units: int) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(f"{name}\x1f{count}".encode()).digest()[:8], "big") >> 1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:units].sort().values


def undeclared(view: str) -> str:
    """Return what is said to a detector that reads a view which it did not declare."""
    return f"The detector reads the view {view!r} but did not declare it."


def map_dims(activation: Tensor) -> tuple[int, ...]:
    """Return the axes of the positions of an arranged activation with maps: those that pooling removes."""
    return (1,) if activation.ndim == 3 else tuple(range(2, activation.ndim))


def pool(activation: Tensor, statistic: Statistic) -> Tensor:
    """Return one number per map of an activation that is arranged (:meth:`TapInfo.arranged`), float32 (n, maps).

    Maps are the channels of (n, channels, positions...) and the features of (n, tokens, features); an activation of
    shape (n, features) is its own pooled vector (for ``std``: its absolute value, having no positions).
    """
    if activation.ndim == 2:
        return (activation.abs() if statistic == "std" else activation).float()
    dims = map_dims(activation)
    if statistic == "mean":
        return activation.mean(dims).float()
    if statistic == "max":
        return activation.amax(dims).float()
    return activation.std(dims, correction=0).float()


@dataclass(frozen=True, eq=False)
class Traces:
    """The codes of a set of images, as one detector asked for them.

    Attributes:
        logits_rows: (n, classes), float32.
        taps: the model's taps in execution order.
        codes: code name (``Need.code``) to tap name to rows.
        needs: what the owner of these traces asked for; it decides which code an accessor returns.
        view_traces: traces of the extra forwards that the detector declared.
        gradient_rows: gradients with respect to the input that it declared.
        label_rows: the true classes, in ``fit`` only.
        source_rows: int64, which image of the data set each row was made from, in ``fit`` only.
        random: what ``fit`` draws from.
        window: the rows among those that are stored.
    """

    logits_rows: Rows
    taps: tuple[TapInfo, ...]
    codes: Mapping[str, Mapping[str, Rows]] = field(default_factory=dict)
    needs: tuple[Need, ...] = ()
    view_traces: Mapping[str, Traces] = field(default_factory=dict)
    gradient_rows: Mapping[str, Rows] = field(default_factory=dict)
    label_rows: Rows | None = None
    random: torch.Generator | None = None
    window: slice = field(default_factory=lambda: slice(None))
    source_rows: Rows | None = None

    def __len__(self) -> int:
        start, stop, _ = self.window.indices(len(self.logits_rows))
        return max(0, stop - start)

    def __getitem__(self, rows: slice) -> Traces:
        """Return some consecutive images; nothing is read."""
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError("traces are cut into runs of consecutive images")
        offset = self.window.indices(len(self.logits_rows))[0]
        cut = slice(offset + start, offset + max(start, stop))
        return Traces(
            self.logits_rows, self.taps, self.codes, self.needs,
            {name: view[rows] for name, view in self.view_traces.items()},
            self.gradient_rows, self.label_rows, self.random, cut, self.source_rows,
        )  # fmt: skip

    def pick(self, index: Tensor) -> Traces:
        """Return some of the images in the order of ``index`` (int64); nothing is read."""
        absolute = index + self.window.indices(len(self.logits_rows))[0]
        return replace(
            self,
            logits_rows=PickedRows(self.logits_rows, absolute),
            codes={c: {t: PickedRows(r, absolute) for t, r in taps.items()} for c, taps in self.codes.items()},
            view_traces={name: view.pick(index) for name, view in self.view_traces.items()},
            gradient_rows={name: PickedRows(r, absolute) for name, r in self.gradient_rows.items()},
            label_rows=None if self.label_rows is None else PickedRows(self.label_rows, absolute),
            window=slice(None),
            source_rows=None if self.source_rows is None else PickedRows(self.source_rows, absolute),
        )

    def alone(self) -> Traces:
        """Return the same images with nothing else behind them: read now, so that no other image can be looked up."""
        return Traces(
            self.logits, self.taps,
            {code: {tap: self._read(rows) for tap, rows in taps.items()} for code, taps in self.codes.items()},
            self.needs, {name: view.alone() for name, view in self.view_traces.items()},
            {name: self._read(rows) for name, rows in self.gradient_rows.items()},
            None if self.label_rows is None else self._read(self.label_rows), self.random,
            source_rows=None if self.source_rows is None else self._read(self.source_rows),
        )  # fmt: skip

    def batches(self, size: int = 256) -> Iterator[Traces]:
        """Return the images in consecutive parts of at most ``size``."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    @cached_property
    def logits(self) -> Tensor:
        """Float32, (n, classes)."""
        return self._read(self.logits_rows)

    @cached_property
    def predictions(self) -> Tensor:
        """The predicted classes, int64, (n,)."""
        return self.logits.argmax(1) if len(self) else torch.empty(0, dtype=torch.int64)

    @property
    def labels(self) -> Tensor:
        """The true classes, int64, (n,): only in ``fit``.

        Raises:
            UsageError: while scoring, where a detector must not see them.
        """
        if self.label_rows is None:
            raise UsageError("Labels are known only to fit(); score() must do without them.")
        return self._read(self.label_rows)

    @property
    def sources(self) -> Tensor | None:
        """Which image each row was made from, int64, (n,), ``None`` where it is unknown: only in ``fit``.

        A perturbed fit image and its clean original have the same number, so that a detector that keeps clean images
        need not compare a perturbed one with its own original, which it never meets in use.
        """
        return None if self.source_rows is None else self._read(self.source_rows)

    @property
    def generator(self) -> torch.Generator:
        """The seeded generator for whatever ``fit`` draws (CPU).

        Raises:
            UsageError: while scoring, which must be deterministic.
        """
        if self.random is None:
            raise UsageError("A generator is given only to fit(); score() must be deterministic.")
        return self.random

    def tap_names(self, selection: str | Sequence[str] | None = None) -> tuple[str, ...]:
        """Return the names of the taps in execution order; by default those of the first need, or all without needs."""
        if selection is None:
            selection = self.needs[0].taps if self.needs else "all"
        return tuple(t.name for t in select_taps(selection, self.taps))

    def units(self, tap: str, representation: Literal["bits", "full"] = "bits") -> int:
        """Return how many units a tap's code holds, after sub-sampling (the padding of the last byte excluded)."""
        kept = [n.units for n in self.needs if n.representation == representation and n.units is not None]
        return min([self._tap(tap).units, *kept])

    def bits(self, tap: str) -> Tensor:
        """Return packed bits of a tap, uint8, (n, ceil(units / 8)): 1 where the pre-activation is positive."""
        return self._code("bits", tap)

    def pooled(self, tap: str, statistic: Statistic | None = None) -> Tensor:
        """Return one number per map, float32, (n, maps); ``statistic`` where several were asked for."""
        return self._code("pooled", tap, statistic)

    def full(self, tap: str) -> Tensor:
        """Activations, float32, (n, units): post-activation, flattened, sub-sampled where the need says so."""
        return self._code("full", tap)

    def view(self, name: str) -> Traces:
        """Return the traces of an extra forward that the detector declared under ``views``."""
        if name not in self.view_traces:
            raise UsageError(undeclared(name))
        return self.view_traces[name]

    def gradient(self, name: str) -> Tensor:
        """Return a gradient with respect to the input that the detector declared, float32, the images' shape."""
        if name not in self.gradient_rows:
            raise UsageError(f"The detector reads the gradient {name!r} but did not declare it.")
        return self._read(self.gradient_rows[name])

    def _read(self, rows: Rows) -> Tensor:
        start, stop, _ = self.window.indices(len(self.logits_rows))
        return rows[start:stop]

    def _tap(self, name: str) -> TapInfo:
        for tap in self.taps:
            if tap.name == name:
                return tap
        raise UsageError(f"There is no tap {name!r}; there are {', '.join(t.name for t in self.taps)}.")

    def _code(self, representation: Representation, tap: str, statistic: Statistic | None = None) -> Tensor:
        self._tap(tap)
        for need in self.needs:
            if need.representation == representation and statistic in (None, need.statistic):
                rows = self.codes.get(need.code, {}).get(tap)
                if rows is not None:
                    return self._read(rows)
        raise UsageError(f"The detector reads {representation} at {tap!r} but did not declare that it needs them.")


@dataclass(frozen=True, eq=False)
class LiveTrace:
    """A forward pass that can be differentiated: what a surrogate sees instead of stored codes.

    Attributes:
        images: the input, (n, channels, height, width), with its graph.
        logits: (n, classes).
        taps: the model's taps in execution order.
        activations: post-activation by tap, (n, ...), arranged as in :attr:`TapInfo.shape`; of the taps that
            ``needs`` name.
        preactivations: pre-activation by tap, likewise.
        needs: as in :class:`Traces`; the accessors return the same units as there.
        temperature: by how much a surrogate shall soften its own relaxation (below 1: sharpen it).
        straight_through: a surrogate shall use hard codes forwards and relaxed ones backwards, where it can.
        view_of: makes the pass of a view that the detector declared; only what a surrogate asks for is made.
    """

    images: Tensor
    logits: Tensor
    taps: tuple[TapInfo, ...]
    activations: Mapping[str, Tensor]
    preactivations: Mapping[str, Tensor]
    needs: tuple[Need, ...] = ()
    temperature: float = 1.0
    straight_through: bool = False
    view_of: Callable[[str], LiveTrace] | None = None

    def tap_names(self, selection: str | Sequence[str] | None = None) -> tuple[str, ...]:
        """As :meth:`Traces.tap_names`."""
        if selection is None:
            selection = self.needs[0].taps if self.needs else "all"
        return tuple(t.name for t in select_taps(selection, self.taps))

    def view(self, name: str) -> LiveTrace:
        """Return the pass of a view that the detector declared, differentiable with respect to the same images."""
        if self.view_of is None:
            raise UsageError(undeclared(name))
        return self.view_of(name)

    def preactivation(self, tap: str) -> Tensor:
        """(n, units): the numbers whose signs are the bits."""
        return self._units(self.preactivations[tap], tap, "bits")

    def pooled(self, tap: str, statistic: Statistic = "mean") -> Tensor:
        """(n, maps), as :meth:`Traces.pooled`."""
        activation = self.activations[tap]
        if statistic != "mean" or activation.ndim == 2 or activation.dtype not in (torch.float32, torch.float64):
            return pool(activation, statistic)
        # What a mean computes; but its gradient is divided before it is spread over a map, and not after.
        dims = map_dims(activation)
        return (activation.sum(dims) / math.prod(activation.shape[dim] for dim in dims)).float()

    def full(self, tap: str) -> Tensor:
        """(n, units), as :meth:`Traces.full`."""
        return self._units(self.activations[tap], tap, "full")

    def _units(self, values: Tensor, tap: str, representation: Representation) -> Tensor:
        flat = values.flatten(1)
        limit = next((n.units for n in self.needs if n.representation == representation), None)
        info = next(t for t in self.taps if t.name == tap)
        kept = sampled_units(info, limit)
        # A gather, whose gradient is much cheaper than that of an index.
        return flat if kept is None else flat.gather(1, kept.to(flat.device).expand(len(flat), -1))
