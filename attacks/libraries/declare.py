"""What the adapters of attack libraries share; a further attack is a declaration and its explicit parameters."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from ...harness.core.errors import UsageError
from ...harness.core.ranges import Portion, Share, fitting
from ...harness.core.seeds import Draws
from ..base import parameters as checks
from ..base.perturbation import CountingModel, Perturbation, PerturbationInfo

Value = float | int | str | bool | None

# What to do where a package's own requirements are in the way.
_WAYS_OUT = {"torchattacks": " (with --no-deps to keep a requests newer than 2.25)"}


class LibraryAttack(Perturbation):
    """An attack whose code is another distribution's (``info.library``), imported only when it runs.

    A subclass sets ``info`` and ``attack`` (the class's name in its library), may declare what the attack cannot do
    without, and lists its parameters with explicit defaults in ``__init__``: those of libraries are not comparable.

    Attributes:
        attack: the class's name in its library.
        channels: the only number of channels that it works on, if it is particular.
        settings: the library's keyword arguments.
    """

    attack: str
    channels: int | None = None

    def __init__(self, **settings: float | int | str | bool | None) -> None:
        self.settings = settings

    @classmethod
    def missing(cls) -> str | None:
        return not_installed(cls.info.title, cls.info.library)

    def inapplicable(self, shape: tuple[int, int, int], classes: int) -> str | None:
        if self.channels is not None and shape[0] != self.channels:
            return f"{self.info.title} of {self.info.library} works on {self.channels} channels only, not {shape[0]}."
        return super().inapplicable(shape, classes)

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        # foolbox checks by bare assertions, torchattacks after it has changed the model's mode: check before both.
        if images.dtype != torch.float32 or images.ndim != 4 or labels.shape != images.shape[:1]:
            raise UsageError(
                f"{self.info.title} takes float32 images (n, channels, height, width) and n labels, not {images.dtype} "
                f"of shape {tuple(images.shape)} and {tuple(labels.shape)}."
            )
        if not bool(((images >= 0) & (images <= 1)).all()):
            raise UsageError(f"{self.info.title} takes images in [0, 1].")
        with quiet(), torch.enable_grad():
            return self.run(model, images, labels).detach()

    @abstractmethod
    def run(self, model: CountingModel, images: Tensor, labels: Tensor) -> Tensor:
        """Call the library; arguments and result as in :meth:`perturb`."""


def not_installed(title: str, package: str) -> str | None:
    """Return a sentence that says that ``title`` needs the distribution ``package``, or ``None`` where it is there."""
    try:
        version(package)
    except PackageNotFoundError:
        way_out = _WAYS_OUT.get(package, "")
        return f"{title} needs the package {package}, which is not installed: run 'pip install {package}'{way_out}."
    return None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Libraries' warnings and prints stay inside; the root logger keeps no handler that they provoke."""
    root = logging.getLogger()
    # foolbox calls logging.info(), which installs a handler on a root logger that has none.
    guard = logging.NullHandler()
    root.addHandler(guard)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeHandler(guard)


@dataclass(frozen=True)
class Parameter:
    """One constructor parameter of a declared attack.

    Attributes:
        default: our preset; libraries' own defaults are not comparable.
        annotation: its type and range (:mod:`aftershock.harness.core.ranges`).
        keyword: what the library calls it, where that differs; empty for the same name.
        spelt: what the library calls some of its values.
    """

    default: Value
    annotation: Any
    keyword: str = ""
    spelt: Mapping[str, str] = field(default_factory=dict)


def whole(default: int, minimum: int = 1, keyword: str = "") -> Parameter:
    """Return a whole number of at least ``minimum``."""
    return Parameter(default, Annotated[int, Ge(minimum)], keyword)


def number(default: float, minimum: float = 0.0, exclusive: bool = False, keyword: str = "") -> Parameter:
    """Return a finite number of at least (``exclusive``: above) ``minimum``."""
    return Parameter(default, Annotated[float, (Gt if exclusive else Ge)(minimum)], keyword)


def optional(minimum: float = 0.0, exclusive: bool = False) -> Parameter:
    """Return a number like :func:`number`'s that may be left to the library, or follow another parameter."""
    return Parameter(None, Annotated[float, (Gt if exclusive else Ge)(minimum)] | None)


def share(default: float, inclusive: bool = True) -> Parameter:
    """Return a number between 0 and 1; the ends are allowed if ``inclusive``."""
    return Parameter(default, Portion if inclusive else Share)


def choice(default: str, known: Sequence[str], keyword: str = "", spelt: Mapping[str, str] | None = None) -> Parameter:
    """Return one of a few words; ``spelt`` is how the library writes some of them."""
    return Parameter(default, Literal[tuple(known)], keyword, spelt or {})


def flag(default: bool, keyword: str = "") -> Parameter:
    """True or false."""
    return Parameter(default, bool, keyword)


def declare(
    base: type[LibraryAttack], attack: str, info: PerturbationInfo, parameters: Mapping[str, Parameter], **more: object
) -> type[LibraryAttack]:
    """A subclass of ``base`` for the library's class ``attack``, whose constructor takes ``parameters`` by keyword.

    A parameter called ``eps`` is the budget: it is checked as one (``None`` only if that is its default) and becomes
    the instance's ``eps`` as well as a setting of the library. ``more`` are further class attributes, such as
    ``channels``.
    """

    def __init__(self: LibraryAttack, **given: Value) -> None:
        unknown = given.keys() - parameters.keys()
        if unknown:
            raise UsageError(f"{info.title} has no parameter {', '.join(sorted(unknown))}.")
        settings: dict[str, Value] = {}
        for name, parameter in parameters.items():
            value = given.get(name, parameter.default)
            if name == "eps":
                if value is not None or parameter.default is not None:
                    value = self.eps = checks.budget(value, info.norm or "")  # type: ignore[arg-type]
            else:
                value = fitting(name, value, parameter.annotation)
                value = parameter.spelt.get(value, value) if isinstance(value, str) else value
            settings[parameter.keyword or name] = value
        LibraryAttack.__init__(self, **settings)

    made = type(
        attack, (base,), {"__init__": __init__, "__doc__": info.summary, "info": info, "attack": attack, **more}
    )
    made.__module__ = base.__module__
    made.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=p.default, annotation=p.annotation,
            )
            for name, p in parameters.items()
        ]
    )  # fmt: skip
    return made
