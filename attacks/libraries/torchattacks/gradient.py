"""Torchattacks' attacks along the gradient within a fixed budget: FGSM, PGD, momentum and their variants.

Presets are comparable with each other and with our own attacks: 8/255 in L-inf, 0.5 in L2, ten steps, a step size that
follows the budget. Parameters that the library takes but never uses are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from ...base.perturbation import Cost, Norm, PerturbationInfo
from ..declare import LibraryAttack, Parameter, choice, declare, flag, number, optional, share, whole
from .adapter import TorchattacksAttack

EPS = 8 / 255
EPS_L2 = 0.5


# A step that follows the budget where its length is not given.
_FOLLOWING = optional(exclusive=True)


def _along(
    attack: str,
    title: str,
    family: str,
    paper: str,
    summary: str,
    parameters: Mapping[str, Parameter],
    *,
    norm: Norm = "linf",
    stochastic: bool = False,
    one_step: bool = False,
    cost: Cost = "low",
    **more: object,
) -> type[LibraryAttack]:
    info = PerturbationInfo(
        title=title, kind="attack", family=family, norm=norm, library="torchattacks", paper=paper,
        stochastic=stochastic, one_step=one_step, cost=cost, summary=summary,
    )  # fmt: skip
    budget = {"eps": number(EPS if norm == "linf" else EPS_L2)}
    return declare(
        TorchattacksAttack, attack, info, budget | dict(parameters), **{"batch_invariant": not stochastic} | more
    )


_STEPS = {"alpha": _FOLLOWING, "steps": whole(10)}
_START = {"random_start": flag(True)}
_DECAY = {"decay": number(1.0)}
_DIVERSITY = {"resize_rate": share(0.9, inclusive=False), "diversity_prob": share(0.5), "random_start": flag(False)}

GN = declare(
    TorchattacksAttack,
    "GN",
    PerturbationInfo(
        title="Gaussian noise", kind="noise", family="noise", library="torchattacks", gradients=False, stochastic=True,
        summary="Adds normal noise of a standard deviation and clips.",
    ),
    {"std": number(EPS)},
)  # fmt: skip

FGSM = _along(
    "FGSM", "FGSM", "fgsm", "Goodfellow, Shlens, Szegedy 2015, arXiv:1412.6572",
    "One step along the gradient's sign.", {}, one_step=True,
)  # fmt: skip
FFGSM = _along(
    "FFGSM", "Fast FGSM", "fgsm", "Wong, Rice, Kolter 2020, arXiv:2001.03994",
    "One longer step along the gradient's sign from a random start.", {"alpha": _FOLLOWING},
    stochastic=True, one_step=True,
)  # fmt: skip
BIM = _along(
    "BIM", "BIM", "pgd", "Kurakin, Goodfellow, Bengio 2017, arXiv:1607.02533",
    "Repeated gradient sign steps from the clean image.", _STEPS,
)  # fmt: skip
RFGSM = _along(
    "RFGSM", "R+FGSM", "pgd", "Tramer et al. 2018, arXiv:1705.07204",
    "Gradient sign steps after one step along random signs.", _STEPS, stochastic=True,
)  # fmt: skip
PGD = _along(
    "PGD", "PGD", "pgd", "Madry et al. 2018, arXiv:1706.06083",
    "Repeated gradient sign steps from a random start.", _STEPS | _START, stochastic=True,
)  # fmt: skip
PGDL2 = _along(
    "PGDL2", "PGD (L2)", "pgd", "Madry et al. 2018, arXiv:1706.06083",
    "Repeated normalised gradient steps in an L2 ball from a random start.",
    _STEPS | _START | {"eps_for_division": number(1e-10, exclusive=True)}, norm="l2", stochastic=True,
)  # fmt: skip
EOTPGD = _along(
    "EOTPGD", "EOT-PGD", "pgd", "Zimmermann 2019, arXiv:1907.00895",
    "PGD whose gradient is a sum over several passes, for models that draw random numbers.",
    _STEPS | {"eot_iter": whole(2)} | _START, stochastic=True,
)  # fmt: skip
TPGD = _along(
    "TPGD", "TRADES PGD", "pgd", "Zhang et al. 2019, arXiv:1901.08573",
    "PGD on the KL divergence from the clean prediction, without the label.", _STEPS, stochastic=True,
)  # fmt: skip
# Its margin loss indexes a CPU tensor by labels on the model's device, so it is not offered.
UPGD = _along(
    "UPGD", "Ultimate PGD", "pgd", "torchattacks 3.5.1",
    "PGD with momentum, a choice of losses and averaged gradients.",
    _STEPS | _START | {"loss": choice("ce", ("ce", "dlr"))} | _DECAY | {"eot_iter": whole(1)}, stochastic=True,
)  # fmt: skip
Jitter = _along(
    "Jitter", "Jitter", "pgd", "Schwinn et al. 2021, arXiv:2105.10304",
    "PGD on the distance of scaled, noisy probabilities from the label.",
    _STEPS | {"scale": number(10.0, exclusive=True), "std": number(0.1)} | _START, stochastic=True,
)  # fmt: skip


class _Smoothed(TorchattacksAttack):
    """PGD through copies with noise; the library splits batches by ``batch_max`` and cannot split one image."""

    def arguments(self, classes: int) -> dict[str, object]:
        given = super().arguments(classes)
        return given | {"batch_max": max(2048, cast(int, given["noise_batch_size"]))}


def _smoothed(attack: str, title: str, norm: Norm, more: Mapping[str, Parameter]) -> type[LibraryAttack]:
    # The library's own spelling; 0.12 is the least noise of the models that Cohen et al. (2019) smoothed.
    kinds = choice("gaussian", ("gaussian", "uniform"), spelt={"gaussian": "guassian"})
    noise = {"noise_type": kinds, "noise_sd": number(0.12), "noise_batch_size": whole(5)}
    info = PerturbationInfo(
        title=title, kind="attack", family="pgd", norm=norm, library="torchattacks",
        paper="Salman et al. 2019, arXiv:1906.04584", stochastic=True, cost="medium",
        summary="PGD on the mean prediction of noisy copies, for randomised smoothing.",
    )  # fmt: skip
    budget = {"eps": number(EPS if norm == "linf" else EPS_L2)}
    return declare(_Smoothed, attack, info, budget | _STEPS | noise | dict(more))


PGDRS = _smoothed("PGDRS", "PGD for smoothing", "linf", {})
PGDRSL2 = _smoothed("PGDRSL2", "PGD for smoothing (L2)", "l2", {"eps_for_division": number(1e-10, exclusive=True)})

MIFGSM = _along(
    "MIFGSM", "MI-FGSM", "mi-fgsm", "Dong et al. 2018, arXiv:1710.06081",
    "Gradient sign steps with momentum.", _STEPS | _DECAY,
)  # fmt: skip
NIFGSM = _along(
    "NIFGSM", "NI-FGSM", "mi-fgsm", "Lin et al. 2020, arXiv:1908.06281",
    "MI-FGSM with Nesterov's look ahead.", _STEPS | _DECAY,
)  # fmt: skip
SINIFGSM = _along(
    "SINIFGSM", "SI-NI-FGSM", "mi-fgsm", "Lin et al. 2020, arXiv:1908.06281",
    "NI-FGSM over darker and darker copies of the image.", _STEPS | _DECAY | {"m": whole(5)}, cost="medium",
)  # fmt: skip
_VARIANCE = {"N": whole(5), "beta": number(1.5)}
VMIFGSM = _along(
    "VMIFGSM", "VMI-FGSM", "mi-fgsm", "Wang & He 2021, arXiv:2103.15571",
    "MI-FGSM with gradients tuned by their variance nearby.", _STEPS | _DECAY | _VARIANCE,
    stochastic=True, cost="medium",
)  # fmt: skip
VNIFGSM = _along(
    "VNIFGSM", "VNI-FGSM", "mi-fgsm", "Wang & He 2021, arXiv:2103.15571",
    "NI-FGSM with gradients tuned by their variance nearby.", _STEPS | _DECAY | _VARIANCE,
    stochastic=True, cost="medium",
)  # fmt: skip
# Input diversity resizes to squares whatever the height. A rate of 1 or more fails or changes the model's input size.
DIFGSM = _along(
    "DIFGSM", "DI2-FGSM", "mi-fgsm", "Xie et al. 2019, arXiv:1803.06978",
    "MI-FGSM through random resizing and padding.", _STEPS | {"decay": number(0.0)} | _DIVERSITY,
    stochastic=True, square=True, smallest=2,
)  # fmt: skip
TIFGSM = _along(
    "TIFGSM", "TI-FGSM", "mi-fgsm", "Dong et al. 2019, arXiv:1904.02884",
    "DI2-FGSM with gradients smoothed by a kernel.",
    _STEPS | {
        "decay": number(0.0), "kernel_name": choice("gaussian", ("gaussian", "linear", "uniform")),
        "len_kernel": whole(15), "nsig": number(3.0, exclusive=True),
    } | _DIVERSITY,
    stochastic=True, square=True, smallest=2, channels=3,
)  # fmt: skip
_PATCH = {"steps": whole(10, keyword="num_iter_set"), "amplification": number(10.0, exclusive=True)}


def _patch_wise(
    attack: str, title: str, paper: str, summary: str, more: Mapping[str, Parameter]
) -> type[LibraryAttack]:
    info = PerturbationInfo(
        title=title, kind="attack", family="pi-fgsm", norm="linf", library="torchattacks", paper=paper, summary=summary
    )
    budget = {"eps": number(EPS, keyword="max_epsilon")}
    return declare(TorchattacksAttack, attack, info, budget | _PATCH | dict(more), batch_invariant=True, channels=3)


PIFGSM = _patch_wise(
    "PIFGSM", "PI-FGSM", "Gao et al. 2020, arXiv:2007.06765",
    "Amplified gradient sign steps; what would be cut off goes to the neighbours.", {},
)  # fmt: skip
PIFGSMPP = _patch_wise(
    "PIFGSMPP", "PI-FGSM++", "Gao et al. 2020, arXiv:2012.15503",
    "PI-FGSM with smoothed gradients and a weaker projection.", {"project_factor": number(0.8)},
)  # fmt: skip
