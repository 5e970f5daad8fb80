"""Torchattacks' other attacks: those that minimise, search, change few pixels or combine others.

Attacks with a choice of norms stand here once for each, so that every entry has one norm and a budget to go with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from ....harness.core.errors import UsageError
from ....harness.core.ranges import Count
from ...base.perturbation import Cost, CountingModel, Norm, PerturbationInfo
from ..declare import LibraryAttack, Parameter, choice, declare, flag, number, optional, share, whole
from .adapter import LibraryClass, ShiftedModel, TorchattacksAttack
from .gradient import EPS, EPS_L2

UNUSABLE: Mapping[str, str] = {
    "VANILA": "It returns the images as they are, which is not a perturbation.",
    "MultiAttack": "It takes other attacks as objects, which a suite cannot give; AutoAttack is a combination of it.",
    "LGV": "It trains copies of the model on a data loader, which a perturbation is not given.",
}
"""Names of torchattacks that cannot be perturbations here, and why."""

_NAMES: Mapping[Norm, str] = {"linf": "Linf", "l2": "L2"}
_CROCE = "Croce & Hein 2020, arXiv:2003.01690"


def _budget(norm: Norm) -> dict[str, Parameter]:
    return {"eps": number(EPS if norm == "linf" else EPS_L2)}


def _any_budget(norm: Norm) -> dict[str, Parameter]:
    """Return a budget that only limits what counts: the attack minimises whatever it is, and the harness clips."""
    return {"eps": Parameter(None, float | None)}


def _titled(title: str, norm: Norm) -> str:
    return title if norm == "linf" else f"{title} (L2)"


# --- Auto-PGD, FAB, Square and AutoAttack: once in L-inf, once in L2 ---


def _apgd(norm: Norm) -> type[LibraryAttack]:
    info = PerturbationInfo(
        title=_titled("APGD", norm), kind="attack", family="pgd", norm=norm, library="torchattacks", paper=_CROCE,
        stochastic=True, cost="medium", summary="PGD with momentum that halves its steps where it stops progressing.",
    )  # fmt: skip
    parameters = {
        "steps": whole(50), "restarts": whole(1, keyword="n_restarts"), "loss": choice("ce", ("ce", "dlr")),
        "eot_iter": whole(1), "rho": share(0.75),
    }  # fmt: skip
    return declare(
        TorchattacksAttack, "APGD", info, _budget(norm) | parameters, fixed={"norm": _NAMES[norm]}, seeded=True
    )


def _apgdt(norm: Norm) -> type[LibraryAttack]:
    info = PerturbationInfo(
        title=_titled("Targeted APGD", norm), kind="attack", family="pgd", norm=norm, library="torchattacks",
        paper=_CROCE, stochastic=True, cost="medium", summary="APGD towards each of the likeliest other classes.",
    )  # fmt: skip
    parameters = {
        "steps": whole(20), "restarts": whole(1, keyword="n_restarts"), "targets": whole(9), "eot_iter": whole(1),
        "rho": share(0.75),
    }  # fmt: skip
    # In L2 the library steps every image by the first image's step size, so there each image goes alone.
    return declare(
        TorchattacksAttack, "APGDT", info, _budget(norm) | parameters, fixed={"norm": _NAMES[norm]}, seeded=True,
        counts_classes=True, not_passed=("targets",), fewest_classes=4, alone=norm == "l2",
        batch_invariant=norm == "l2",
    )  # fmt: skip


def _fab(norm: Norm) -> type[LibraryAttack]:
    info = PerturbationInfo(
        title=_titled("FAB", norm), kind="attack", family="fab", norm=norm, library="torchattacks",
        paper="Croce & Hein 2020, arXiv:1907.02044", minimises=True, cost="medium",
        summary="Projects onto the linearised boundary and back towards the image, again and again.",
    )  # fmt: skip
    parameters = {
        "steps": whole(50), "alpha_max": share(0.1), "eta": number(1.05, exclusive=True), "beta": share(0.9),
        "multi_targeted": flag(False), "targets": whole(9),
    }  # fmt: skip
    # The library drops what lies beyond its eps, so it gets one without effect; only the first of its restarts draws
    # no random numbers, and the others would run only on images for which it found nothing at all.
    return declare(
        TorchattacksAttack, "FAB", info, parameters | _any_budget(norm), seeded=True, counts_classes=True,
        not_passed=("targets", "eps"), fixed={"norm": _NAMES[norm], "eps": 1e9, "n_restarts": 1}, batch_invariant=True,
    )  # fmt: skip


def _sticks_out(side: int, p_init: float) -> bool:
    """Return whether Square's first grid or window (in L2) does not fit into an image, on which the library fails."""
    window, cell = max(round(math.sqrt(p_init) * side), 3), side // 5
    if cell == 0 or window + (window % 2 == 0) > side:
        return True
    return cell > 1 and (side - 5 * cell) // 2 + side // cell * cell > side


class _WithSquareL2(TorchattacksAttack):
    square = True

    def inapplicable(self, shape: tuple[int, int, int], classes: int) -> str | None:
        reason = super().inapplicable(shape, classes)
        if reason is None and _sticks_out(shape[1], cast(float, self.settings.get("p_init", 0.8))):
            return f"{self.info.title} of torchattacks fails on {shape[1]} x {shape[2]}: its first squares do not fit."
        return reason


def _square(norm: Norm) -> type[LibraryAttack]:
    info = PerturbationInfo(
        title=_titled("Square", norm), kind="attack", family="square", norm=norm, library="torchattacks",
        paper="Andriushchenko et al. 2020, arXiv:1912.00049", gradients=False, stochastic=True, cost="medium",
        summary="Random search with squares at the budget's boundary, from the logits alone.",
    )  # fmt: skip
    parameters = {
        "n_queries": whole(1000), "restarts": whole(1, keyword="n_restarts"), "p_init": share(0.8),
        "loss": choice("margin", ("margin", "ce")), "resc_schedule": flag(True),
    }  # fmt: skip
    base = TorchattacksAttack if norm == "linf" else _WithSquareL2
    return declare(base, "Square", info, _budget(norm) | parameters, fixed={"norm": _NAMES[norm]}, seeded=True)


def _autoattack(norm: Norm) -> type[LibraryAttack]:
    info = PerturbationInfo(
        title=_titled("AutoAttack", norm), kind="attack", family="autoattack", norm=norm, library="torchattacks",
        paper=_CROCE, stochastic=True, cost="high",
        summary="APGD, targeted APGD and FAB of 10 steps each (the authors take 100) and Square of 5,000 queries.",
    )  # fmt: skip
    parameters = {"version": choice("standard", ("standard", "plus", "rand")), "targets": whole(9)}
    base = TorchattacksAttack if norm == "linf" else _WithSquareL2
    return declare(
        base, "AutoAttack", info, _budget(norm) | parameters, fixed={"norm": _NAMES[norm]}, seeded=True,
        counts_classes=True, not_passed=("targets",), fewest_classes=4, alone=norm == "l2",
        batch_invariant=norm == "l2",
    )  # fmt: skip


APGD, APGDL2 = _apgd("linf"), _apgd("l2")
APGDT, APGDTL2 = _apgdt("linf"), _apgdt("l2")
FAB, FABL2 = _fab("linf"), _fab("l2")
Square, SquareL2 = _square("linf"), _square("l2")
AutoAttack, AutoAttackL2 = _autoattack("linf"), _autoattack("l2")


# --- Attacks that minimise ---


def _minimal(
    attack: str, title: str, family: str, norm: Norm, paper: str, summary: str, parameters: Mapping[str, Parameter],
    cost: Cost = "medium", base: type[TorchattacksAttack] = TorchattacksAttack, **more: object,
) -> type[LibraryAttack]:  # fmt: skip
    info = PerturbationInfo(
        title=title, kind="attack", family=family, norm=norm, library="torchattacks", paper=paper, minimises=True,
        cost=cost, summary=summary,
    )  # fmt: skip
    return declare(
        base,
        attack,
        info,
        dict(parameters) | _any_budget(norm),
        **{"not_passed": ("eps",), "batch_invariant": True} | more,
    )


class _ToTheBoundary(TorchattacksAttack):
    """The library ends on the boundary, where the result may be right again when checked in another batch.

    It adds its overshoot to each step, the last and tiny one too, not to the whole as the paper does; so it gets
    models that are wrong only by more than a rounding, one image at a time as it goes through them anyway.
    """

    alone: ClassVar[bool] = True

    def seen(self, model: CountingModel, labels: Tensor) -> nn.Module:
        return ShiftedModel(model, labels, 1e-4)


DeepFool = _minimal(
    "DeepFool", "DeepFool", "deepfool", "l2", "Moosavi-Dezfooli, Fawzi, Frossard 2016, arXiv:1511.04599",
    "Steps to the nearest boundary of the linearised model.", {"steps": whole(50), "overshoot": number(0.02)},
    base=_ToTheBoundary,
)  # fmt: skip
SparseFool = _minimal(
    "SparseFool", "SparseFool", "sparsefool", "l0", "Modas, Moosavi-Dezfooli, Frossard 2019, arXiv:1811.02248",
    "Moves few values at a time to the hyperplane that DeepFool found.",
    {"steps": whole(10), "lam": number(3.0, exclusive=True), "overshoot": number(0.02)}, cost="high",
    base=_ToTheBoundary,
)  # fmt: skip


class _ElasticNet(TorchattacksAttack):
    """EAD, with the library's faults kept out.

    Its loss masks logits with zeros and its ``kappa`` is added to the labels of the whole batch: both as in CW. It
    stops a whole batch by its summed loss, so it is told never to.
    """

    def seen(self, model: CountingModel, labels: Tensor) -> nn.Module:
        return _ForEAD(model, labels, cast(float, self.settings["kappa"]))


class _ForEAD(ShiftedModel):
    """The library's first gradient step writes into the clean images that it measures against, so it gets none."""

    _begun = False

    def forward(self, images: Tensor) -> Tensor:
        if not images.requires_grad or self._begun:
            return super().forward(images)
        self._begun = True
        return super().forward(images.detach()) + 0 * images.flatten(1).sum(1, keepdim=True)


def _ead(attack: str, title: str, norm: Norm, summary: str) -> type[LibraryAttack]:
    parameters = {
        "kappa": number(0.0), "lr": number(0.01, exclusive=True), "binary_search_steps": whole(6),
        "steps": whole(50, keyword="max_iterations"), "initial_const": number(1.0, exclusive=True),
        "beta": number(0.001),
    }  # fmt: skip
    return _minimal(
        attack, title, "ead", norm, "Chen et al. 2018, arXiv:1709.04114", summary, parameters, base=_ElasticNet,
        fixed={"kappa": 0.0, "abort_early": False},
    )  # fmt: skip


EADL1 = _ead("EADL1", "EAD (L1)", "l1", "Elastic-net attack that keeps what is smallest in L1.")
EADEN = _ead("EADEN", "EAD (elastic net)", "l2", "Elastic-net attack that keeps what is smallest in L2² + beta L1.")


class _NextClass(TorchattacksAttack):
    """An attack that needs a target: the next class, where the library by itself counts on ten."""

    counts_classes: ClassVar[bool] = True

    def arguments(self, classes: int) -> dict[str, object]:
        return {name: value for name, value in super().arguments(classes).items() if name != "n_classes"}

    def make(self, seen: nn.Module, device: torch.device, classes: int) -> LibraryClass:
        attack = super().make(seen, device, classes)
        attack.set_mode_targeted_by_function(lambda images, labels: (labels + 1) % classes, quiet=True)
        return attack


JSMA = _minimal(
    "JSMA", "JSMA", "jsma", "l0", "Papernot et al. 2016, arXiv:1511.07528",
    "Raises the two values that the saliency map puts first, until the next class is reached.",
    {"theta": number(1.0, minimum=-1.0), "gamma": share(0.1)}, cost="high", base=_NextClass, most_values=4096,
)  # fmt: skip


# --- Attacks without gradients that change few pixels, or estimate the gradient ---


class OnePixel(TorchattacksAttack):
    """Differential evolution of a few pixels' places and colours.

    Args:
        pixels: pixels that may change, which is the attack's L0 budget.
        steps: generations.
        popsize: candidates of a generation.
        inf_batch: candidates that are sent through the model together.

    Raises:
        UsageError: for a parameter out of range.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="One pixel", kind="attack", family="one-pixel", norm="l0", library="torchattacks",
        paper="Su, Vargas, Sakurai 2019, arXiv:1710.08864", gradients=False, stochastic=True, cost="medium",
        summary="Differential evolution of a few pixels' places and colours.",
    )  # fmt: skip
    attack = "OnePixel"
    alone = batch_invariant = on_cpu = True

    def __init__(self, pixels: Count = 1, steps: Count = 20, popsize: Count = 40, inf_batch: Count = 128) -> None:
        self.eps = float(pixels)
        super().__init__(
            pixels=pixels,
            steps=steps,
            popsize=popsize,
            inf_batch=inf_batch,
        )


SPSA = declare(
    TorchattacksAttack,
    "SPSA",
    PerturbationInfo(
        title="SPSA", kind="attack", family="spsa", norm="linf", library="torchattacks",
        paper="Uesato et al. 2018, arXiv:1802.05666", gradients=False, stochastic=True, cost="high",
        summary="Adam on gradients estimated from random directions.",
    ),
    _budget("linf") | {
        "delta": number(0.01, exclusive=True), "lr": optional(exclusive=True), "steps": whole(20, keyword="nb_iter"),
        "samples": whole(128, keyword="nb_sample"), "max_batch_size": whole(16),
    },
    step=("lr", "nb_iter"),
)  # fmt: skip


class Pixle(TorchattacksAttack):
    """Copies a random patch's pixels to other places of the image until it is fooled.

    Args:
        smallest_patch: the shortest side of a patch.
        largest_patch: the longest one; it is cut off at the image's border.
        pixel_mapping: where pixels go: to random places or to those of similar or of distant colours.
        restarts: rounds of the search; each goes on from the best image of those before.
        max_iterations: patches tried in each round.
        update_each_iteration: one round only, which keeps every patch that helps.

    Raises:
        UsageError: for a parameter out of range.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="Pixle", kind="attack", family="pixle", norm="l0", library="torchattacks",
        paper="Pomponi, Scardapane, Uncini 2022, arXiv:2202.02236", gradients=False, stochastic=True, cost="medium",
        summary="Copies a random patch's pixels to other places of the image.",
    )  # fmt: skip
    attack = "Pixle"
    alone = batch_invariant = on_cpu = True
    # It takes columns for rows.
    square = True

    def __init__(
        self,
        smallest_patch: Count = 2,
        largest_patch: Count = 10,
        pixel_mapping: Literal["random", "similarity", "similarity_random", "distance", "distance_random"] = "random",
        restarts: Count = 20,
        max_iterations: Count = 10,
        update_each_iteration: bool = False,
    ) -> None:
        self._sides = smallest_patch, largest_patch
        if smallest_patch > largest_patch:
            raise UsageError(f"smallest_patch = {smallest_patch} is larger than largest_patch = {largest_patch}.")
        super().__init__(
            pixel_mapping=pixel_mapping,
            restarts=restarts,
            max_iterations=max_iterations,
            update_each_iteration=bool(update_each_iteration),
        )

    def arguments(self, classes: int) -> dict[str, object]:
        return super().arguments(classes) | {"x_dimensions": self._sides, "y_dimensions": self._sides}
