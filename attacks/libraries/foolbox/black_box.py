"""foolbox's attacks that ask the model for decisions only, and its noise, declared with comparable presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...base.perturbation import Kind, Norm, PerturbationInfo
from ..declare import Parameter, choice, flag, number, optional, share, whole
from .adapter import FoolboxAttack
from .gradient import EPS, NAMES, STARTING_POINT, declared

_RAUBER = "Rauber, Bethge 2020, arXiv:2007.07677"

# These move along a fixed line; the distance only says in which norm a budget counts.
_DISTANCE = {"distance": choice("l2", ("l2", "linf", "l1"))}


def _black(
    attack: str, info: PerturbationInfo, parameters: Mapping[str, Parameter], **more: Any
) -> type[FoolboxAttack]:
    return declared(attack, info, parameters, __name__, **more)


def _noise(attack: str, norm: Norm, kind: str, repeated: bool) -> type[FoolboxAttack]:
    clipping = "ClippingAware" in attack
    length = f"{NAMES[norm]} length" + (" after clipping" if clipping else "")
    if repeated:
        title = f"Repeated {kind} noise ({NAMES[norm]}{', clipping-aware' if clipping else ''})"
        summary = f"Draws {kind} noise of a given {length} until one fools the model."
    else:
        title = f"{kind.capitalize()} noise ({NAMES[norm]}{', clipping-aware' if clipping else ''})"
        summary = f"{kind.capitalize()} noise of a given {length}."
    what: Kind = "attack" if repeated else "noise"
    info = PerturbationInfo(
        title=title, kind=what, family="noise", norm=norm, gradients=False, stochastic=True,
        paper=_RAUBER if clipping else "", summary=summary,
    )  # fmt: skip
    parameters = {"eps": number(EPS[norm])}
    if repeated:
        parameters |= {"repeats": whole(50), "check_trivial": flag(True)}
    return _black(attack, info, parameters)


L2AdditiveGaussianNoiseAttack = _noise("L2AdditiveGaussianNoiseAttack", "l2", "normal", False)
L2AdditiveUniformNoiseAttack = _noise("L2AdditiveUniformNoiseAttack", "l2", "uniform", False)
LinfAdditiveUniformNoiseAttack = _noise("LinfAdditiveUniformNoiseAttack", "linf", "uniform", False)
L2ClippingAwareAdditiveGaussianNoiseAttack = _noise("L2ClippingAwareAdditiveGaussianNoiseAttack", "l2", "normal", False)
L2ClippingAwareAdditiveUniformNoiseAttack = _noise("L2ClippingAwareAdditiveUniformNoiseAttack", "l2", "uniform", False)
L2RepeatedAdditiveGaussianNoiseAttack = _noise("L2RepeatedAdditiveGaussianNoiseAttack", "l2", "normal", True)
L2RepeatedAdditiveUniformNoiseAttack = _noise("L2RepeatedAdditiveUniformNoiseAttack", "l2", "uniform", True)
LinfRepeatedAdditiveUniformNoiseAttack = _noise("LinfRepeatedAdditiveUniformNoiseAttack", "linf", "uniform", True)
L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack = _noise(
    "L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack", "l2", "normal", True
)
L2ClippingAwareRepeatedAdditiveUniformNoiseAttack = _noise(
    "L2ClippingAwareRepeatedAdditiveUniformNoiseAttack", "l2", "uniform", True
)

SaltAndPepperNoiseAttack = _black(
    "SaltAndPepperNoiseAttack",
    PerturbationInfo(
        title="Salt and pepper search", kind="attack", family="noise", norm="l2", gradients=False, stochastic=True,
        minimises=True, cost="medium", paper="Rauber, Brendel, Bethge 2017, arXiv:1707.04131",
        summary="More and more pixels become black or white until the model is fooled, then as few as possible.",
    ),
    {"steps": whole(100), "across_channels": flag(True)},
)  # fmt: skip

LinearSearchBlendedUniformNoiseAttack = _black(
    "LinearSearchBlendedUniformNoiseAttack",
    PerturbationInfo(
        title="Blended noise", kind="attack", family="noise", norm="l2", gradients=False, stochastic=True,
        minimises=True, cost="medium", paper="Rauber, Brendel, Bethge 2017, arXiv:1707.04131",
        summary="Blends the image with uniform noise that fools the model, as little as is needed.",
    ),
    {"directions": whole(50), "steps": whole(50), **_DISTANCE},
)  # fmt: skip

L2ContrastReductionAttack = _black(
    "L2ContrastReductionAttack",
    PerturbationInfo(
        title="Contrast reduction (L2)", kind="corruption", family="contrast", norm="l2", gradients=False,
        paper="Rauber, Brendel, Bethge 2017, arXiv:1707.04131",
        summary="Moves the image towards a uniform grey by a given L2 length.",
    ),
    {"eps": number(EPS["l2"]), "target": share(0.5)},
)  # fmt: skip

BinarySearchContrastReductionAttack = _black(
    "BinarySearchContrastReductionAttack",
    PerturbationInfo(
        title="Contrast reduction (binary search)", kind="attack", family="contrast", norm="l2", gradients=False,
        minimises=True, paper="Rauber, Brendel, Bethge 2017, arXiv:1707.04131",
        summary="The least reduction of contrast that fools the model, by bisection.",
    ),
    {"binary_search_steps": whole(15), "target": share(0.5), **_DISTANCE},
)  # fmt: skip

LinearSearchContrastReductionAttack = _black(
    "LinearSearchContrastReductionAttack",
    PerturbationInfo(
        title="Contrast reduction (linear search)", kind="attack", family="contrast", norm="l2", gradients=False,
        minimises=True, paper="Rauber, Brendel, Bethge 2017, arXiv:1707.04131",
        summary="The least reduction of contrast that fools the model, step by step.",
    ),
    {"steps": whole(50), "target": share(0.5), **_DISTANCE},
)  # fmt: skip

InversionAttack = _black(
    "InversionAttack",
    PerturbationInfo(
        title="Inversion", kind="corruption", family="inversion", norm="l2", gradients=False, minimises=True,
        paper="Hosseini, Xiao, Jaiswal, Poovendran 2017, arXiv:1703.06857",
        summary="The negative of the image, or with a budget as much of the way there as it allows.",
    ),
    _DISTANCE,
)  # fmt: skip

GaussianBlurAttack = _black(
    "GaussianBlurAttack",
    PerturbationInfo(
        title="Blur search", kind="attack", family="blur", norm="l2", gradients=False, minimises=True, cost="medium",
        paper="Rauber, Brendel, Bethge 2017, arXiv:1707.04131",
        summary="The least Gaussian blur that fools the model.",
    ),
    {"steps": whole(100), "max_sigma": optional(exclusive=True), **_DISTANCE},
)  # fmt: skip

SpatialAttack = _black(
    "SpatialAttack",
    PerturbationInfo(
        title="Spatial", kind="attack", family="spatial", gradients=False, cost="medium",
        paper="Engstrom, Tran, Tsipras, Schmidt, Madry 2019, arXiv:1712.02779",
        summary="The first of a grid of rotations and translations that fools the model (degrees and pixels).",
    ),
    {
        "max_translation": number(3.0), "max_rotation": number(30.0), "num_translations": whole(5),
        "num_rotations": whole(5), "grid_search": flag(True), "random_steps": whole(100),
    },
)  # fmt: skip

BoundaryAttack = _black(
    "BoundaryAttack",
    PerturbationInfo(
        title="Boundary", kind="attack", family="boundary", norm="l2", gradients=False, stochastic=True, minimises=True,
        cost="high", paper="Brendel, Rauber, Bethge 2018, arXiv:1712.04248",
        summary="A random walk along the decision boundary towards the image, by decisions only.",
    ),
    {
        "steps": whole(1000), "spherical_step": number(0.01, exclusive=True),
        "source_step": number(0.01, exclusive=True), "source_step_convergance": number(1e-7),
        "step_adaptation": number(1.5, 1.0), "update_stats_every_k": whole(10), **STARTING_POINT,
    },
    fragile=True,
    # One direction for all images.
    shared=True,
)  # fmt: skip

HopSkipJumpAttack = _black(
    "HopSkipJumpAttack",
    PerturbationInfo(
        title="HopSkipJump", kind="attack", family="hopskipjump", norm="l2", gradients=False, stochastic=True,
        minimises=True, cost="high", paper="Chen, Jordan, Wainwright 2020, arXiv:1904.02144",
        summary="Estimates the boundary's normal by random decisions and walks along it towards the image.",
    ),
    {
        "constraint": choice("l2", ("l2", "linf")), "steps": whole(10), "initial_gradient_eval_steps": whole(100),
        "max_gradient_eval_steps": whole(1000),
        "gamma": number(1.0, exclusive=True), **STARTING_POINT,
    },
    fragile=True,
    # The library's grid search takes one step size for the whole batch.
    fixed={"stepsize_search": "geometric_progression"},
)  # fmt: skip

PointwiseAttack = _black(
    "PointwiseAttack",
    PerturbationInfo(
        title="Pointwise", kind="attack", family="pointwise", norm="l0", gradients=False, stochastic=True,
        minimises=True, cost="high", paper="Schott, Rauber, Bethge, Brendel 2019, arXiv:1805.09190",
        summary="Puts element after element of a noisy image back as it was, as long as the model stays fooled.",
    ),
    {
        "l2_binary_search": flag(True), "distance": choice("l0", ("l0", "l2", "linf", "l1")),
        "init": choice("salt-and-pepper", ("salt-and-pepper", "blended-noise")), "init_steps": whole(50),
    },
    fragile=True,
    # NumPy permutes for image after image, and all go on while one improves.
    batch_invariant=False,
)  # fmt: skip

BinarizationRefinementAttack = _black(
    "BinarizationRefinementAttack",
    PerturbationInfo(
        title="Binarization refinement", kind="attack", family="binarization", norm="l2", gradients=False,
        stochastic=True, minimises=True, cost="medium", paper="Rauber, Brendel, Bethge 2017, arXiv:1707.04131",
        summary="Noise made as small as a model that binarises its input cannot tell from it; else the noise itself.",
    ),
    {
        "threshold": optional(), "included_in": choice("upper", ("lower", "upper")), **_DISTANCE,
        "init": choice("salt-and-pepper", ("salt-and-pepper", "blended-noise")), "init_steps": whole(50),
    },
    fragile=True,
)  # fmt: skip
