"""Single images whose way through the taps is shown: picked by their depth of departure, or chosen by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import AnalysisInput, Lines, Pictures, Series, Table
from ..findings import Figure
from .events import UNREADABLE
from .study import CONTROL, FAILED, SUCCESS, Crowd, Study

# Columns of an example's pictures.
_COLUMNS = ("clean", "perturbed", "difference", "noise of the same size")


@dataclass(frozen=True, eq=False)
class Example:
    """One image under one perturbation.

    Attributes:
        name: why it is here: ``earliest``, ``median``, ``latest``, ``chosen``...
        crowd: the successes or the failures.
        index: its position there.
        control: noise of the same norm: the population and the position there; ``None`` where there is none.
        images: float32 (3 or 4, channels, height, width): clean, perturbed, difference, control; NaN: a gap.
        gain: by how much the difference is multiplied.
    """

    name: str
    crowd: Crowd
    index: int
    control: tuple[Crowd, int] | None
    images: Tensor
    gain: float

    @property
    def row(self) -> int:
        """The position among the evaluate images."""
        return int(self.crowd.rows[self.index])

    def title(self, study: Study) -> str:
        """What stands in legends."""
        own, reached = (study.classes[int(c[self.index])] for c in (self.crowd.own, self.crowd.reached))
        moved = f"{own} → {reached}" if self.crowd.population == SUCCESS else f"{own}, failed"
        return f"{self.name}: image {self.row} ({moved})"


def examples(study: Study, material: AnalysisInput, count: int, indices: Sequence[int] | None) -> list[Example]:
    """The examples of every perturbation; chosen images that it was not applied to are left out."""
    found = []
    for label in study.perturbations:
        success, failed = study.crowd(label, SUCCESS), study.crowd(label, FAILED)
        if indices is None:
            picked = [(name, success, i) for name, i in _picked(success, count)]
        else:
            picked = [
                ("chosen", crowd, crowd.rows.tolist().index(row))
                for row in indices
                for crowd in (success, failed)
                if row in crowd.rows.tolist()
            ]
        control = study.crowd(label, CONTROL)
        position = {row: i for i, row in enumerate(control.rows.tolist())}
        for name, crowd, i in picked:
            at = position.get(int(crowd.rows[i])) if crowd is success else None
            noise = None if at is None else (control, at)
            found.append(Example(name, crowd, i, noise, *_images(material, crowd, i, noise)))
    return found


def _picked(crowd: Crowd, count: int) -> list[tuple[str, int]]:
    """Images from the earliest to the latest departure, evenly spread over their ranks."""
    known = np.flatnonzero(crowd.good != UNREADABLE)
    order = known[np.lexsort((crowd.rows.numpy()[known], crowd.good[known]))]
    if not len(order) or not count:
        return []
    shares = np.linspace(0, 1, count) if count > 1 else np.array([0.5])
    ranks = dict.fromkeys(round(float(s) * (len(order) - 1)) for s in shares)
    names = {round((len(order) - 1) / 2): "median", 0: "earliest", len(order) - 1: "latest"}
    if len(order) == 1:
        names = {0: "only"}
    return [(names.get(r, f"{r / (len(order) - 1):.0%}"), int(order[r])) for r in ranks]


def _images(
    material: AnalysisInput, crowd: Crowd, index: int, control: tuple[Crowd, int] | None
) -> tuple[Tensor, float]:
    def one(source: Crowd, i: int) -> Tensor:
        at = int(source.where[i])
        return source.images.read(slice(at, at + 1))[0]

    row = int(crowd.rows[index])
    clean, moved = material.evaluate.read(slice(row, row + 1))[0], one(crowd, index)
    apart = moved - clean
    largest = float(apart.abs().max())
    gain = 0.5 / largest if largest > 0 else 1.0
    noise = torch.full_like(clean, torch.nan) if control is None else one(*control)
    return torch.stack([clean, moved, (0.5 + gain * apart).clamp(0, 1), noise]), gain


def example_figures(study: Study, shown: Sequence[Example], label: str) -> list[Figure]:
    """The way of a perturbation's examples, and what they look like."""
    own = [e for e in shown if e.crowd.perturbation == label]
    if not own:
        return []
    series = []
    for e in own:
        title = e.title(study)
        series.append(Series(title, _curve(e.crowd.margins[e.index])))
        if e.control is not None:
            crowd, i = e.control
            series.append(Series(f"{title}, noise", _curve(crowd.margins[i]), style="dashed"))
        series.append(Series(f"{title}, clean", _curve(e.crowd.clean_margins[e.index]), style="dotted"))
    lines = Lines(
        f"Single images: {label}",
        "Margin of a code between the centroids of its true class and of the class that it was moved to (of a failed "
        "image: the runner-up): 1 at its own class's centroid, 0 half-way, -1 at the other's. Solid: perturbed; "
        "dashed: noise of the same size; dotted: clean.",
        list(study.taps),
        "tap, in order of execution",
        "margin of the own class",
        series,
    )
    grid = torch.stack([e.images for e in own])
    if grid.shape[2] not in (1, 3):
        return [lines]
    labels = [f"{e.title(study)}; difference × {e.gain:.3g} around grey" for e in own]
    pictures = Pictures(
        f"Pictures of the single images: {label}",
        "Clean, perturbed, their difference (scaled so that its largest value is black or white; the factor stands "
        "at the row) and noise of the same size, which left the prediction as it was.",
        grid,
        labels,
        list(_COLUMNS),
    )
    return [lines, pictures]


def _curve(values: NDArray[np.float32]) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]


def example_table(study: Study, shown: Sequence[Example]) -> Table:
    """Every number of these figures."""
    rows = []
    for e in shown:
        own, reached = (study.classes[int(c[e.index])] for c in (e.crowd.own, e.crowd.reached))
        noise = [None] * len(study.taps) if e.control is None else _curve(e.control[0].margins[e.control[1]])
        clean, moved = _curve(e.crowd.clean_margins[e.index]), _curve(e.crowd.margins[e.index])
        rows += [
            (
                tap, study.depths[t], e.crowd.perturbation, e.name, e.row, e.crowd.population, own, reached, clean[t],
                moved[t], noise[t], study.classes[int(e.crowd.clean[e.index, t])],
                study.classes[int(e.crowd.read[e.index, t])],
            )
            for t, tap in enumerate(study.taps)
        ]  # fmt: skip
    return Table(
        "departure-examples",
        "Single images tap by tap: the margin of their code between the centroids of the true class and of the other "
        "one, clean, perturbed and with noise of the same size; and what their code is read as.",
        (
            "tap", "depth", "perturbation", "example", "image", "population", "true_class", "reached_class",
            "clean_margin", "margin", "noise_margin", "clean_read_as", "read_as",
        ),
        rows,
    )  # fmt: skip
