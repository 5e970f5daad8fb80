"""A plain function as a perturbation: ``f(model, images, labels) -> x'``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from ...harness.core.errors import UsageError
from ...harness.core.parameters import is_budget
from ...harness.core.registry import PERTURBATIONS
from ...harness.core.seeds import Draws
from .kinds import HOSTILE
from .perturbation import CountingModel, Norm, Perturbation, PerturbationInfo

T = TypeVar("T")

# What a function is given by position: the model, the images and their labels.
_GIVEN = 3
_DRAWS = "draws"


class FunctionPerturbation(Perturbation):
    """Base of the classes that :func:`from_function` makes; the parameters are those of the function."""

    function: ClassVar[Callable[..., Tensor]]
    wants_draws: ClassVar[bool] = False
    takes_eps: ClassVar[bool] = False
    info: ClassVar[PerturbationInfo] = PerturbationInfo(title="a function", kind="attack", family="function")

    def __init__(self, **params: Any) -> None:
        bound = inspect.signature(type(self)).bind(**params)
        bound.apply_defaults()
        self.params: dict[str, Any] = dict(bound.arguments)
        self.eps = self.params.get("eps")
        if self.eps is not None and not self.takes_eps:
            del self.params["eps"]

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """Call the function."""
        more: dict[str, Any] = {_DRAWS: draws} if self.wants_draws else {}
        return type(self).function(model, images, labels, **self.params, **more)


def from_function(
    function: Callable[..., Tensor], name: str, eps: float | None = None, norm: Norm | None = None, **info: Any
) -> type[Perturbation]:
    """Return a perturbation class around a function.

    Args:
        function: takes the model, the images and the labels by position, as :meth:`Perturbation.perturb` does, and
            returns x'. A parameter named ``draws`` gets the seeded generators; the others are what a suite may set.
        name: of the perturbation; its title and its family unless ``info`` says otherwise.
        eps: the default budget. A function that has a parameter ``eps`` is given the budget of the suite; the result of
            another one is held to it.
        norm: the norm of the budget; by default ``linf`` where there is one.
        info: further fields of :class:`PerturbationInfo`.

    Raises:
        UsageError: for a function that does not take three arguments by position, or a field that does not exist.
    """
    parameters = list(inspect.signature(function, eval_str=False).parameters.values())
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(by_position) < _GIVEN:
        raise UsageError(
            f"The function of the perturbation {name!r} takes {len(by_position)} arguments by position: it is called "
            "with the model, the images and the labels."
        )
    own = {p.name: p.replace(kind=p.KEYWORD_ONLY) for p in parameters[_GIVEN:] if p.kind is not p.VAR_KEYWORD}
    wants_draws = own.pop(_DRAWS, None) is not None
    takes_eps = "eps" in own
    if eps is not None:
        held = own.get("eps", inspect.Parameter("eps", inspect.Parameter.KEYWORD_ONLY, annotation="float | None"))
        own["eps"] = held.replace(default=eps)
    has_budget = any(is_budget(parameter) for parameter in own)
    summary = next(iter((inspect.getdoc(function) or "").splitlines()), "")
    defaults = {
        "title": name, "kind": "attack", "family": name, "norm": norm or ("linf" if has_budget else None),
        "summary": summary, "stochastic": wants_draws,
    }  # fmt: skip
    try:
        about = PerturbationInfo(**{**defaults, **info})
    except TypeError as error:
        raise UsageError(f"The perturbation {name!r} cannot be described: {error}.") from error
    if about.kind not in HOSTILE and "gradients" not in info:
        about = replace(about, gradients=False)
    members: Mapping[str, Any] = {
        "__module__": function.__module__,
        "__doc__": inspect.getdoc(function) or about.title,
        "__qualname__": getattr(function, "__qualname__", name),
        "__signature__": inspect.Signature(list(own.values())),
        # The source that decides its content key.
        "__wrapped__": staticmethod(function),
        "function": staticmethod(function),
        "wants_draws": wants_draws,
        "takes_eps": takes_eps,
        "info": about,
    }
    return type(getattr(function, "__name__", name), (FunctionPerturbation,), dict(members))


def register_perturbation(
    name: str, *, eps: float | None = None, norm: Norm | None = None, **info: Any
) -> Callable[[T], T]:
    """Register a perturbation class, or a plain function ``f(model, images, labels) -> x'``, under a name.

    ::

        @register_perturbation("gray-out", eps=0.1)
        def gray_out(model, images, labels):
            return images + 0.1 * (0.5 - images).sign()

    Args:
        name: what suites call it.
        eps: of a function, the default budget;
        norm: its norm (``linf``, ``l2``, ``l1`` or ``l0``), by default ``linf``; and
        info: further fields of :class:`PerturbationInfo`: ``kind``, ``family``, ``gradients``, ``summary``, ... A class
            says these itself.

    Returns:
        a decorator, which gives back what it was given: a function can still be called.

    Raises:
        UsageError: if the name is taken, or for something that is neither a class nor a function of three arguments.
    """
    described = {key: value for key, value in {"eps": eps, "norm": norm, **info}.items() if value is not None}
    register = PERTURBATIONS.register(name)

    def decorate(part: T) -> T:
        if inspect.isroutine(part):
            register(from_function(part, name, **described))
            return part
        if described:
            raise UsageError(
                f"{', '.join(described)} of the perturbation {name!r} describe a function: a class says them in `info`."
            )
        return register(part)

    return decorate
