"""Attacks of torchattacks, with every parameter explicit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from ....harness.core.ranges import Count, NotNegative, Positive
from ....harness.core.seeds import Draws, derive_seed, forked_rng
from ...base import parameters as checks
from ...base.perturbation import CountingModel, PerturbationInfo
from ..declare import LibraryAttack, Value


class LibraryClass(Protocol):
    """What is used of an attack object of torchattacks."""

    def set_device(self, device: torch.device) -> None: ...
    def set_mode_targeted_by_function(self, function: Callable[[Tensor, Tensor], Tensor], quiet: bool) -> None: ...
    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor: ...


class TorchattacksAttack(LibraryAttack):
    """An attack class of torchattacks, called on batches of correctly classified images.

    A step size of ``None`` follows the budget, as our own PGD's does: 2.5 eps / steps, with which a run can reach the
    boundary of its ball from any start inside it (1.25 eps where there is one step only).

    Attributes:
        fixed: arguments of the library that are not the user's to choose.
        not_passed: settings that the library does not get.
        step: the library's names of the step size and of the number of steps.
        seeded: it seeds the global generators itself, with 0 unless it is given a seed.
        counts_classes: it must be told how many classes there are; ``targets`` limits how many it aims at.
        alone: it gets one image at a time, with a seed of its own.
        on_cpu: its bookkeeping works on the CPU only; the model stays where it is.
        batch_invariant: with its default parameters, an image's result does not depend on what else is in its batch.
        square: it works on square images only.
        smallest: the shortest side that it works on.
        most_values: the most values (channels times pixels) of an image that it has the memory for.
        fewest_classes: how many classes it needs.
    """

    fixed: ClassVar[Mapping[str, Value]] = {}
    not_passed: ClassVar[tuple[str, ...]] = ()
    step: ClassVar[tuple[str, str]] = ("alpha", "steps")
    seeded: ClassVar[bool] = False
    counts_classes: ClassVar[bool] = False
    alone: ClassVar[bool] = False
    on_cpu: ClassVar[bool] = False
    batch_invariant: ClassVar[bool] = False
    square: ClassVar[bool] = False
    smallest: ClassVar[int] = 1
    most_values: ClassVar[int | None] = None
    fewest_classes: ClassVar[int] = 2

    def inapplicable(self, shape: tuple[int, int, int], classes: int) -> str | None:
        reason = super().inapplicable(shape, classes)
        if reason is not None:
            return reason
        channels, height, width = shape
        title = f"{self.info.title} of {self.info.library}"
        # The loss called DLR divides by a difference with the third largest logit.
        fewest = max(self.fewest_classes, 3 if self.settings.get("loss") == "dlr" else 0)
        if classes < fewest:
            return f"{title} needs a model of at least {fewest} classes, not {classes}."
        if self.square and height != width:
            return f"{title} works on square images only, not {height} x {width}."
        if min(height, width) < self.smallest:
            return f"{title} needs images of at least {self.smallest} x {self.smallest}, not {height} x {width}."
        if self.most_values is not None and channels * height * width > self.most_values:
            return (
                f"{title} needs memory for the square of an image's values: at most {self.most_values:,} of them, not "
                f"{channels * height * width:,}."
            )
        return None

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        if not self.alone:
            return super().perturb(model, images, labels, draws)
        made = []
        for i, index in enumerate(draws.indices):
            with forked_rng(derive_seed(draws.seed, "alone", index)):
                made.append(super().perturb(model, images[i : i + 1], labels[i : i + 1], draws.take([i])))
        return torch.cat(made)

    def run(self, model: CountingModel, images: Tensor, labels: Tensor) -> Tensor:
        seen = self.seen(model, labels)
        if self.on_cpu:
            seen, images, labels = _Remote(seen, images.device), images.cpu(), labels.cpu()
        classes = 0
        if self.counts_classes:
            with torch.no_grad():
                classes = seen(images[:1]).shape[1]
        return self.make(seen, images.device, classes)(images, labels)

    def make(self, seen: nn.Module, device: torch.device, classes: int) -> LibraryClass:
        """Return the library's attack on a model, with a fresh seed; ``classes`` is 0 where it is not needed."""
        import torchattacks

        attack = cast(LibraryClass, getattr(torchattacks, self.attack)(seen, **self.arguments(classes)))
        # The library looks for the device of a first parameter, which a model need not have.
        attack.set_device(device)
        return attack

    def arguments(self, classes: int) -> dict[str, object]:
        """Return the library's keyword arguments."""
        given: dict[str, object] = {k: v for k, v in self.settings.items() if k not in self.not_passed}
        size, steps = self.step
        if size in given and given[size] is None and self.eps is not None:
            times = cast(int | None, given.get(steps))
            given[size] = 1.25 * self.eps if times is None else 2.5 * self.eps / times
        if self.seeded:
            given["seed"] = int(torch.randint(2**31, ()))
        if self.counts_classes:
            targets = cast(int, self.settings.get("targets", classes - 1))
            # The library aims at one class less than it is told there are.
            given["n_classes"] = min(classes, targets + 1)
        return given | dict(self.fixed)

    def seen(self, model: CountingModel, labels: Tensor) -> nn.Module:
        """Return the model that the attack gets for a batch of these labels."""
        return model


class _Remote(nn.Module):
    """A model on another device than its images."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.model, self._device = model, device

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.to(self._device))
        return logits.to(images.device)


class CW(TorchattacksAttack):
    """The L2 attack of Carlini and Wagner with a fixed trade-off ``c`` (no binary search).

    Three faults of the library are kept out, and one cannot be:

    * its loss masks logits with zeros, so it is wrong where logits are negative: the attack sees logits shifted so
      that each image's smallest is 1, which changes neither predictions nor the paper's loss;
    * it keeps the smallest perturbation that is wrong at all, so its ``kappa`` adds no confidence: here ``kappa`` is
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
        eps: what counts as within the budget; the attack itself minimises whatever it is.

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
        minimises=True,
        cost="medium",
        summary="Minimises the L2 norm and a margin loss by Adam in tanh space.",
    )
    attack = "CW"
    batch_invariant = True

    def __init__(
        self,
        c: Positive = 1.0,
        kappa: NotNegative = 0.0,
        steps: Count = 50,
        lr: Positive = 0.01,
        eps: float | None = None,
    ) -> None:
        self.eps = None if eps is None else checks.budget(eps, "l2")
        self.kappa = kappa
        super().__init__(
            c=c,
            kappa=0.0,
            steps=_EveryStep(steps),
            lr=lr,
        )

    def seen(self, model: CountingModel, labels: Tensor) -> nn.Module:
        return ShiftedModel(model, labels, self.kappa)


class ShiftedModel(nn.Module):
    """Logits for losses that mask with zeros: the smallest of each image is 1, the label's is raised by ``kappa``."""

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
