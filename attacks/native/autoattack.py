"""AutoAttack, the standard ensemble (Croce & Hein 2020): attacks in a row, each on images that none before fooled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...harness.core.errors import UsageError
from ...harness.core.ranges import Count
from ...harness.core.seeds import Draws
from ..base import parameters as checks
from ..base.perturbation import CountingModel, Norm, Perturbation, PerturbationInfo
from .autopgd import AutoPGD
from .fab import targeted_fab
from .pgd import Ball, too_few_classes
from .square import Square

_Stage = Callable[[CountingModel, Tensor, Tensor, Draws], Tensor]


class AutoAttack(Perturbation):
    """AutoPGD on cross-entropy, AutoPGD on the targeted DLR loss, targeted FAB and Square, in this order.

    The targeted DLR loss is defined for four classes and more. With three, AutoPGD on the untargeted DLR loss stands in
    for it; with two, for which no DLR loss is defined, that stage is left out. FAB then has one or two target classes.

    An image that a stage fools keeps that result and is not attacked again; one that nothing fools comes back as it
    was. FAB draws nothing: it starts from the image itself. Cost per image that stands to the end, with the defaults:
    about 100 + 900 + 1,800 + 5,000 forwards and 100 + 900 + 900 backwards.

    Args:
        eps: the budget; 0 changes nothing.
        norm: ``linf`` or ``l2``; ``l1`` is refused, for want of a Square in it.
        steps: steps of each run of AutoPGD and of FAB.
        restarts: random starts of AutoPGD, per target for the targeted loss.
        targets: classes that the targeted attacks try, at most, the likeliest first.
        queries: forwards of Square.

    Raises:
        UsageError: for a parameter out of range.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="AutoAttack",
        kind="attack",
        family="autoattack",
        norm="linf",
        paper="Croce & Hein 2020, arXiv:2003.01690",
        stochastic=True,
        cost="high",
        summary="AutoPGD with two losses, FAB and Square, one after the other on what still stands.",
    )

    def __init__(
        self,
        eps: float,
        norm: Ball = "linf",
        steps: Count = 100,
        restarts: Count = 1,
        targets: Count = 9,
        queries: Count = 5000,
    ) -> None:
        if norm == "l1":
            raise UsageError(
                "norm = 'l1': choose linf or l2, or run autopgd in l1: Square has no L1 form here, so the standard "
                "ensemble cannot be formed."
            )
        self._norm: Literal["linf", "l2"] = norm
        self.eps: float = checks.budget(eps, norm)
        self.steps = steps
        self.restarts = restarts
        self.targets = targets
        self.queries = queries

    @property
    def norm(self) -> Norm:
        """The norm of the budget."""
        return self._norm

    def reduced(self, shape: tuple[int, int, int], classes: int) -> str | None:
        if not too_few_classes("dlr", classes, targeted=True):
            return None
        rest = "AutoPGD on cross-entropy, targeted FAB and Square remain"
        if not too_few_classes("dlr", classes, targeted=False):
            return f"AutoPGD on the untargeted DLR loss replaces the targeted one, which needs 4 classes; {rest}"
        return f"AutoPGD on the DLR loss, which needs 3 classes, is left out; {rest}"

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        result = images.clone()
        active = torch.arange(len(images), device=images.device)
        with torch.no_grad():
            classes = model(images[:1]).shape[1]
        for stage in self._stages(classes):
            clean, truth = images[active], labels[active]
            standing = model.of(active)
            found = stage(standing, clean, truth, draws.take(active.tolist()))
            with torch.no_grad():
                fooled = standing(found).argmax(1) != truth
            result[active[fooled]] = found[fooled]
            active = active[~fooled]
            if not len(active):
                break
        return result

    def _stages(self, classes: int) -> Iterator[_Stage]:
        """Return the parts that are defined for a model with this number of classes."""
        auto = partial(AutoPGD, self.eps, self._norm, self.steps, self.restarts, targets=self.targets)
        yield auto(loss="ce").perturb
        if not too_few_classes("dlr", classes, targeted=True):
            yield auto(loss="dlr-targeted").perturb
        elif not too_few_classes("dlr", classes, targeted=False):
            yield auto(loss="dlr").perturb
        yield self._fab
        yield Square(self.eps, self._norm, self.queries).perturb

    def _fab(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        return targeted_fab(model, images, labels, self.eps, self._norm, self.steps, self.targets)
