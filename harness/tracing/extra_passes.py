"""What a detector may ask for beyond the plain forward: passes of a changed input, and input gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import UsageError


@dataclass(frozen=True)
class Ascent:
    """A small attack of the detector's own: signed gradient steps that raise an objective within an L-inf ball.

    It starts at the image, draws nothing, and keeps the best iterate, the start included. Pixels stay in [0, 1].

    Attributes:
        objective: (logits of the moved images, logits of the images at the start), (n, classes) each, to one number
            per image, (n,), which depends on that image alone.
        eps: radius of the ball, in units of [0, 1] pixels.
        step_size: of one step, in the same units.
        steps: number of steps; each takes a forward and a backward pass.

    Raises:
        UsageError: for a parameter out of range.
    """

    objective: Callable[[Tensor, Tensor], Tensor]
    eps: float
    step_size: float
    steps: int

    def __post_init__(self) -> None:
        for name in ("eps", "step_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
                raise UsageError(f"{name} = {value!r:.60} of an ascent: give a number above 0, at most 1.")
        if type(self.steps) is not int or self.steps < 1:
            raise UsageError(f"steps = {self.steps!r:.60} of an ascent: give a whole number of at least 1.")


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
        ascent: moves the images further after the transform, along gradients of the model. The gradient of an attack
            passes straight through it: where an ascent has found the maximum, that is the gradient of the maximum
            (Danskin 1966), and the signs that it follows have no gradient of their own.
    """

    name: str
    transform: Callable[[Tensor, torch.Generator], Tensor] = lambda images, generator: images
    dropout: bool = False
    differentiable: bool = False
    ascent: Ascent | None = None


@dataclass(frozen=True)
class InputGradient:
    """A gradient with respect to the input, which the harness computes.

    Attributes:
        name: how ``traces.gradient(name)`` finds it.
        objective: logits (n, classes) to one number per image (n,); its gradient is taken.
    """

    name: str
    objective: Callable[[Tensor], Tensor]
