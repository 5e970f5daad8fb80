"""What the studies share: CIFAR-10, the ResNet-20 checkpoint, attacks that were measured, features and tables."""

from __future__ import annotations

import math
import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from aftershock.attacks.base.perturb_batch import perturb_batch
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.registry import PERTURBATIONS
from aftershock.harness.data.sets import cifar10
from aftershock.harness.models.classifier import ModelSpec, obtain
from torch import Tensor, nn

WEIGHTS = "weights/cifar10-resnet20-12fca82f.th"
# What the checkpoint was trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Images:
    """Images in [0, 1] that the model classifies correctly.

    Attributes:
        images: float32, (n, 3, 32, 32).
        labels: the true classes, int64, (n,).
        positions: places in the test split.
    """

    images: Tensor
    labels: Tensor
    positions: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Setup:
    """The model and the images of a study.

    Attributes:
        model: images in [0, 1] to logits, in eval mode.
        clean: correctly classified test images, in a drawn order.
        train_images: train images, float32.
        train_labels: their classes, int64.
    """

    model: nn.Module
    clean: Images
    train_images: Tensor
    train_labels: Tensor


def parser(description: str | None) -> ArgumentParser:
    """Return a parser with the options that all studies have."""
    made = ArgumentParser(description=(description or "").splitlines()[0])
    made.add_argument("--data", type=Path, default=os.environ.get("AFTERSHOCK_DATA"), help="root of data and weights")
    made.add_argument("--seed", type=int, default=0, help="seed of every draw")
    return made


def prepare(data: Path | None, count: int, train: int = 0, seed: int = 0) -> Setup:
    """Load the model, ``count`` correctly classified test images, and ``train`` train images.

    Raises:
        UsageError: where the data root is not given, or the test split has fewer such images.
    """
    if data is None:
        raise UsageError("The study needs CIFAR-10 and the ResNet-20 checkpoint: set AFTERSHOCK_DATA or give --data.")
    dataset = cifar10(Path(data)).load()
    spec = ModelSpec(name="resnet20", weights=Path(data) / WEIGHTS, mean=MEAN, std=STD)
    model = obtain(spec, dataset, seed)
    order = torch.randperm(len(dataset.test), generator=torch.Generator().manual_seed(seed)).tolist()
    kept: list[int] = []
    for start in range(0, len(order), 256):
        rows = order[start : start + 256]
        right = predictions(model, dataset.test.images(rows)) == dataset.test.labels(rows)
        kept += [row for row, good in zip(rows, right.tolist(), strict=True) if good]
        if len(kept) >= count:
            break
    else:
        raise UsageError(f"The model classifies only {len(kept)} test images correctly: ask for at most that many.")
    kept = kept[:count]
    clean = Images(dataset.test.images(kept), dataset.test.labels(kept), tuple(kept))
    drawn = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(seed + 1))[:train].tolist()
    return Setup(model, clean, dataset.train.images(drawn), dataset.train.labels(drawn))


def predictions(model: nn.Module, images: Tensor) -> Tensor:
    """Return the predicted classes, int64 (n,)."""
    with torch.no_grad():
        found: list[Tensor] = [model(part).argmax(1) for part in images.split(256)]
    return torch.cat(found)


def attacked(model: nn.Module, clean: Images, name: str, params: Mapping[str, Any], seed: int) -> tuple[Tensor, Tensor]:
    """Run a perturbation of the registry; return its images, and which of them fool the model, bool (n,)."""
    made = perturb_batch(PERTURBATIONS.get(name)(**params), model, clean.images, clean.labels, clean.positions, seed)
    return made.images, made.success


def equal_size_noise(clean: Tensor, perturbed: Tensor, generator: torch.Generator) -> Tensor:
    """Return clean images with Gaussian noise whose expected L2 norm is the mean one of the perturbations, clipped."""
    norm = float((perturbed - clean).flatten(1).norm(dim=1).mean())
    std = norm / math.sqrt(clean[0].numel())
    return (clean + std * torch.randn(clean.shape, generator=generator)).clamp(0, 1)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose first column is text and whose other columns are numbers."""
    lines = [list(head), ["---", *["--:"] * (len(head) - 1)], *(list(row) for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def figure(value: float) -> str:
    """Return an AUROC as the pages write it: three digits, without the leading zero."""
    return f"{value:.3f}".removeprefix("0")


def write(text: str) -> None:
    """Write a line to standard output at once, so that a slow study shows how far it has come."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
