"""What makes a model: a registered name, a classifier of torchvision, or a user's own function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from ..core.errors import UsageError, described
from ..core.files import file_digest
from ..core.interrupts import PartEndedError, contained
from ..core.parameters import signature_of
from ..core.plugin_files import import_file
from ..core.process_state import Changes, guarded
from ..core.registry import MODELS, PACKAGE, Origin, did_you_mean, origin_of
from .training import Recipe

GIVEN = ("shape", "classes")
TORCHVISION = "torchvision."
_RECIPE = tuple(f.name for f in fields(Recipe))


@dataclass(frozen=True, eq=False)
class ModelFactory:
    """What makes a model, and what a suite may set on it.

    Attributes:
        name: how messages call it.
        make: gives the network; takes ``shape`` and ``classes`` (both, one or neither) and its own parameters.
        origin: where it comes from.
        trains: it gives an untrained network, which is trained where no weights are given.
        given: the parameters that the harness sets.
    """

    name: str
    make: Callable[..., Any]
    origin: Origin
    trains: bool
    given: tuple[str, ...] = GIVEN

    @property
    def signature(self) -> Callable[..., None]:
        """A function with every parameter that a suite may set: the factory's own, the normalisation, the recipe."""

        def entry(**params: Any) -> None:
            """Never called; :func:`~..core.parameters.bind` reads its signature."""

        own = list(self._own().values())
        taken = {p.name for p in own}
        own = [p.replace(kind=p.KEYWORD_ONLY) if p.kind is p.POSITIONAL_OR_KEYWORD else p for p in own]
        rest = [p for p in own if p.kind is p.VAR_KEYWORD]
        own = [p for p in own if p.kind is p.KEYWORD_ONLY]
        common = [
            p.replace(kind=p.KEYWORD_ONLY, default=None)
            for f in (_normalisation, Recipe)
            for p in inspect.signature(f, eval_str=True).parameters.values()
            if p.name not in taken
        ]
        entry.__signature__ = inspect.Signature([*own, *common, *rest])  # type: ignore[attr-defined]  # what inspect reads
        return entry

    def split(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Parameters of the factory, of the normalisation, and of the recipe; a name of the factory's own wins."""
        own = self._own()
        normalisation = [n for n in inspect.signature(_normalisation).parameters if n not in own]
        recipe = [n for n in _RECIPE if n not in own]
        return (
            {n: v for n, v in params.items() if n not in normalisation and n not in recipe},
            {n: v for n, v in params.items() if n in normalisation},
            {n: v for n, v in params.items() if n in recipe},
        )

    def network(
        self, shape: tuple[int, int, int], classes: int, params: Mapping[str, Any]
    ) -> tuple[nn.Module, Changes]:
        """Return the network, and what its factory did to the process, which is undone.

        Raises:
            UsageError: if the factory raises or gives something else.
        """
        offered = {"shape": shape, "classes": classes}
        given = {name: value for name, value in offered.items() if name in self._own()}
        try:
            with guarded() as changes, contained():
                made = self.make(**given, **params)
        except PartEndedError as error:
            raise UsageError(f"The model {self.name} could not be made: {error}.") from error
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"The model {self.name} could not be made: {described(error)}.") from error
        if not isinstance(made, nn.Module):
            raise UsageError(f"The model {self.name} must be a torch.nn.Module, but its factory gave {made!r:.80}.")
        return made, changes

    def _own(self) -> Mapping[str, inspect.Parameter]:
        try:
            return signature_of(self.make).parameters
        except (TypeError, ValueError) as error:
            raise UsageError(f"The parameters of the model {self.name} cannot be read: {error}.") from error


def _normalisation(
    mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None, normalise: bool = True
) -> None:
    """The parameters of normalisation that any model entry may set; ``None`` means the data set's constants."""


def model_factory(name: str | None, factory: str | None, folder: Path | None = None) -> ModelFactory:
    """Find what makes a model.

    Args:
        name: a registered model, or a classifier of torchvision (``resnet18`` or ``torchvision.resnet18``).
        factory: instead of a name: ``package.module:function`` or ``file.py:function``.
        folder: where a relative file starts; by default the working directory.

    Raises:
        UsageError: if there is no such model, with the nearest names, or it cannot be imported.
    """
    if factory:
        return _user_factory(factory, folder or Path.cwd())
    if not name:
        raise UsageError("A model needs a name or a factory.")
    registered = MODELS.names()
    if name in registered:
        entry = MODELS.entry(name)
        return ModelFactory(name, entry.target, entry.origin, trains=entry.origin.package == PACKAGE)
    from .architectures import torchvision_model, torchvision_names

    known = torchvision_names()
    plain = name.removeprefix(TORCHVISION)
    if plain not in known:
        raise UsageError(f"There is no model {name!r}{did_you_mean(plain, [*registered, *known])}.")
    make = partial(torchvision_model, plain)
    return ModelFactory(name, make, Origin("torchvision", version("torchvision")), trains=True)


def _user_factory(text: str, folder: Path) -> ModelFactory:
    where, colon, attribute = text.rpartition(":")
    if not colon or not where or not attribute:
        raise UsageError(f"The factory {text!r} must look like 'package.module:function' or 'file.py:function'.")
    if where.endswith(".py"):
        path = (folder / Path(where).expanduser()).resolve()
        module = import_file(path)
        origin = Origin("file", file_digest(path)[:12], str(path))
    else:
        try:
            with contained():
                module = import_module(where)
        except PartEndedError as error:
            raise UsageError(f"The factory {text!r} could not be imported: {error}.") from error
        except Exception as error:  # a user's module may raise anything
            raise UsageError(f"The factory {text!r} could not be imported: {described(error)}.") from error
        origin = origin_of(where)
    made = getattr(module, attribute, None)
    if made is None:
        raise UsageError(f"{where} has no {attribute!r}{did_you_mean(attribute, vars(module))}.")
    if isinstance(made, nn.Module) or not callable(made):
        raise UsageError(f"{text!r} must name a function or class that makes a model, not {type(made).__name__}.")
    return ModelFactory(text, made, origin, trains=False)
