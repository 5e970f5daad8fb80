"""What ClaDec is built from: the encoder that a network is up to a tap, decoders back to images, fresh weights."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...harness.core.errors import UsageError
from ...harness.tracing.taps import TapCall, Taps
from ...harness.tracing.traced_model import TracedModel
from ...harness.tracing.traces import TapInfo, select_taps

# A flat code is spread over a map of at most this side, which transposed convolutions then enlarge.
_FIRST_SIDE = 8
# The offset of a pixel that never varies must not lie beyond the reach of a gradient.
_EDGE = 0.01
# The first layer of a decoder may have so many weights (256 MiB in single precision).
_MOST_WEIGHTS = 2**26


class _ReachedError(Exception):
    """The last tap that is wanted has been seen: what follows would be computed for nothing."""


class Decoder(nn.Module):
    """From the activations of one tap back to images in [0, 1].

    A map keeps its size through a 3 x 3 convolution, a flat code becomes a small map by a dense layer; transposed
    convolutions (4 x 4, stride 2) double it up to the image, a sigmoid ends it: the official ClaDec's form, with
    ``width`` maps throughout. Two things are added, for every source alike, so that few steps suffice: it starts as the
    mean image (a learnt offset for each pixel, and a last layer of zeros), which a code without information keeps; and
    the code enters divided by one number, its root mean square over the first mini-batch.

    Args:
        code: the shape of one activation.
        mean: the mean training image, (channels, height, width).
        width: maps of the hidden layers.

    Raises:
        UsageError: for a flat code so long that the dense layer would not fit into memory.
    """

    scale: Tensor

    def __init__(self, code: Sequence[int], mean: Tensor, width: int) -> None:
        super().__init__()
        channels, height, wide = mean.shape
        self.size = height, wide
        self.is_map = len(code) == 3 and max(code[1:]) > 1
        if self.is_map:
            doublings = max(0, round(math.log2(height / code[1])))
            self.start = (width, int(code[1]), int(code[2]))
            self.entry: nn.Module = nn.Conv2d(code[0], width, 3, padding=1)
        else:
            doublings = max(0, math.ceil(math.log2(max(height, wide) / _FIRST_SIDE)))
            self.start = (width, math.ceil(height / 2**doublings), math.ceil(wide / 2**doublings))
            units = math.prod(code)
            if units * math.prod(self.start) > _MOST_WEIGHTS:
                raise UsageError(
                    f"A decoder from a flat activation of {units} units does not fit into memory: choose other taps, "
                    "or a smaller width."
                )
            self.entry = nn.Linear(units, math.prod(self.start))
        layers: list[nn.Module] = []
        last: nn.Module = nn.Conv2d(width, channels, 3, padding=1)
        for left in reversed(range(doublings)):
            last = nn.ConvTranspose2d(width, width if left else channels, 4, stride=2, padding=1)
            layers += [last, nn.ReLU()] if left else []
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.stages = nn.Sequential(*layers, last)
        self.offset = nn.Parameter(mean.clamp(_EDGE, 1 - _EDGE).logit())
        self.register_buffer("scale", torch.tensor(0.0))

    def forward(self, code: Tensor) -> Tensor:
        """Activations (n, ...) to images (n, channels, height, width)."""
        if not self.scale:
            power = code.detach().square().mean().sqrt()
            self.scale.copy_(torch.where(power > 0, 1 / power, torch.ones_like(power)))
        code = code * self.scale
        hidden = torch.relu(self.entry(code if self.is_map else code.flatten(1)))
        image = self.stages(hidden.view(-1, *self.start))
        if image.shape[2:] != self.size:
            image = F.interpolate(image, self.size, mode="bilinear", align_corners=False)
        return torch.sigmoid(image + self.offset)


def encode(traced_model: TracedModel, images: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
    """The activations (n, ...) at ``taps``, with their graph; the pass ends at the last of them.

    The same activations as ``traced_model.live(...)`` gives: only the layers behind the last tap are left out.
    """
    found: dict[str, Tensor] = {}
    known = {tap.name: tap for tap in traced_model.taps}

    def visit(call: TapCall) -> None:
        if call.name in taps:
            # A clone: the network may go on in place.
            found[call.name] = known[call.name].arranged(call.activation.clone())
            if len(found) == len(taps):
                raise _ReachedError

    with contextlib.suppress(_ReachedError), Taps(traced_model.root or traced_model.model, visit, traced_model.modules):
        traced_model.model(images)
    return found


def changed_logits(traced_model: TracedModel, images: Tensor, tap: str, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The logits when the activation at ``tap`` is replaced by ``change`` of it, without gradients."""
    info = next(known for known in traced_model.taps if known.name == tap)

    def visit(call: TapCall) -> None:
        if call.name == tap:
            call.activation.copy_(info.as_computed(change(info.arranged(call.activation.clone()))))

    with torch.no_grad(), Taps(traced_model.root or traced_model.model, visit, traced_model.modules):
        logits: Tensor = traced_model.model(images)
    return logits


def fresh(untrained: TracedModel, draws: torch.Generator, device: torch.device) -> TracedModel:
    """A copy of an untrained network with weights of its own.

    The entries of every tensor change places at random: another draw from whatever initialisation the architecture
    has, its scales included, without knowing which it is.
    """
    model, root = copy.deepcopy((untrained.model, untrained.root))
    with torch.no_grad():
        for parameter in model.parameters():
            order = torch.randperm(parameter.numel(), generator=draws).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    model.requires_grad_(True)
    return replace(untrained, model=model.to(device).eval(), root=root)


def chosen_taps(selection: str | Sequence[str], taps: Sequence[TapInfo]) -> tuple[TapInfo, ...]:
    """``spread:N`` (N taps evenly by depth, the first and the last among them; one: the last), or as ``Need`` takes.

    Raises:
        UsageError: for a selection that cannot be read, or an unknown tap.
    """
    if isinstance(selection, str) and selection.startswith("spread:"):
        number = selection.removeprefix("spread:")
        if not number.isdigit() or int(number) == 0:
            raise UsageError(f"taps = {selection!r}: write spread:N with N of at least 1.")
        count = min(int(number), len(taps))
        if count == 1:
            return (taps[-1],)
        places = {round(i * (len(taps) - 1) / (count - 1)) for i in range(count)}
        return tuple(taps[p] for p in sorted(places))
    return select_taps(selection if isinstance(selection, str) else tuple(selection), taps)
