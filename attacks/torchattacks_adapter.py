"""Attacks of torchattacks, with every parameter explicit."""

from __future__ import annotations

from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from . import checks
from .base import CountingModel, PerturbationInfo
from .library import LibraryAttack


class _Attack(Protocol):
    def set_device(self, device: torch.device) -> None: ...
    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor: ...


class TorchattacksAttack(LibraryAttack):
    """An attack class of torchattacks, called on batches of correctly classified images."""

    def run(self, model: CountingModel, images: Tensor, labels: Tensor) -> Tensor:
        import torchattacks

        attack = cast(_Attack, getattr(torchattacks, self.attack)(self.seen(model, labels), **self.settings))
        # The library looks for the device of a first parameter, which a model need not have.
        attack.set_device(images.device)
        return attack(images, labels)

    def seen(self, model: CountingModel, labels: Tensor) -> nn.Module:
        """The model that the attack gets for a batch of these labels."""
        return model


class CW(TorchattacksAttack):
    """The L2 attack of Carlini and Wagner with a fixed trade-off ``c`` (no binary search).

    Three faults of the library are kept out, and one cannot be:

    * its loss masks logits with zeros, so it is wrong where logits are negative: the attack sees logits shifted so
      that each image's smallest is 1, which changes neither predictions nor the paper's loss;
    * it keeps the smallest perturbation that is wrong at all, so its ``kappa`` buys no confidence: here ``kappa`` is
      added to the label's logit instead, which is the paper's loss up to a constant and makes "wrong" mean "wrong by
      more than kappa", as in the authors' code;
    * it stops the whole batch when the summed cost rises between two of ten checks, so an image's result would depend
      on its neighbours: here every image gets all its steps;
    * elements at exactly 0 or 1 never move (their tanh-space variable is infinite), which weakens it on images with a
      flat background such as MNIST.

    An image that is not fooled (by that margin) comes back as it was.

    Args:
        c: the weight of the misclassification loss against the squared L2 norm.
        kappa: the margin of logits by which the result must be wrong (confidence).
        steps: Adam steps.
        lr: Adam's learning rate.

    Raises:
        UsageError: for a parameter out of range.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="CW",
        kind="attack",
        family="cw",
        norm="l2",
        library="torchattacks",
        paper="Carlini & Wagner 2017, arXiv:1608.04644",
        summary="Minimises the L2 norm and a margin loss by Adam in tanh space.",
    )
    attack = "CW"

    def __init__(self, c: float = 1.0, kappa: float = 0.0, steps: int = 50, lr: float = 0.01) -> None:
        self.kappa = checks.number("kappa", kappa)
        super().__init__(
            c=checks.number("c", c, exclusive=True),
            kappa=0.0,
            steps=_EveryStep(checks.whole("steps", steps, 1)),
            lr=checks.number("lr", lr, exclusive=True),
        )

    def seen(self, model: CountingModel, labels: Tensor) -> nn.Module:
        return _ForCW(model, labels, self.kappa)


class _ForCW(nn.Module):
    def __init__(self, model: nn.Module, labels: Tensor, kappa: float) -> None:
        super().__init__()
        self.model = model
        self._labels, self._kappa = labels[:, None], kappa

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        # Above 0, not at it: against the library's masked zeros a tie would take the gradient.
        logits = logits - logits.detach().amin(1, keepdim=True) + 1
        return logits.scatter_add(1, self._labels, torch.full_like(self._labels, self._kappa, dtype=logits.dtype))


class _EveryStep(int):
    """A number of steps whose tenth, the library's interval between its checks for an early stop, is never reached."""

    def __floordiv__(self, other: int) -> int:
        return int(self) + 1
