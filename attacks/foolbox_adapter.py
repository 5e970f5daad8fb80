"""Attacks of foolbox, with every parameter explicit."""

from __future__ import annotations

import os
from typing import ClassVar, Protocol, cast

from torch import Tensor

from . import checks
from .base import CountingModel, PerturbationInfo
from .library import LibraryAttack


class _Attack(Protocol):
    def __call__(
        self, model: object, inputs: Tensor, criterion: object, *, epsilons: float | None
    ) -> tuple[Tensor, Tensor, Tensor]: ...


class FoolboxAttack(LibraryAttack):
    """An attack class of foolbox; ``eps = None`` lets it minimise its norm, a number limits it."""

    def run(self, model: CountingModel, images: Tensor, labels: Tensor) -> Tensor:
        # Without it the import fails where there is no git executable (it imports GitPython).
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        import foolbox

        seen = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
        attack = cast(_Attack, getattr(foolbox.attacks, self.attack)(**self.settings))
        _, within, _ = attack(seen, images, foolbox.criteria.Misclassification(labels), epsilons=self.eps)
        return within


class _DeepFool(FoolboxAttack):
    def __init__(self, steps: int = 50, candidates: int = 10, overshoot: float = 0.02) -> None:
        super().__init__(
            steps=checks.whole("steps", steps, 1),
            candidates=checks.whole("candidates", candidates, 2),
            overshoot=checks.number("overshoot", overshoot),
        )


class L2DeepFool(_DeepFool):
    """DeepFool in L2: to the nearest boundary of the linearised model, again and again.

    Args:
        steps: linearisations, at most.
        candidates: how many of the likeliest classes are considered, the present one included.
        overshoot: the share by which the perturbation goes beyond the boundary.

    Raises:
        UsageError: for a parameter out of range.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="DeepFool (L2)",
        kind="attack",
        family="deepfool",
        norm="l2",
        library="foolbox",
        paper="Moosavi-Dezfooli, Fawzi, Frossard 2016, arXiv:1511.04599",
        summary="A small L2 perturbation that just crosses the nearest boundary.",
    )
    attack = "L2DeepFoolAttack"


class LinfDeepFool(_DeepFool):
    """DeepFool in L-inf; parameters and errors as in :class:`L2DeepFool`."""

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="DeepFool (L-inf)",
        kind="attack",
        family="deepfool",
        norm="linf",
        library="foolbox",
        paper="Moosavi-Dezfooli, Fawzi, Frossard 2016, arXiv:1511.04599",
        summary="A small L-inf perturbation that just crosses the nearest boundary.",
    )
    attack = "LinfDeepFoolAttack"
