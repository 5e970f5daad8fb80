"""Training, deterministic by seed: the recipe is a plain value, and trained weights are keyed by it."""

from __future__ import annotations

import copy
import itertools
import math
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import UsageError
from ..core.model_state import one_thread
from ..core.parameters import bind
from ..core.seeds import derive_seed, forked_rng, generator
from ..data.types import ImageSplit

Augmentation = Literal["none", "crop", "crop-flip"]

# The size from which torch itself splits an element-wise operation between threads (its grain size).
PARALLEL_NUMBERS = 32768


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step; an incomplete last batch of an epoch is left out.
        optimiser: ``adam``, or ``sgd`` with Nesterov momentum.
        learning_rate: the peak; it follows half a cosine down to 0 over all steps.
        warmup: the share of the steps in which the rate first climbs from 0.
        momentum: of ``sgd``.
        weight_decay: an L2 penalty on every parameter (``sgd``), or decoupled (``adam``; Loshchilov & Hutter 2017).
        label_smoothing: the share of the target spread over all classes.
        augmentation: ``crop`` pads with black by an eighth of the side and crops at random; ``crop-flip`` also mirrors
            every second image.

    Raises:
        UsageError: for a value out of range.
    """

    epochs: int = 30
    batch_size: int = 128
    optimiser: Literal["sgd", "adam"] = "adam"
    learning_rate: float = 2e-3
    warmup: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    augmentation: Augmentation = "none"

    def __post_init__(self) -> None:
        ranges = {
            "epochs": (1, 100_000),
            "batch_size": (1, 1_000_000),
            "learning_rate": (0, 1000),
            "warmup": (0, 0.9),
            "momentum": (0, 0.9999),
            "weight_decay": (0, 100),
            "label_smoothing": (0, 0.99),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"Training cannot use {name} = {value}: give a number from {low} to {high:g}.")

    def as_json(self) -> dict[str, Any]:
        """Return the recipe as plain JSON values, for content keys and records."""
        return asdict(self)

    def changed(self, overrides: Mapping[str, Any]) -> Recipe:
        """Return the recipe with some values replaced.

        Raises:
            UsageError: for an unknown name, with the nearest known one, or a wrong value.
        """
        values, problems = bind(Recipe, overrides)
        if problems:
            raise UsageError(f"The training recipe is wrong: {'; '.join(problems.values())}.")
        return replace(self, **values)


# The usual augmentations: a mirrored object is one of its class, a mirrored digit is not.
_AUGMENTATION: Mapping[str, Augmentation] = {"cifar10": "crop-flip", "cifar100": "crop-flip", "svhn": "crop"}
_LARGE_GREY = ("mnist", "fashion-mnist")


def default_recipe(architecture: str, dataset: str) -> Recipe:
    """Return the recipe for a model and a data set, by their names alone, so that planning needs neither.

    ``mlp`` and ``cnn`` train in seconds (digits) to minutes (MNIST); everything else on colour images takes the usual
    hundred epochs of SGD, which is a matter of hours without an accelerator: see :func:`estimate_seconds`.
    """
    small = architecture in ("mlp", "cnn")
    if dataset == "digits":
        if not small:
            return Recipe(epochs=40, batch_size=64)
        epochs, rate = (30, 1e-2) if architecture == "mlp" else (20, 4e-3)
        return Recipe(epochs=epochs, batch_size=64, learning_rate=rate)
    if dataset in _LARGE_GREY:
        return Recipe(epochs=10 if architecture == "mlp" else 3)
    augmentation = _AUGMENTATION.get(dataset, "none")
    if small or dataset not in _AUGMENTATION:
        return Recipe(epochs=30, weight_decay=5e-4, augmentation=augmentation)
    return Recipe(epochs=100, optimiser="sgd", learning_rate=0.1, weight_decay=5e-4, augmentation=augmentation)


def train(
    model: nn.Module,
    split: ImageSplit,
    recipe: Recipe,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Callable[[float], None] | None = None,
) -> None:
    """Train ``model`` in place on the images and labels of ``split``; it ends on ``device`` and in eval mode.

    The same model, split, recipe, seed and device give the same weights, bit for bit (on one number of threads, where
    a batch is large enough to need several); the global generators are as before afterwards.

    Args:
        model: images in [0, 1] to logits.
        progress: called with the share of the steps that is done, after every step.

    Raises:
        UsageError: if nothing can be trained or the loss stops being finite.
    """
    for done in _steps(model, split, recipe, seed, torch.device(device)):
        if progress is not None:
            progress(done)


def estimate_seconds(
    model: nn.Module, split: ImageSplit, recipe: Recipe, device: torch.device | str = "cpu", steps: int = 5
) -> float:
    """How long :func:`train` would take, from ``steps`` timed steps of a copy of the model (one more warms up)."""
    device = torch.device(device)
    running = _steps(copy.deepcopy(model), split, recipe, 0, device)
    share = next(running)
    seconds: list[float] = []
    last = _now(device)
    for _ in itertools.islice(running, steps):
        now = _now(device)
        seconds.append(now - last)
        last = now
    running.close()
    # The median: single steps are held up by whatever else the machine does.
    return statistics.median(seconds) / share if seconds else 0.0


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _steps(model: nn.Module, split: ImageSplit, recipe: Recipe, seed: int, device: torch.device) -> Generator[float]:
    """Train step by step; yields the share that is done after each step."""
    model.to(device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise UsageError("The model has no parameter that can be trained: give its weights.")
    size = min(recipe.batch_size, len(split))
    per_epoch = len(split) // size
    total = recipe.epochs * per_epoch
    optimiser = _optimiser(parameters, recipe)
    draws = generator(seed, "train", "images")
    small = split.images([0]).numel() * size < PARALLEL_NUMBERS
    was_training = model.training
    model.train()
    step = 0
    try:
        for _ in range(recipe.epochs):
            order = torch.randperm(len(split), generator=draws)[: per_epoch * size]
            for rows in torch.split(order, size):
                for group in optimiser.param_groups:
                    group["lr"] = recipe.learning_rate * _rate(step, total, recipe.warmup)
                # Dropout draws from the global generator; each step is seeded by its number.
                with _deterministic(small), forked_rng(derive_seed(seed, "train", "step", step)):
                    images = _augmented(split.images(rows.tolist()), recipe.augmentation, draws).to(device)
                    labels = split.labels(rows.tolist()).to(device)
                    loss = F.cross_entropy(model(images), labels, label_smoothing=recipe.label_smoothing)
                    optimiser.zero_grad()
                    torch.autograd.backward(loss)
                    optimiser.step()
                step += 1
                # Reading the loss waits for a GPU, so not after every step.
                if (step % 20 == 0 or step == total) and not math.isfinite(loss.item()):
                    raise UsageError(
                        f"Training diverged at step {step} of {total}: lower learning_rate = {recipe.learning_rate}."
                    )
                yield step / total
        was_training = False
    finally:
        optimiser.zero_grad()
        model.train(was_training)


def _optimiser(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(
            parameters,
            recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0,
        )
    return torch.optim.AdamW(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay)


def _rate(step: int, total: int, warmup: float) -> float:
    """Return the learning rate's share of its peak at a step (from 0)."""
    climb = round(warmup * total)
    if step < climb:
        return (step + 1) / climb
    return 0.5 * (1 + math.cos(math.pi * (step - climb) / (total - climb)))


def _augmented(images: Tensor, augmentation: Augmentation, draws: torch.Generator) -> Tensor:
    """Each image padded, cropped at a place of its own and, for ``crop-flip``, mirrored with chance one half."""
    if augmentation == "none":
        return images
    n, _, height, width = images.shape
    pads = max(1, height // 8), max(1, width // 8)
    padded = F.pad(images, (pads[1], pads[1], pads[0], pads[0]))
    top = torch.randint(0, 2 * pads[0] + 1, (n, 1), generator=draws)
    left = torch.randint(0, 2 * pads[1] + 1, (n, 1), generator=draws)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    if augmentation == "crop-flip":
        mirrored = torch.rand(n, 1, generator=draws) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    # Advanced indices around the slice put the channels last.
    picked = padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


@contextmanager
def _deterministic(small: bool) -> Iterator[None]:
    """Deterministic convolutions, and one thread for batches so ``small`` that several would only wait for each other.

    Sums then have one order on every machine for the small models, whatever its number of cores.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        with one_thread(small):
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
