"""What the views of a detector make of images: its transform, and the ascent that may follow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.batches import batch_for, in_batches
from ..core.errors import AftershockError
from ..core.model_state import device_of, untouched
from ..core.seeds import forked_rng
from .extra_passes import Ascent, View


def view_images(model: nn.Module, view: View, images: Tensor, draws: torch.Generator) -> Tensor:
    """Return the images of a view, float32 (n, channels, height, width), on the CPU.

    Args:
        model: that an ascent follows.
        view: what a detector declares.
        images: on any device; they stay as they are.
        draws: what the transform draws from.

    Raises:
        AftershockError: if the transform changes the images' shape.
    """
    changed = view.transform(images.detach().cpu().clone(), draws)
    if changed.shape != images.shape:
        raise AftershockError(f"the view {view.name!r} changes the images' shape to {tuple(changed.shape)}")
    return changed if view.ascent is None else climb(model, changed, view.ascent)


def climb(model: nn.Module, images: Tensor, ascent: Ascent) -> Tensor:
    """Return images moved by an ascent, float32 (n, channels, height, width), on the CPU.

    Args:
        model: maps images to logits; its mode and the global RNG are as before afterwards.
        images: in [0, 1], on any device.
        ascent: what is raised, and how far.

    Raises:
        AftershockError: if the objective does not give one number per image.
    """
    device = device_of(model)
    found = torch.empty(images.shape, dtype=torch.float32)

    def one_batch(rows: slice) -> None:
        found[rows] = _climbed(model, images[rows].detach().to(device), ascent).cpu()

    with untouched(model), forked_rng(0), torch.enable_grad():
        in_batches(len(images), batch_for(device, images.shape[1:]), one_batch)
    return found


def _climbed(model: nn.Module, start: Tensor, ascent: Ascent) -> Tensor:
    low, high = (start - ascent.eps).clamp(min=0), (start + ascent.eps).clamp(max=1)
    x, best = start, start
    reference, highest = None, None
    for step in range(ascent.steps + 1):
        last = step == ascent.steps
        x = x.detach().requires_grad_(not last)
        with torch.set_grad_enabled(not last):
            logits = model(x)
            reference = logits.detach() if reference is None else reference
            value = ascent.objective(logits, reference)
        if tuple(value.shape) != (len(x),):
            raise AftershockError(
                f"the objective of an ascent gave shape {tuple(value.shape)} for {len(x)} images instead of ({len(x)},)"
            )
        reached = value.detach()
        higher = torch.ones_like(reached, dtype=torch.bool) if highest is None else reached > highest
        best = torch.where(higher.view(-1, 1, 1, 1), x.detach(), best)
        highest = reached if highest is None else torch.where(higher, reached, highest)
        if not last:
            (gradient,) = torch.autograd.grad(value.sum(), x)
            x = torch.minimum(torch.maximum(x.detach() + ascent.step_size * gradient.sign(), low), high)
    return best
