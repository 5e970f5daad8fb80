"""One instrumented forward: logits and the codes of all taps for everybody at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..core.batches import batch_for, in_batches
from ..core.errors import UsageError
from ..core.model_state import device_of, untouched
from ..core.seeds import forked_rng
from .channel_axes import ChannelAxes
from .dropout import ImageDropout
from .encoding import Encoder
from .taps import TapCall, Taps
from .traces import LiveTrace, Need, TapInfo

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


def record(
    model: nn.Module,
    images: Tensor,
    taps: Sequence[TapInfo],
    needs: Sequence[Need],
    modules: Sequence[str] = (),
    root: nn.Module | None = None,
    dropout: bool = False,
    seed: int = 0,
    batch: int | None = None,
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
        batch: images per forward pass; by default as many as suit the device.

    Raises:
        UsageError: if a pass goes through other taps than those discovered.
    """
    if not len(images):
        # The shapes of codes are found by recording one image and dropping it.
        blank = record(model, images.new_zeros(1, *images.shape[1:]), taps, needs, modules, root, dropout, seed)
        nothing = {code: {tap: rows[:0] for tap, rows in found.items()} for code, found in blank.codes.items()}
        return Recording(blank.logits[:0], nothing)
    device = device_of(model)
    encoder = Encoder(taps, needs, len(images), device)
    logits: dict[int, Tensor] = {}
    expected = [t.name for t in taps]
    with ExitStack() as around:
        around.enter_context(untouched(model, freeze=False))
        around.enter_context(forked_rng(seed))
        around.enter_context(torch.no_grad())
        dropping = around.enter_context(ImageDropout(model, seed)) if dropout else None
        if needs:
            around.enter_context(Taps(root or model, encoder, modules, signs=encoder.signs))

        def one_pass(rows: slice) -> None:
            encoder.begin(rows)
            if dropping is not None:
                dropping.begin(images[rows])
            logits[rows.start] = encoder.end(model(images[rows].to(device)))
            if needs and encoder.seen != expected:
                raise UsageError(
                    "The model takes another path for these images than when its taps were listed; models whose "
                    "sequence of activations depends on the input cannot be traced."
                )

        in_batches(len(images), batch or batch_for(device, images.shape[1:]), one_pass)
    return Recording(torch.cat(list(logits.values())), encoder.codes())


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
    model: nn.Module, images: Tensor, objective: Callable[[Tensor], Tensor], batch: int | None = None
) -> Tensor:
    """The gradient of ``objective(logits)`` (one number per image) with respect to the images, float32, on the CPU."""
    device = device_of(model)
    found = torch.empty(images.shape, dtype=torch.float32)

    def one_pass(rows: slice) -> None:
        x = images[rows].to(device).clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(objective(model(x)).sum(), x)
        found[rows] = gradient.float().cpu()

    with untouched(model), forked_rng(0), torch.enable_grad():
        in_batches(len(images), batch or batch_for(device, images.shape[1:]), one_pass)
    return found
