"""What chains are drawn to: a unit's activation, and what holds them back: total variation and a discriminator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...harness.core.errors import UsageError
from ...harness.tracing.traced_model import TracedModel
from ...harness.tracing.traces import TapInfo
from .space import Space

# Images per forward pass: activations of more would not stay in the caches.
_BATCH = 32
_FORMS = 'write "logit:CLASS", "channel:TAP:NUMBER" or "unit:TAP:NUMBER"'


@dataclass(frozen=True)
class Target:
    """Something in a network that an image can excite.

    Attributes:
        name: as a suite writes it.
        kind: logit, channel or unit.
        index: of the class, the map, or the flat position.
        tap: where it is; empty for a logit.
    """

    name: str
    kind: str
    index: int
    tap: str = ""


def parse(text: str, taps: Sequence[TapInfo], classes: Sequence[str]) -> Target:
    """Read ``logit:3``, ``logit:cat``, ``channel:TAP:5`` or ``unit:TAP:17``.

    A channel is the mean of a map, and a unit one number, both before the tap's rectifier: after it, a silent unit has
    no gradient to follow.

    Raises:
        UsageError: one sentence with what there is instead.
    """
    kind, _, rest = text.partition(":") if isinstance(text, str) else ("", "", "")
    if kind == "logit" and rest:
        if rest in classes:
            return Target(f"logit:{rest}", kind, list(classes).index(rest))
        if not rest.isdigit():
            raise UsageError(f"target {text!r}: there is no class {rest!r}; there are {', '.join(classes)}.")
        if int(rest) >= len(classes):
            raise UsageError(f"target {text!r}: classes are numbered from 0 to {len(classes) - 1}.")
        return Target(f"logit:{classes[int(rest)]}", kind, int(rest))
    tap, _, number = rest.rpartition(":")
    if kind not in ("channel", "unit") or not tap or not number.isdigit():
        raise UsageError(f"target {text!r} cannot be read: {_FORMS}.")
    found = next((t for t in taps if t.name == tap), None)
    if found is None:
        raise UsageError(f"target {text!r}: there is no tap {tap!r}; there are {', '.join(t.name for t in taps)}.")
    count = found.units if kind == "unit" else _maps(found)
    if int(number) >= count:
        raise UsageError(f"target {text!r}: {kind}s of {tap} are numbered from 0 to {count - 1}.")
    return Target(text, kind, int(number), tap)


def _maps(tap: TapInfo) -> int:
    # Transformers' activations are (tokens, features).
    return tap.shape[-1] if len(tap.shape) == 2 else tap.shape[0]


@dataclass(frozen=True, eq=False)
class Activations:
    """The activations of some targets in one network, as a function of images."""

    traced_model: TracedModel
    targets: tuple[Target, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Images (n, channels, height, width) on the model's device to (n, targets); differentiable."""
        if all(t.kind == "logit" for t in self.targets):
            logits = self.traced_model.model(images)
            return torch.stack([logits[:, t.index] for t in self.targets], 1)
        live = self.traced_model.live((), images, [t.tap for t in self.targets if t.kind != "logit"])
        columns = []
        for target in self.targets:
            if target.kind == "logit":
                columns.append(live.logits[:, target.index])
                continue
            # A named module that is no rectifier has no other side.
            values = live.preactivations.get(target.tap, live.activations[target.tap])
            if target.kind == "unit":
                columns.append(values.flatten(1)[:, target.index])
            elif values.ndim == 3:
                columns.append(values[:, :, target.index].mean(1))
            else:
                columns.append(values[:, target.index].flatten(1).mean(1))
        return torch.stack(columns, 1)

    def of(self, images: Tensor, device: torch.device) -> Tensor:
        """Float64 (n, targets), on the CPU, without a graph."""
        parts = [torch.empty(0, len(self.targets), dtype=torch.float64)]
        with torch.no_grad():
            for part in images.split(4 * _BATCH):
                parts.append(self(part.to(device)).double().cpu())
        return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class Scale:
    """Activations in standard deviations from the mean of data: (targets,) each."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Scale:
        """From (n, targets); a target that is the same for every image keeps its unit."""
        deviation = values.std(0) if len(values) > 1 else torch.ones_like(values[0])
        return cls(values.mean(0), torch.where(deviation > 1e-12, deviation, torch.ones_like(deviation)))

    def __call__(self, values: Tensor) -> Tensor:
        """(n, targets)."""
        return (values - self.mean.to(values)) / self.deviation.to(values)


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, (n,)."""
    down = (images[:, :, 1:] - images[:, :, :-1]).abs().flatten(1).mean(1)
    return down + (images[:, :, :, 1:] - images[:, :, :, :-1]).abs().flatten(1).mean(1)


@dataclass(eq=False)
class Energy:
    """The potential of a set of chains: (R − pull · z + weight · softplus(−d) + smooth · TV) / T.

    R is the reference measure's potential, z the activation in standard deviations of data, d the discriminator's logit
    for "real". Below 1 the temperature sharpens all of it, so that samples crowd where the energy is least.

    Attributes:
        activations: of all targets.
        scale: of each.
        space: the chains' coordinates.
        target: int64 (n,), which target each chain is drawn to; -1 for none.
        weight: float (n,), of the discriminator.
        discriminator: images to logits (n,); ``None`` while there is none.
        pull: of the activation.
        smooth: of the total variation, per pixel.
        temperature: T.
    """

    activations: Activations
    scale: Scale
    space: Space
    target: Tensor
    weight: Tensor
    discriminator: nn.Module | None
    pull: float
    smooth: float = 0.0
    temperature: float = 1.0
    part: int = field(default=_BATCH)

    def __call__(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Potential, float64 (n,), and what is watched, (n, 3): z, d (NaN without a discriminator), total variation."""
        values, watched = [], []
        for rows in torch.arange(len(w), device=w.device).split(self.part):
            value, seen = self._part(w[rows], self.target.to(w.device)[rows], self.weight.to(w)[rows])
            values.append(value)
            watched.append(seen)
        return torch.cat(values), torch.cat(watched)

    def _part(self, w: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        images = self.space.images(w)
        drawn = (target >= 0).to(w)
        z = self.scale(self.activations(images)).gather(1, target.clamp(min=0)[:, None])[:, 0]
        rough = total_variation(images)
        total = -self.pull * z * drawn
        if self.smooth:
            total = total + self.smooth * images[0].numel() * rough
        d = torch.full_like(z, math.nan)
        if self.discriminator is not None:
            d = self.discriminator(images)
            total = total + weight * F.softplus(-d)
        potential = (self.space.potential(w) + total.double()) / self.temperature
        return potential, torch.stack([z, d, rough], 1).detach()


def ascend(
    activations: Activations, scale: Scale, start: Tensor, target: Tensor, steps: int, rate: float,
    smooth: float = 0.0, jitter: int = 0, draws: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Plain activation maximisation: Adam on the pixels, clipped to [0, 1]; no noise, no prior (T to 0).

    Args:
        activations: of all targets.
        scale: of each.
        start: images (n, channels, height, width) on the model's device.
        target: int64 (n,).
        steps: of Adam.
        rate: its learning rate.
        smooth: weight of the total variation, per pixel.
        jitter: each step shifts the images by at most so many pixels, so that no single grid position is exploited.
        draws: of the shifts.
    """
    images = start.detach().clone().requires_grad_(True)
    optimiser = torch.optim.Adam([images], rate)
    chosen = target.to(start.device)[:, None]
    for _ in range(steps):
        shift = (0, 0)
        if jitter:
            down, right = torch.randint(-jitter, jitter + 1, (2,), generator=draws).tolist()
            shift = (int(down), int(right))
        optimiser.zero_grad()
        for rows in torch.arange(len(images), device=images.device).split(_BATCH):
            part = images[rows]
            z = scale(activations(part.roll(shift, (2, 3)))).gather(1, chosen[rows])
            loss = -z.sum() + smooth * part[0].numel() * total_variation(part).sum()
            torch.autograd.backward(loss, inputs=[images])
        optimiser.step()
        with torch.no_grad():
            images.clamp_(0, 1)
    return images.detach()
