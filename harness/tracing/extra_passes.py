"""What a detector may ask for beyond the plain forward: passes of a changed input, and input gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class View:
    """An extra forward pass of a changed input, which the harness traces.

    Attributes:
        name: how ``traces.view(name)`` finds it.
        transform: (images in [0, 1], seeded generator) to images of the same shape.
        dropout: run the model's dropout layers in train mode for this forward.
        differentiable: an attack that follows the detector's surrogate shall use the transform's own gradient; without
            it the gradient passes straight through the transform (BPDA; Athalye, Carlini, Wagner 2018), as it has to
            where the transform rounds.
    """

    name: str
    transform: Callable[[Tensor, torch.Generator], Tensor] = lambda images, generator: images
    dropout: bool = False
    differentiable: bool = False


@dataclass(frozen=True)
class InputGradient:
    """A gradient with respect to the input, which the harness computes.

    Attributes:
        name: how ``traces.gradient(name)`` finds it.
        objective: logits (n, classes) to one number per image (n,); its gradient is taken.
    """

    name: str
    objective: Callable[[Tensor], Tensor]
