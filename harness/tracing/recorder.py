"""One instrumented forward: logits and the codes of all taps for everybody at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..core.errors import UsageError
from ..core.model_state import device_of, untouched
from ..core.seeds import forked_rng
from . import bits
from .channel_axes import ChannelAxes
from .dropout import ImageDropout
from .taps import TapCall, Taps
from .traces import LiveTrace, Need, TapInfo, pool, sampled_units

# Images per forward pass. Fixed, so that results never depend on how work is cut; small enough for the caches.
BATCH = 128


# Images that taps are looked up with: an activation without a row for each of them is not made of them.
_EXAMPLES = 3


@dataclass(frozen=True)
class Survey:
    """The activation calls of a model.

    Attributes:
        taps: those that can be read, in execution order.
        left_out: the names of those that have no row for each image: biases that are computed from weights alone,
            or axes in another order.
    """

    taps: tuple[TapInfo, ...]
    left_out: tuple[str, ...] = ()

    @property
    def unclear(self) -> tuple[str, ...]:
        """The names of the taps with maps whose channels cannot be told from positions; axis 1 counts as channels."""
        return tuple(t.name for t in self.taps if len(t.shape) > 2 and t.channel_axis is None)


def discover(
    model: nn.Module, example: Tensor, modules: Sequence[str] = (), root: nn.Module | None = None
) -> tuple[TapInfo, ...]:
    """Return the taps of a model in execution order; as :func:`survey`."""
    return survey(model, example, modules, root).taps


def survey(model: nn.Module, example: Tensor, modules: Sequence[str] = (), root: nn.Module | None = None) -> Survey:
    """List the activation calls of a model, and find where each holds its channels.

    Args:
        model: maps images to logits (n, classes).
        example: at least one image, (n, channels, height, width), on the model's device.
        modules: names of modules to tap besides.
        root: the part of the model whose module paths name the taps; by default all of it.

    Raises:
        UsageError: if the model hides its calls or has no tap.
    """
    images = example[torch.arange(_EXAMPLES, device=example.device) % len(example)]
    try:
        with _uncompiled():
            found = _calls(model, images, modules, root, ChannelAxes(images))
    except UsageError:
        raise
    except Exception:
        # Whatever cannot be followed can still be read.
        found = _calls(model, images, modules, root, None)
    taps = tuple(tap for tap, rows in found if rows == _EXAMPLES)
    left_out = tuple(tap.name for tap, rows in found if rows != _EXAMPLES)
    if not taps:
        seen = (
            f"no ReLU-like call has a row for each image ({', '.join(left_out)})"
            if left_out
            else ("no ReLU-like call was seen")
        )
        raise UsageError(
            f'The model has no tap: {seen}. Name the modules to read in its suite entry: tap_modules = ["..."].'
        )
    return Survey(taps, left_out)


def _uncompiled() -> AbstractContextManager[object]:
    """Call compiled code from Python again, where its operations can be followed (torch 2.6 and newer)."""
    stance = getattr(torch.compiler, "set_stance", None)
    eager: AbstractContextManager[object] = nullcontext() if stance is None else stance("force_eager")
    return eager


def _calls(
    model: nn.Module, images: Tensor, modules: Sequence[str], root: nn.Module | None, axes: ChannelAxes | None
) -> list[tuple[TapInfo, int]]:
    """Every activation call of one pass, with the number of its rows (0 for a single number)."""
    found: list[tuple[TapInfo, int]] = []

    def visit(call: TapCall) -> None:
        axis = None if axes is None else axes.of(call.activation)
        shape = call.activation.shape
        tap = TapInfo(call.name, call.kind, tuple(shape[1:]), axis)
        arranged = tap.arranged(call.activation) if len(shape) else call.activation
        found.append((replace(tap, shape=tuple(arranged.shape[1:])), shape[0] if len(shape) else 0))

    following = axes or nullcontext()
    with untouched(model, freeze=False), forked_rng(0), torch.no_grad(), following, Taps(root or model, visit, modules):
        model(images)
    return found


@dataclass(frozen=True, eq=False)
class Recording:
    """What one pass left: ``logits`` float32 (n, classes), and code name to tap name to tensor, all on the CPU."""

    logits: Tensor
    codes: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def encode(need: Need, activation: Tensor, signs: Tensor, kept: Tensor | None) -> Tensor:
    """Return what is stored of one tap, first axis n.

    Args:
        need: which code.
        activation: post-activation, (n, ...), arranged.
        signs: of its shape: a unit's bit is 1 where this is positive, or true.
        kept: positions of the units that are kept (:func:`~.traces.sampled_units`); ``None`` for all.
    """
    if need.representation == "pooled":
        return pool(activation, need.statistic)
    flat = (activation if need.representation == "full" else signs).flatten(1)
    if kept is not None:
        flat = flat[:, kept.to(flat.device)]
    if need.representation == "full":
        return flat.float()
    return bits.pack(flat if flat.dtype == torch.bool else flat > 0)


class _Encoder:
    """Encodes each tap for each code while the batch is hot, into tensors for the whole set."""

    def __init__(self, taps: Sequence[TapInfo], needs: Sequence[Need], count: int) -> None:
        self.wanted: dict[str, list[Need]] = {tap.name: [] for tap in taps}
        for need in {n.code: n for n in needs}.values():
            chosen = {t.name for other in needs if other.code == need.code for t in other.select(taps)}
            for name in chosen:
                self.wanted[name].append(need)
        # Only bits are signs.
        self.signs = {name for name, found in self.wanted.items() if any(n.representation == "bits" for n in found)}
        self.taps = {tap.name: tap for tap in taps}
        self.kept = {(t.name, u): sampled_units(t, u) for t in taps for u in {n.units for n in needs}}
        self.codes: dict[str, dict[str, Tensor]] = {n.code: {} for n in needs}
        self.count = count
        self.start = 0
        self.rows = 0
        self.seen: list[str] = []

    def __call__(self, call: TapCall) -> None:
        tap = self.taps.get(call.name)
        if tap is not None or (self.rows > 1 and call.activation.shape[:1] == (self.rows,)):
            # Calls that were left out when the taps were listed have no row for each image.
            self.seen.append(call.name)
        for need in self.wanted.get(call.name, ()):
            value = self._encode(need, call)
            rows = self.codes[need.code].get(call.name)
            if rows is None:
                rows = torch.empty(self.count, *value.shape[1:], dtype=value.dtype)
                self.codes[need.code][call.name] = rows
            rows[self.start : self.start + len(value)] = value

    def _encode(self, need: Need, call: TapCall) -> Tensor:
        tap = self.taps[call.name]
        activation = tap.arranged(call.activation)
        signs = activation if call.positive is None else tap.arranged(call.positive)
        return encode(need, activation, signs, self.kept[call.name, need.units])

    def in_order(self) -> dict[str, dict[str, Tensor]]:
        return {c: {t: rows[t] for t in self.taps if t in rows} for c, rows in self.codes.items()}


def record(
    model: nn.Module,
    images: Tensor,
    taps: Sequence[TapInfo],
    needs: Sequence[Need],
    modules: Sequence[str] = (),
    root: nn.Module | None = None,
    dropout: bool = False,
    seed: int = 0,
    batch: int = BATCH,
) -> Recording:
    """Run images through the model once and encode what its taps show.

    Args:
        model: maps images to logits; its mode, gradients and the global RNG are as before afterwards.
        images: float32 in [0, 1], (n, channels, height, width), on any device.
        taps: from :func:`discover`.
        needs: the union of what all detectors ask for; where it is empty, the taps are not looked at.
        modules: the named modules and
        root: the part of the model that :func:`discover` was given.
        dropout: let dropout layers drop, as Monte Carlo views need it; the masks depend on image and seed alone.
        seed: of those masks, and for a model that draws random numbers.
        batch: images per forward pass.

    Raises:
        UsageError: if a pass goes through other taps than those discovered.
    """
    if not len(images):
        # The shapes of codes are found by recording one image and dropping it.
        blank = record(model, images.new_zeros(1, *images.shape[1:]), taps, needs, modules, root, dropout, seed)
        nothing = {code: {tap: rows[:0] for tap, rows in found.items()} for code, found in blank.codes.items()}
        return Recording(blank.logits[:0], nothing)
    device = device_of(model)
    encoder = _Encoder(taps, needs, len(images))
    logits: list[Tensor] = []
    expected = [t.name for t in taps]
    with ExitStack() as around:
        around.enter_context(untouched(model, freeze=False))
        around.enter_context(forked_rng(seed))
        around.enter_context(torch.no_grad())
        dropping = around.enter_context(ImageDropout(model, seed)) if dropout else None
        if needs:
            around.enter_context(Taps(root or model, encoder, modules, signs=encoder.signs))
        for start in range(0, len(images), batch):
            encoder.start, encoder.seen, encoder.rows = start, [], len(images[start : start + batch])
            if dropping is not None:
                dropping.begin(images[start : start + batch])
            logits.append(model(images[start : start + batch].to(device)).float().cpu())
            if needs and encoder.seen != expected:
                raise UsageError(
                    "The model takes another path for these images than when its taps were listed; models whose "
                    "sequence of activations depends on the input cannot be traced."
                )
    return Recording(torch.cat(logits), encoder.in_order())


@dataclass
class Overwritten:
    """What is known of the taps whose values a model changes later in a pass (``x += shortcut``).

    Attributes:
        taps: by name, whether it does; those that are not there were not looked at and are copied.
    """

    taps: dict[str, bool] = field(default_factory=dict)


def live_trace(
    model: nn.Module,
    images: Tensor,
    taps: Sequence[TapInfo],
    needs: Sequence[Need] = (),
    modules: Sequence[str] = (),
    root: nn.Module | None = None,
    also: Collection[str] = (),
    overwritten: Overwritten | None = None,
) -> LiveTrace:
    """Return a forward pass that can be differentiated with respect to ``images``; the model must be in eval mode.

    Args:
        model: maps images to logits.
        images: on the model's device.
        taps: from :func:`discover`.
        needs: codes whose taps are kept.
        modules: the named modules and
        root: the part of the model that :func:`discover` was given.
        also: names of further taps that are kept.
        overwritten: remembers from one pass to the next which taps have to be copied; without it all are.
    """
    known = {tap.name: tap for tap in taps}
    wanted = {tap.name for need in needs for tap in need.select(taps)} | set(also)
    seen = {} if overwritten is None else overwritten.taps
    live = _LivePass(known, wanted, seen)
    with Taps(root or model, live.visit, modules, signs=(), preactivations=wanted) if wanted else nullcontext():
        logits = model(images)
    if overwritten is not None:
        changed = live.changed()
        relied_on = {name for name in changed if seen.get(name) is False}
        seen.update({name: name in changed for name in live.activations if not seen.get(name)})
        if relied_on:
            # It did not when it was looked at.
            return live_trace(model, images, taps, needs, modules, root, also)
    return LiveTrace(images, logits, tuple(taps), live.activations, live.preactivations, tuple(needs))


class _LivePass:
    """Keeps what a pass shows, without copies where the model is known to leave it alone.

    Args:
        taps: all of the model's, by name.
        wanted: names of those that are kept.
        overwritten: whether the model changes a tap later, by name, where that is known.
    """

    def __init__(self, taps: Mapping[str, TapInfo], wanted: Collection[str], overwritten: Mapping[str, bool]) -> None:
        self._taps, self._wanted, self._overwritten = taps, wanted, dict(overwritten)
        self.activations: dict[str, Tensor] = {}
        self.preactivations: dict[str, Tensor] = {}
        self._shown: list[tuple[str, Tensor, Tensor, int]] = []

    def visit(self, call: TapCall) -> None:
        if call.name not in self._wanted or call.name not in self._taps:
            return
        tap = self._taps[call.name]
        self.activations[call.name] = tap.arranged(self._kept(call.name, call.activation))
        if call.preactivation is not None:
            self.preactivations[call.name] = tap.arranged(self._kept(call.name, call.preactivation))

    def _kept(self, name: str, shown: Tensor) -> Tensor:
        known = self._overwritten.get(name)
        # Where it is not copied, a node of its own in the graph, as a copy is: gradients add up in the same order.
        kept = shown.view_as(shown) if known is False else shown.clone()
        if not known:
            self._shown.append((name, shown, kept, 0 if shown.is_inference() else shown._version))
        return kept

    def changed(self) -> set[str]:
        """Return the taps whose values were changed after they were shown, by their versions and against copies.

        Compiled code changes values without a new version.
        """
        return {
            name
            for name, shown, kept, version in self._shown
            if (not shown.is_inference() and shown._version != version)
            or (name not in self._overwritten and not torch.equal(shown.detach(), kept.detach()))
        }


def input_gradient(
    model: nn.Module, images: Tensor, objective: Callable[[Tensor], Tensor], batch: int = BATCH
) -> Tensor:
    """The gradient of ``objective(logits)`` (one number per image) with respect to the images, float32, on the CPU."""
    device = device_of(model)
    parts = [images[:0].cpu()]
    with untouched(model), forked_rng(0), torch.enable_grad():
        for start in range(0, len(images), batch):
            x = images[start : start + batch].to(device).clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(objective(model(x)).sum(), x)
            parts.append(gradient.float().cpu())
    return torch.cat(parts)
