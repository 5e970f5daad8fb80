"""Who is followed through the taps by :mod:`.departure`, and what was read of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import AnalysisInput, ImageSet, PerturbedSet
from .events import BoolArray, IntArray, Interval, departed, first_change, readable, settled

SUCCESS, FAILED, CONTROL, TARGET = "success", "failed", "control", "target-class"


@dataclass(eq=False)
class Crowd:
    """Images of one population of one perturbation, and what was read of them tap by tap.

    Attributes:
        perturbation: its label.
        population: ``success``, ``failed``, ``control`` (noise of the same norm as a success) or ``target-class``
            (for each success, a clean image of the class that it reached).
        images: where they are.
        where: int64 (n,), positions in ``images``.
        rows: int64 (n,), positions of the clean originals among the evaluate images.
        own: int64 (n,), the true class of the originals.
        reached: int64 (n,), the class that the success was moved to; of a failed image the runner-up.
        read: int64 (n, taps), what the codes are read as.
        margins: float32 (n, taps), of the codes between own and reached class.
        clean_margins: float32 (n, taps), of the clean originals.
        clean: int64 (n, taps), what the codes of the clean originals are read as.
        usable: bool (taps,), the reader is better than chance.
    """

    perturbation: str
    population: str
    images: ImageSet
    where: Tensor
    rows: Tensor
    own: Tensor
    reached: Tensor
    read: IntArray = field(default_factory=lambda: np.empty((0, 0), np.int64))
    margins: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    clean_margins: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    clean: IntArray = field(default_factory=lambda: np.empty((0, 0), np.int64))
    usable: BoolArray = field(default_factory=lambda: np.empty(0, np.bool_))

    def __len__(self) -> int:
        return len(self.where)

    @cached_property
    def judged(self) -> BoolArray:
        """(n, taps): where the image is readable."""
        return readable(self.own.numpy(), self.clean, self.usable)

    @cached_property
    def first(self) -> IntArray:
        """First change of verdict."""
        return first_change(self.own.numpy(), self.read, self.judged)

    @cached_property
    def good(self) -> IntArray:
        """Departed for good."""
        return departed(self.own.numpy(), self.read, self.judged)

    @cached_property
    def arrival(self) -> IntArray:
        """Read as the reached class from there on."""
        return settled(self.reached.numpy(), self.read, self.usable)

    @property
    def changed(self) -> BoolArray:
        """(n, taps): not read as the own class."""
        return np.asarray(self.read != self.own.numpy()[:, None])


@dataclass(frozen=True, eq=False)
class Study:
    """Everything that was read.

    Attributes:
        taps: names, in execution order.
        depths: their places among all taps of the model, from 1 on.
        total: how many taps the model has.
        classes: their names.
        reader: which kind.
        fitted: on how many images.
        checked: how many held-out images tell the readers' accuracy.
        chance: the share of the most frequent class among those.
        accuracy: by network (``trained``, ``untrained``), the readers' accuracy at each tap.
        usable: bool (taps,), the trained network's reader is better than chance.
        crowds: by perturbation and population, those without images included.
        kinds: by perturbation: noise, corruption or attack.
        no_twin: why there is no untrained network; empty where there is one.
    """

    taps: Sequence[str]
    depths: Sequence[int]
    total: int
    classes: Sequence[str]
    reader: str
    fitted: int
    checked: int
    chance: float
    accuracy: Mapping[str, Sequence[Interval]]
    usable: BoolArray
    crowds: Mapping[tuple[str, str], Crowd]
    kinds: Mapping[str, str]
    no_twin: str

    @property
    def perturbations(self) -> list[str]:
        """Their labels."""
        return list(self.kinds)

    def crowd(self, perturbation: str, population: str) -> Crowd:
        """One population."""
        return self.crowds[perturbation, population]

    def pair(self, perturbation: str) -> tuple[Crowd, IntArray, Crowd]:
        """The successes, which of them have a control, and these controls in the same order."""
        success, control = self.crowd(perturbation, SUCCESS), self.crowd(perturbation, CONTROL)
        position = {row: i for i, row in enumerate(success.rows.tolist())}
        return success, np.array([position[row] for row in control.rows.tolist()], dtype=np.int64), control

    def enough(self, perturbation: str, population: str, least: int) -> bool:
        """Whether as many images of a population can be judged."""
        return int(self.crowd(perturbation, population).judged.any(1).sum()) >= least

    def place(self, position: int) -> str:
        """A position in words."""
        if position >= len(self.taps):
            return "only the output"
        return f"{self.taps[position]} ({self.depths[position]} of {self.total})"

    def depth(self, position: int | None) -> int | None:
        """A position as a depth; one more than there are taps for the output."""
        if position is None or position < 0:
            return None
        return self.depths[position] if position < len(self.depths) else self.total + 1


def crowds(material: AnalysisInput, perturbed: Sequence[PerturbedSet], images: int) -> dict[tuple[str, str], Crowd]:
    """The populations of some perturbations of the first ``images`` evaluate images."""
    evaluate = material.evaluate
    labels = evaluate.traces.labels
    right = evaluate.traces.predictions == labels
    pools = {c: (right[:images] & (labels[:images] == c)).nonzero().squeeze(1) for c in range(len(material.classes))}
    found = {}
    for one in perturbed:
        for crowd in (*_moved(one, images), *_clean(one, images, evaluate, pools, material.draws("target", one.label))):
            found[one.label, crowd.population] = crowd
    return found


def _moved(one: PerturbedSet, images: int) -> list[Crowd]:
    own, reached = one.images.traces.labels, _reached(one)
    kept = one.rows < images
    found = []
    for population, mask in ((SUCCESS, one.success), (FAILED, ~one.success)):
        where = (kept & mask).nonzero().squeeze(1)
        found.append(
            Crowd(one.label, population, one.images, where, one.rows[where], own[where], reached[where])
        )  # fmt: skip
    of_row = {int(row): i for i, row in enumerate(one.rows.tolist()) if bool(one.success[i])}
    pairs = [(j, of_row[row]) for j, row in enumerate(one.control_rows.tolist()) if row in of_row and row < images]
    where, source = (torch.tensor([p[i] for p in pairs], dtype=torch.int64) for i in (0, 1))
    found.append(Crowd(one.label, CONTROL, one.control, where, one.rows[source], own[source], reached[source]))
    return found


def _reached(one: PerturbedSet) -> Tensor:
    """The most likely class beside the true one: of a success the one that the network predicts."""
    logits = one.images.traces.logits.clone()
    if not len(logits):
        return torch.empty(0, dtype=torch.int64)
    return logits.scatter(1, one.images.traces.labels.unsqueeze(1), -torch.inf).argmax(1)


def _clean(
    one: PerturbedSet, images: int, evaluate: ImageSet, pools: Mapping[int, Tensor], draws: torch.Generator
) -> list[Crowd]:
    """For each success a clean image, drawn from those of the class that it reached and that the model gets right."""
    own, reached = one.images.traces.labels, _reached(one)
    pairs = []
    for i in (one.success & (one.rows < images)).nonzero().squeeze(1).tolist():
        pool = pools[int(reached[i])]
        if len(pool):
            pairs.append((int(pool[int(torch.randint(len(pool), (1,), generator=draws))]), i))
    where, source = (torch.tensor([p[k] for p in pairs], dtype=torch.int64) for k in (0, 1))
    return [Crowd(one.label, TARGET, evaluate, where, one.rows[source], own[source], reached[source])]
