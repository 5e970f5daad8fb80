"""From a suite's model entry to a classifier on images in [0, 1]: factories, normalisation, weights, accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core.errors import UsageError
from ..core.interrupts import contained
from ..core.model_state import device_of
from ..core.parameters import bind
from ..core.process_state import Changes
from ..core.seeds import derive_seed, forked_rng
from ..data.types import Dataset, ImageSplit
from ..tracing.logits import as_logits
from .factories import ModelFactory, model_factory
from .training import Recipe, default_recipe, train
from .weights import load_weights

__all__ = [
    "Classifier",
    "ModelSpec",
    "Normalise",
    "Source",
    "accuracy",
    "accuracy_warning",
    "build",
    "is_near_chance",
    "load_weights",
    "obtain",
]

# Where a model's weights come from: a file, training, or whatever its factory gives.
Source = Literal["weights", "trained", "factory"]


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
    """Images in [0, 1] to logits, float32 (n, classes): normalisation, then the network.

    Whatever the network returns becomes logits in one way (:func:`~..tracing.logits.as_logits`), and the network may
    write into what it is given: the images stay as they are.

    Attributes:
        network: the model itself, on normalised input; taps are named relative to it.
        normalise: :class:`Normalise`, or the identity.
        shape: (channels, height, width) of one image.
        classes: the number of logits.
        changes: what making the network did to the process, which is undone.
    """

    def __init__(self, network: nn.Module, normalise: nn.Module, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.changes = Changes()
        self.normalise = normalise
        self.network = network
        self.shape = shape
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        given = self.normalise(x)
        return as_logits(self.network(given.clone() if given is x else given), self.classes)


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
        """Return what makes this model; raises like :func:`model_factory`."""
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
        """Return how it is trained on a data set, by name."""
        return default_recipe(self.name, dataset).changed(self.training)

    def as_json(self) -> dict[str, Any]:
        """Return what decides the network and its normalisation, as JSON values; not the weights, whose bytes count."""
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
    """Return the model with freshly drawn weights, on the CPU and in eval mode; the global generators stay as they are.

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
        network, changes = factory.network(shape, classes, values)
        model = Classifier(network, normalise, shape, classes)
        model.changes = changes
        try:
            model.eval()
        except Exception as error:  # an exported program has no other mode
            raise UsageError(
                f"The model {factory.name} has no eval mode ({_text(error).rstrip('.')}): give the original nn.Module."
            ) from error
        _try_batch(model, factory.name)
    return model


def _try_batch(model: Classifier, name: str) -> None:
    device = device_of(model.network)
    model.to(device)
    size = " x ".join(map(str, model.shape))
    try:
        with torch.no_grad(), contained():
            logits = model(torch.full((2, *model.shape), 0.5, device=device))
    except UsageError as error:
        raise UsageError(f"The model {name} gives no logits: {error}.") from error
    except Exception as error:  # whatever the network raises, it cannot take these images
        raise UsageError(f"The model {name} cannot take images of {size}: {_text(error)}{_types(model)}") from error
    if len(logits) != 2:
        raise UsageError(
            f"The model {name} must return (n, {model.classes}) logits, but for 2 images it returned "
            f"{tuple(logits.shape)}."
        )


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _types(model: Classifier) -> str:
    """Return what to do about a network that computes in another type than that of images."""
    other = sorted({str(p.dtype).removeprefix("torch.") for p in model.network.parameters()} - {"float32"})
    if not other:
        return ""
    return f" (its parameters are {', '.join(other)}, images are float32: cast them in its forward)"


def obtain(
    spec: ModelSpec,
    dataset: Dataset,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Callable[[float], None] | None = None,
    on_message: Callable[[str], None] = lambda text: None,
) -> Classifier:
    """The model ready for use on ``device``: built, then trained, or with its weights, or as its factory gave it.

    ``on_message`` receives a note of what else the weights file holds.

    Raises:
        UsageError: like :func:`build`, :func:`load_weights` and :func:`~.training.train`.
    """
    trains = spec.needs_training
    model = build(spec, dataset.shape, len(dataset.classes), dataset.mean, dataset.std, seed)
    if trains:
        train(model, dataset.train, spec.recipe(dataset.name), seed, device, progress)
    elif spec.weights is not None:
        beside = load_weights(model.network, spec.weights)
        if beside:
            on_message(beside)
    return model.to(device)


def accuracy(
    model: nn.Module,
    split: ImageSplit,
    limit: int | None = None,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> float:
    """Return the share of images that ``model``, in eval mode, gets right.

    Args:
        limit: maximum number of images that are read, evenly spaced, since a split may be sorted by class.
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


def is_near_chance(accuracy: float, classes: int) -> bool:
    """Whether a clean accuracy is hardly better than guessing, so that nothing measured on the model means anything.

    Less than a quarter of the way from chance to 1, and less than three times chance: of many classes, a quarter right
    is a weak classifier and no wrong one.
    """
    return accuracy < 3 / classes and _is_low(accuracy, classes)


def _is_low(accuracy: float, classes: int) -> bool:
    """Return whether wrong normalisation, wrong weights or another order of the classes may be the reason."""
    chance = 1 / classes
    return accuracy < chance + 0.25 * (1 - chance)


def accuracy_warning(accuracy: float, classes: int, source: Source) -> str | None:
    """What to say about a low clean accuracy, or ``None`` where it is not less than a quarter of the way from chance.

    Args:
        accuracy: share of the images that the model gets right.
        classes: the number of classes.
        source: where its weights come from; ``factory`` where none were given and the factory's are used.
    """
    if not _is_low(accuracy, classes):
        return None
    rank = ", so its rows have no rank" if is_near_chance(accuracy, classes) else ""
    found = f"The clean accuracy is only {accuracy:.1%} (chance is {1 / classes:.1%}){rank}: "
    if source == "factory":
        return found + (
            "no weights were given, and the network is used as its factory makes it. Name its checkpoint (weights), "
            "or load it in the factory."
        )
    if source == "trained":
        return found + "train it for longer (epochs)."
    return found + (
        "check that mean, std and normalise are what the weights were trained with, and that the classes have the same "
        "order."
    )
