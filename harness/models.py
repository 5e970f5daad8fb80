"""From a suite's model entry to a classifier on images in [0, 1]: factories, normalisation, weights, accuracy."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .data import Dataset, ImageSplit
from .errors import UsageError
from .params import bind
from .registry import MODELS, PACKAGE, Origin, did_you_mean, file_digest, import_file, origin_of
from .seeds import derive_seed, forked_rng
from .training import Recipe, default_recipe, train
from .weights import load_weights

__all__ = [
    "Classifier",
    "ModelFactory",
    "ModelSpec",
    "Normalise",
    "accuracy",
    "build",
    "load_weights",
    "model_factory",
    "normalisation_warning",
    "obtain",
]

GIVEN = ("shape", "classes")
TORCHVISION = "torchvision."
_RECIPE = tuple(f.name for f in fields(Recipe))


class Normalise(nn.Module):
    """``(x - mean) / std`` per channel, as a layer, so that attacks work on images in [0, 1].

    Raises:
        UsageError: for lengths that differ or a standard deviation that is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise UsageError(f"Normalisation needs as many means ({len(mean)}) as standard deviations ({len(std)}).")
        if not all(math.isfinite(m) for m in mean) or not all(math.isfinite(s) and s > 0 for s in std):
            raise UsageError("Normalisation needs finite means and positive standard deviations.")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Classifier(nn.Module):
    """Images in [0, 1] to logits: normalisation, then the network.

    Attributes:
        network: the model itself, on normalised input; taps are named relative to it.
        normalise: :class:`Normalise`, or the identity.
        shape: (channels, height, width) of one image.
        classes: the number of logits.
    """

    def __init__(self, network: nn.Module, normalise: nn.Module, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.normalise = normalise
        self.network = network
        self.shape = shape
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(self.normalise(x))
        return logits


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
            """Never called; :func:`~.params.bind` reads its signature."""

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

    def network(self, shape: tuple[int, int, int], classes: int, params: Mapping[str, Any]) -> nn.Module:
        """The network.

        Raises:
            UsageError: if the factory raises or gives something else.
        """
        offered = {"shape": shape, "classes": classes}
        given = {name: value for name, value in offered.items() if name in self._own()}
        try:
            made = self.make(**given, **params)
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"The model {self.name} could not be made: {type(error).__name__}: {error}.") from error
        if not isinstance(made, nn.Module):
            raise UsageError(f"The model {self.name} must be a torch.nn.Module, but its factory gave {made!r:.80}.")
        return made

    def _own(self) -> Mapping[str, inspect.Parameter]:
        try:
            return inspect.signature(self.make, eval_str=True).parameters
        except (TypeError, ValueError, NameError) as error:
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
            module = import_module(where)
        except Exception as error:  # a user's module may raise anything
            raise UsageError(f"The factory {text!r} could not be imported: {type(error).__name__}: {error}.") from error
        origin = origin_of(where)
    made = getattr(module, attribute, None)
    if made is None:
        raise UsageError(f"{where} has no {attribute!r}{did_you_mean(attribute, vars(module))}.")
    if isinstance(made, nn.Module) or not callable(made):
        raise UsageError(f"{text!r} must name a function or class that makes a model, not {type(made).__name__}.")
    return ModelFactory(text, made, origin, trains=False)


@dataclass(frozen=True)
class ModelSpec:
    """A model as a suite asks for it.

    Attributes:
        name: a registered or torchvision name; empty where ``factory`` is given.
        factory: ``package.module:function`` or ``file.py:function``.
        params: of the factory.
        weights: the checkpoint, resolved; ``None`` where none is asked for.
        train_if_missing: train where ``weights`` does not exist.
        mean: per channel (or one for all); ``None`` means the data set's.
        std: likewise.
        normalise: ``False`` for networks that take images in [0, 1] directly.
        training: values that replace those of the default recipe.
        folder: where a relative file in ``factory`` starts.
    """

    name: str = ""
    factory: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    train_if_missing: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    normalise: bool = True
    training: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @classmethod
    def from_entry(
        cls,
        name: str | None,
        factory: str | None,
        params: Mapping[str, Any],
        weights: Path | None = None,
        train_if_missing: bool = False,
        folder: Path | None = None,
    ) -> ModelSpec:
        """From the flat parameters of a suite's entry, sorted into factory, normalisation and recipe.

        Raises:
            UsageError: for a wrong name or parameter.
        """
        found = model_factory(name, factory, folder)
        values, problems = bind(found.signature, params, found.given)
        if problems:
            raise UsageError(f"The model {found.name} is wrong: {'; '.join(problems.values())}.")
        own, normalisation, training = found.split(values)
        return cls(
            name or "", factory, own, weights, train_if_missing, training=training, folder=folder, **normalisation
        )

    def find(self) -> ModelFactory:
        """What makes this model; raises like :func:`model_factory`."""
        return model_factory(self.name or None, self.factory, self.folder)

    @property
    def needs_training(self) -> bool:
        """Whether the model has to be trained before use.

        Raises:
            UsageError: if its weights do not exist and ``train_if_missing`` is not set.
        """
        if self.weights is None:
            return self.train_if_missing or self.find().trains
        if self.weights.is_file():
            return False
        if self.train_if_missing:
            return True
        raise UsageError(
            f"The weights {self.weights} of the model {self.name or self.factory} do not exist: correct the path, "
            "or set train_if_missing = true to train them."
        )

    def recipe(self, dataset: str) -> Recipe:
        """How it is trained on a data set, by name."""
        return default_recipe(self.name, dataset).changed(self.training)

    def as_json(self) -> dict[str, Any]:
        """What decides the network and its normalisation, as JSON values; not the weights, whose bytes count."""
        return {
            "name": self.name,
            "factory": self.factory,
            "params": dict(self.params),
            "mean": list(self.mean) if self.mean else None,
            "std": list(self.std) if self.std else None,
            "normalise": self.normalise,
        }


def build(
    spec: ModelSpec,
    shape: tuple[int, int, int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int = 0,
) -> Classifier:
    """The model with freshly drawn weights, on the CPU and in eval mode; the global generators stay as they are.

    Args:
        spec: what to build; its weights are not read (:func:`load_weights`).
        shape: (channels, height, width) of the images.
        classes: the number of classes.
        mean: the data set's, per channel; used unless the spec has its own.
        std: likewise.
        seed: the weights' draw depends on it.

    Raises:
        UsageError: for a wrong parameter, or a network that does not map a batch of such images to logits.
    """
    factory = spec.find()
    values, problems = bind(factory.make, spec.params, factory.given)
    if problems:
        raise UsageError(f"The model {factory.name} is wrong: {'; '.join(problems.values())}.")
    normalise: nn.Module = nn.Identity()
    if spec.normalise:
        normalise = Normalise(spec.mean or tuple(mean), spec.std or tuple(std))
        if len(normalise.mean) not in (1, shape[0]):
            raise UsageError(f"The model {factory.name} has {len(normalise.mean)} means for {shape[0]} channels.")
    with forked_rng(derive_seed(seed, "initialise")):
        model = Classifier(factory.network(shape, classes, values), normalise, shape, classes).eval()
        _try_batch(model, factory.name)
    return model


def _try_batch(model: Classifier, name: str) -> None:
    device = next((p.device for p in model.network.parameters()), torch.device("cpu"))
    model.to(device)
    size = " x ".join(map(str, model.shape))
    try:
        with torch.no_grad():
            logits = model(torch.full((2, *model.shape), 0.5, device=device))
    except Exception as error:  # whatever the network raises, it cannot take these images
        raise UsageError(f"The model {name} cannot take images of {size}: {' '.join(str(error).split())}") from error
    if not isinstance(logits, Tensor):
        raise UsageError(f"The model {name} must return a tensor of logits, not {type(logits).__name__}.")
    if logits.shape != (2, model.classes):
        raise UsageError(
            f"The model {name} must return (n, {model.classes}) logits, but for 2 images it returned "
            f"{tuple(logits.shape)}."
        )


def obtain(
    spec: ModelSpec,
    dataset: Dataset,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Callable[[float], None] | None = None,
) -> Classifier:
    """The model ready for use on ``device``: built, then trained, or with its weights, or as its factory gave it.

    Raises:
        UsageError: like :func:`build`, :func:`load_weights` and :func:`~.training.train`.
    """
    trains = spec.needs_training
    model = build(spec, dataset.shape, len(dataset.classes), dataset.mean, dataset.std, seed)
    if trains:
        train(model, dataset.train, spec.recipe(dataset.name), seed, device, progress)
    elif spec.weights is not None:
        load_weights(model.network, spec.weights)
    return model.to(device)


def accuracy(
    model: nn.Module,
    split: ImageSplit,
    limit: int | None = None,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> float:
    """The share of images that ``model``, in eval mode, gets right.

    Args:
        limit: read only so many images, evenly spaced, since a split may be sorted by class.
    """
    count = len(split) if limit is None else min(limit, len(split))
    rows = [place * len(split) // count for place in range(count)]
    was_training = model.training
    model.eval()
    right = 0
    try:
        with torch.no_grad():
            for start in range(0, count, batch_size):
                part = rows[start : start + batch_size]
                logits = model(split.images(part).to(device))
                right += int((logits.argmax(1).cpu() == split.labels(part)).sum())
    finally:
        model.train(was_training)
    return right / count


def normalisation_warning(accuracy: float, classes: int) -> str | None:
    """What to say about a clean accuracy near chance, or ``None`` where it is not.

    Near means less than a quarter of the way from chance to 1: a trained classifier with wrong normalisation, wrong
    weights or another order of the classes ends up there.
    """
    chance = 1 / classes
    if accuracy >= chance + 0.25 * (1 - chance):
        return None
    return (
        f"The clean accuracy is only {accuracy:.1%} (chance is {chance:.1%}): check that mean, std and normalise are "
        "what the weights were trained with, and that the classes have the same order."
    )
