"""What several detectors share: images grouped by class, components on one scale, data that is read again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ...harness.tracing.traces import Traces

_MEMORY = 1 << 29


def class_groups(clean: Traces) -> Tensor:
    """Return the class that each fit image speaks for, int64 (n,): its label where the model is right, else −1.

    A misclassified image is no example of the class that the model predicted for it. Where the model is right about
    nothing, its predictions are all there is, and they are the groups.
    """
    correct = clean.labels == clean.predictions
    if not bool(correct.any()):
        return clean.predictions.clone()
    return torch.where(correct, clean.labels.to(torch.int64), -1)


def present_classes(groups: Tensor) -> Tensor:
    """Return the classes that occur, ascending, int64; −1 is none."""
    return torch.bincount(groups[groups >= 0]).nonzero().squeeze(1)


def class_counts(groups: Tensor, classes: int) -> Tensor:
    """Return images per class, float32 (classes,); images of group −1 count nowhere."""
    return torch.bincount(groups[groups >= 0], minlength=classes).float()


def one_hot(groups: Tensor, classes: int) -> Tensor:
    """Group membership, float32 (n, classes); the row of group −1 is zero."""
    return (groups.unsqueeze(1) == torch.arange(classes)).float()


def class_means(values: Tensor, groups: Tensor, classes: int) -> Tensor:
    """Return the mean row of each class, float64 (classes, d); the mean of all groups for a class without images."""
    values = values.double()
    members = one_hot(groups, classes).double()
    counts = members.sum(0)
    means = members.T @ values / counts.clamp(min=1).unsqueeze(1)
    means[counts == 0] = values[groups >= 0].mean(0)
    return means


def scale_of(values: Tensor) -> list[float]:
    """Return the mean and standard deviation of a component on clean images, as :func:`on_scale` takes them.

    A component that does not vary keeps its unit: its deviation counts as 1.
    """
    values = values.double()
    mean, deviation = float(values.mean()), float(values.std(correction=0))
    return [mean, deviation if deviation > 1e-9 * max(1.0, abs(mean)) else 1.0]


def on_scale(values: Tensor, scale: list[float]) -> Tensor:
    """Return a component in standard deviations from its mean on clean images."""
    return (values - scale[0]) / scale[1]


def replayable(read: Callable[[], Iterator[Tensor]], values: int) -> Callable[[], Iterable[Tensor]]:
    """``read``, with its ``values`` float32 numbers kept in memory where they take less than 512 MiB."""
    if 4 * values > _MEMORY:
        return read
    kept = list(read())
    return lambda: kept
