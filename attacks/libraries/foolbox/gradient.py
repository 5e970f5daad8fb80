"""foolbox's gradient attacks, declared with comparable presets; those without gradients have a module of their own.

Step sizes are shares of ``eps`` (``rel_stepsize``) unless ``abs_stepsize`` is given, in the attack's norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...base.perturbation import Norm, PerturbationInfo
from ..declare import Parameter, choice, declare, flag, not_installed, number, optional, share, whole
from .adapter import FoolboxAttack, L2DeepFool, LinfDeepFool

# Budgets of the kind reported for colour images of 32 x 32: L-inf and L2 as RobustBench's, L1 of Croce & Hein 2021.
EPS: Mapping[Norm, float] = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}
NAMES: Mapping[Norm, str] = {"linf": "L-inf", "l2": "L2", "l1": "L1", "l0": "L0"}

# The budget of a minimising attack: without one, nothing is limited.
BUDGET = optional()

UNUSABLE: Mapping[str, str] = {
    "Attack": "the abstract base of all attacks",
    "DatasetAttack": "it returns other images of a set that has to be fed to it first; it perturbs nothing",
    "GenAttack": "it is targeted only, and a target class is no part of a comparison of untargeted attacks",
    "L0FMNAttack": "it raises NotImplementedError in foolbox 3.3.4 (eagerpy has no L0 norm along an axis for torch)",
}
"""Classes of ``foolbox.attacks`` that are not offered, and why."""


def declared(
    attack: str,
    info: PerturbationInfo,
    parameters: Mapping[str, Parameter],
    module: str = __name__,
    base: type[FoolboxAttack] = FoolboxAttack,
    **more: object,
) -> type[FoolboxAttack]:
    """:func:`declare` for foolbox, in ``module``; minimising attacks get ``eps`` as their last parameter."""
    if info.minimises:
        parameters = {**parameters, "eps": BUDGET}
    made = declare(base, attack, replace(info, library="foolbox"), parameters, **more)
    made.__module__ = module
    return made  # type: ignore[return-value]


_MADRY = "Madry, Makelov, Schmidt, Tsipras, Vladu 2018, arXiv:1706.06083"
_KURAKIN = "Kurakin, Goodfellow, Bengio 2017, arXiv:1607.02533"
_ADAM = {
    "adam_beta1": number(0.9),
    "adam_beta2": number(0.999),
    "adam_epsilon": number(1e-8, exclusive=True),
}


def _descent(eps: Norm, rel_stepsize: float, steps: int, random_start: bool) -> dict[str, Parameter]:
    return {
        "eps": number(EPS[eps]),
        "steps": whole(steps),
        "rel_stepsize": number(rel_stepsize, exclusive=True),
        "abs_stepsize": optional(exclusive=True),
        "random_start": flag(random_start),
    }


def _fast(norm: Norm, attack: str) -> type[FoolboxAttack]:
    info = PerturbationInfo(
        title=f"{'FGSM' if norm == 'linf' else 'FGM'} ({NAMES[norm]})", kind="attack", family="fgsm", norm=norm,
        paper="Goodfellow, Shlens, Szegedy 2015, arXiv:1412.6572", one_step=True,
        summary=f"One gradient step to the boundary of an {NAMES[norm]} budget.",
    )  # fmt: skip
    return declared(attack, info, {"eps": number(EPS[norm]), "random_start": flag(False)})


def _iterated(norm: Norm, attack: str, title: str, paper: str, steps: int, rel: float, start: bool, how: str,
              more: Mapping[str, Parameter] | None = None, family: str = "pgd") -> type[FoolboxAttack]:  # fmt: skip
    info = PerturbationInfo(
        title=f"{title} ({NAMES[norm]})", kind="attack", family=family, norm=norm, paper=paper, stochastic=start,
        cost="medium" if steps > 25 else "low", summary=f"{how} within an {NAMES[norm]} budget.",
    )  # fmt: skip
    return declared(attack, info, {**_descent(norm, rel, steps, start), **(more or {})})


L1FastGradientAttack = _fast("l1", "L1FastGradientAttack")
L2FastGradientAttack = _fast("l2", "L2FastGradientAttack")
LinfFastGradientAttack = _fast("linf", "LinfFastGradientAttack")

# 2.5 eps in all: from any start a run can reach the boundary and still move along it (Madry et al. 2018).
_PGD = ("PGD", _MADRY, 20, 0.125, True, "Projected gradient ascent from a random start")
L1ProjectedGradientDescentAttack = _iterated("l1", "L1ProjectedGradientDescentAttack", *_PGD)
L2ProjectedGradientDescentAttack = _iterated("l2", "L2ProjectedGradientDescentAttack", *_PGD)
LinfProjectedGradientDescentAttack = _iterated("linf", "LinfProjectedGradientDescentAttack", *_PGD)

# Adam moves every element by about a step, whatever the norm: a share of an L2 or L1 budget is already a long way.
_ADAM_PGD = ("Adam PGD", f"{_MADRY}, with Adam", 40, 0.05, True, "Projected Adam ascent from a random start", _ADAM)
L1AdamProjectedGradientDescentAttack = _iterated("l1", "L1AdamProjectedGradientDescentAttack", *_ADAM_PGD)
L2AdamProjectedGradientDescentAttack = _iterated("l2", "L2AdamProjectedGradientDescentAttack", *_ADAM_PGD)
LinfAdamProjectedGradientDescentAttack = _iterated("linf", "LinfAdamProjectedGradientDescentAttack", *_ADAM_PGD)

_BIM = ("BIM", _KURAKIN, 10, 0.2, False, "Projected gradient ascent from the image itself")
L1BasicIterativeAttack = _iterated("l1", "L1BasicIterativeAttack", *_BIM)
L2BasicIterativeAttack = _iterated("l2", "L2BasicIterativeAttack", *_BIM)
LinfBasicIterativeAttack = _iterated("linf", "LinfBasicIterativeAttack", *_BIM)

_ADAM_BIM = ("Adam BIM", f"{_KURAKIN}, with Adam", 10, 0.2, False, "Projected Adam ascent from the image itself", _ADAM)
L1AdamBasicIterativeAttack = _iterated("l1", "L1AdamBasicIterativeAttack", *_ADAM_BIM)
L2AdamBasicIterativeAttack = _iterated("l2", "L2AdamBasicIterativeAttack", *_ADAM_BIM)
LinfAdamBasicIterativeAttack = _iterated("linf", "LinfAdamBasicIterativeAttack", *_ADAM_BIM)

_MIFGSM = (
    "MI-FGSM", "Dong, Liao, Pang, Su, Zhu, Hu, Li 2018, arXiv:1710.06081", 10, 0.2, False,
    "Gradient ascent with momentum from the image itself", {"momentum": number(1.0)}, "mi-fgsm",
)  # fmt: skip
L1MomentumIterativeFastGradientMethod = _iterated("l1", "L1MomentumIterativeFastGradientMethod", *_MIFGSM)
L2MomentumIterativeFastGradientMethod = _iterated("l2", "L2MomentumIterativeFastGradientMethod", *_MIFGSM)
LinfMomentumIterativeFastGradientMethod = _iterated("linf", "LinfMomentumIterativeFastGradientMethod", *_MIFGSM)

SparseL1DescentAttack = _iterated(
    "l1", "SparseL1DescentAttack", "Sparse L1 descent", "Tramèr & Boneh 2019, arXiv:1904.13000", 20, 0.125, False,
    "Steps along the few largest entries of the gradient",
    {"quantile": share(0.99)},
)  # fmt: skip


VirtualAdversarialAttack = declared(
    "VirtualAdversarialAttack",
    PerturbationInfo(
        title="Virtual adversarial attack", kind="attack", family="vat", norm="l2", stochastic=True,
        paper="Miyato, Maeda, Koyama, Nakae, Ishii 2016, arXiv:1507.00677",
        summary="The L2 direction in which the predicted distribution changes most, by power iteration; no labels.",
    ),
    # The library's xi = 1e-6 is lost in float32: logits do not change at all.
    {"eps": number(EPS["l2"]), "steps": whole(5), "xi": number(0.01, exclusive=True)},
)  # fmt: skip

L2CarliniWagnerAttack = declared(
    "L2CarliniWagnerAttack",
    PerturbationInfo(
        title="CW (L2)", kind="attack", family="cw", norm="l2", minimises=True, cost="medium",
        paper="Carlini & Wagner 2017, arXiv:1608.04644",
        summary="Minimises the L2 norm and a margin loss by Adam in tanh space, with a search for their balance.",
    ),
    {
        "binary_search_steps": whole(5), "steps": whole(100), "stepsize": number(0.05, exclusive=True),
        "confidence": number(0.0), "initial_const": number(0.1, exclusive=True),
    },
    # It would stop the whole batch when the batch's summed loss no longer falls.
    fixed={"abort_early": False},
)  # fmt: skip

EADAttack = declared(
    "EADAttack",
    PerturbationInfo(
        title="EAD", kind="attack", family="ead", norm="l1", minimises=True, cost="medium",
        paper="Chen, Sharma, Zhang, Yi, Hsieh 2018, arXiv:1709.04114",
        summary="Minimises an elastic net of L1 and L2 and a margin loss, with a search for their balance.",
    ),
    {
        "binary_search_steps": whole(5), "steps": whole(60), "initial_stepsize": number(0.05, exclusive=True),
        "confidence": number(0.0), "initial_const": number(0.1, exclusive=True), "regularization": number(0.01),
        "decision_rule": choice("EN", ("EN", "L1")),
    },
    fixed={"abort_early": False},
)  # fmt: skip

DDNAttack = declared(
    "DDNAttack",
    PerturbationInfo(
        # It draws numbers too, but only where a gradient is exactly 0.
        title="DDN", kind="attack", family="ddn", norm="l2", minimises=True, cost="medium",
        paper="Rony, Hafemann, Oliveira, Ben Ayed, Sabourin, Granger 2019, arXiv:1811.09600",
        summary="Gradient steps whose L2 norm shrinks while the image is fooled and grows while it is not.",
    ),
    {"steps": whole(50), "init_epsilon": number(1.0, exclusive=True), "gamma": number(0.05, exclusive=True)},
)  # fmt: skip

NewtonFoolAttack = declared(
    "NewtonFoolAttack",
    PerturbationInfo(
        title="NewtonFool", kind="attack", family="newtonfool", norm="l2", minimises=True, cost="medium",
        paper="Jang, Wu, Jha 2017, doi:10.1145/3134600.3134635",
        summary="Newton steps that lower the probability of the predicted class.",
    ),
    {"steps": whole(50), "stepsize": number(0.01, exclusive=True)},
    # It divides 0 by the gradient of what is fooled already, which soon is 0 as well.
    first=True,
)  # fmt: skip


def _fmn(norm: Norm, attack: str, max_stepsize: float) -> type[FoolboxAttack]:
    info = PerturbationInfo(
        title=f"FMN ({NAMES[norm]})", kind="attack", family="fmn", norm=norm, minimises=True, cost="medium",
        paper="Pintor, Roli, Brendel, Biggio 2021, arXiv:2102.12827",
        summary=f"Gradient steps in an {NAMES[norm]} ball that adapts to the nearest boundary.",
    )  # fmt: skip
    return declared(
        attack,
        info,
        {
            "steps": whole(50), "max_stepsize": number(max_stepsize, exclusive=True),
            "min_stepsize": optional(exclusive=True), "gamma": number(0.05, exclusive=True),
        },
    )  # fmt: skip


L1FMNAttack = _fmn("l1", "L1FMNAttack", 1.0)
L2FMNAttack = _fmn("l2", "L2FMNAttack", 1.0)
LInfFMNAttack = _fmn("linf", "LInfFMNAttack", 1.0)


class _BrendelBethge(FoolboxAttack):
    @classmethod
    def missing(cls) -> str | None:
        # Its solver is compiled by numba.
        return super().missing() or not_installed(f"{cls.info.title} of foolbox", "numba")


def _brendel_bethge(norm: Norm, attack: str) -> type[FoolboxAttack]:
    info = PerturbationInfo(
        title=f"Brendel & Bethge ({NAMES[norm]})", kind="attack", family="brendel-bethge", norm=norm, minimises=True,
        stochastic=True, cost="medium",
        paper="Brendel, Rauber, Kümmerer, Ustyuzhaninov, Bethge 2019, arXiv:1907.01003",
        summary=f"Follows the decision boundary from a fooling image towards a smaller {NAMES[norm]} norm.",
    )  # fmt: skip
    parameters = {
        "steps": whole(100), "lr": number(0.01, exclusive=True), "lr_decay": number(0.5, exclusive=True),
        "lr_num_decay": whole(10), "momentum": number(0.8), "overshoot": number(1.1, exclusive=True),
        "binary_search_steps": whole(10), **STARTING_POINT,
    }  # fmt: skip
    return declared(attack, info, parameters, base=_BrendelBethge, fragile=True)


# Where attacks start that need an image that fools already; images without one come back as they were.
STARTING_POINT: Mapping[str, Parameter] = {
    "init": choice("blended-noise", ("blended-noise", "salt-and-pepper")),
    "init_steps": whole(50),
}

L0BrendelBethgeAttack = _brendel_bethge("l0", "L0BrendelBethgeAttack")
L1BrendelBethgeAttack = _brendel_bethge("l1", "L1BrendelBethgeAttack")
L2BrendelBethgeAttack = _brendel_bethge("l2", "L2BrendelBethgeAttack")
LinfinityBrendelBethgeAttack = _brendel_bethge("linf", "LinfinityBrendelBethgeAttack")

L2DeepFoolAttack, LinfDeepFoolAttack = L2DeepFool, LinfDeepFool
