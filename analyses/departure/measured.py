"""What :mod:`~aftershock.analyses.departure` measures: what the codes of each population are read as, tap by tap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...harness.statistics.intervals import Estimate
from ..common.populations import CONTROL, SUCCESS
from .events import FEWEST, BoolArray, IntArray, departed, first_change, readable, settled

Margins = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Reading:
    """What the codes of some images are read as.

    Attributes:
        read: int64 (n, taps), the class that the code is read as.
        clean: int64 (n, taps), the same of the clean originals' codes.
        margins: float32 (n, taps), of the codes between own and reached class.
        clean_margins: float32 (n, taps), of the clean originals.
    """

    read: IntArray
    clean: IntArray
    margins: Margins
    clean_margins: Margins

    @classmethod
    def of(cls, images: int, taps: int) -> Reading:
        """Of this size, to be filled tap by tap."""
        shape = images, taps
        return cls(
            np.empty(shape, np.int64), np.empty(shape, np.int64), np.empty(shape, np.float32),
            np.empty(shape, np.float32),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Followed:
    """Images of one population of one perturbation, and what was read of them tap by tap.

    Attributes:
        perturbation: its label.
        population: ``success``, ``failed``, ``control`` (noise of the same norm as a success) or ``target-class``
            (for each success, a clean image of the class that it reached).
        rows: int64 (n,), positions of the clean originals among the evaluate images.
        own: int64 (n,), the true class of the originals.
        reached: int64 (n,), the predicted class of the success; of a failed image the runner-up.
        reading: at every tap.
        usable: bool (taps,), the reader is better than chance.
    """

    perturbation: str
    population: str
    rows: Tensor
    own: Tensor
    reached: Tensor
    reading: Reading
    usable: BoolArray

    @property
    def read(self) -> IntArray:
        """What the codes are read as."""
        return self.reading.read

    @property
    def clean(self) -> IntArray:
        """What the codes of the clean originals are read as."""
        return self.reading.clean

    @property
    def margins(self) -> Margins:
        """Of the codes, between own and reached class."""
        return self.reading.margins

    @property
    def clean_margins(self) -> Margins:
        """Of the clean originals' codes."""
        return self.reading.clean_margins

    def __len__(self) -> int:
        return len(self.rows)

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
class Example:
    """One image under one perturbation, whose way through the taps is shown.

    Attributes:
        name: why it is here: ``earliest``, ``median``, ``latest``, ``chosen``...
        perturbation: its label.
        population: ``success`` or ``failed``.
        index: the position there.
        control: the position of its noise among the controls; ``None`` where there is none.
        images: float32 (4, channels, height, width): clean, perturbed, difference, noise; NaN: a gap.
        gain: by how much the difference is multiplied.
    """

    name: str
    perturbation: str
    population: str
    index: int
    control: int | None
    images: Tensor
    gain: float


@dataclass(frozen=True, eq=False)
class Departed:
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
        populations: by perturbation and population, those without images included.
        kinds: by perturbation: noise, corruption or attack.
        no_untrained: why there is no untrained network; empty where there is one.
        examples: single images.
        asked: positions of the images that a suite chose to show.
    """

    taps: Sequence[str]
    depths: Sequence[int]
    total: int
    classes: Sequence[str]
    reader: str
    fitted: int
    checked: int
    chance: float
    accuracy: Mapping[str, Sequence[Estimate]]
    usable: BoolArray
    populations: Mapping[tuple[str, str], Followed]
    kinds: Mapping[str, str]
    no_untrained: str
    examples: Sequence[Example]
    asked: Sequence[int]

    @property
    def perturbations(self) -> list[str]:
        """Their labels."""
        return list(self.kinds)

    def of(self, perturbation: str, population: str) -> Followed:
        """One population."""
        return self.populations[perturbation, population]

    def pair(self, perturbation: str) -> tuple[Followed, IntArray, Followed]:
        """The successes, which of them have a control, and these controls in the same order."""
        success, control = self.of(perturbation, SUCCESS), self.of(perturbation, CONTROL)
        position = {row: i for i, row in enumerate(success.rows.tolist())}
        return success, np.array([position[row] for row in control.rows.tolist()], dtype=np.int64), control

    def drawn(self) -> list[str]:
        """Perturbations with enough successes for a curve."""
        return [p for p in self.perturbations if self.enough(p, SUCCESS)]

    def enough(self, perturbation: str, population: str) -> bool:
        """Whether enough images of a population can be judged for a curve."""
        return int(self.of(perturbation, population).judged.any(1).sum()) >= FEWEST

    def place(self, position: int) -> str:
        """A position in words."""
        if position >= len(self.taps):
            return "only the output"
        return f"{self.taps[position]} ({self.depths[position]} of {self.total})"

    def example(self, one: Example) -> tuple[Followed, Followed]:
        """The population of an example, and the controls."""
        return self.of(one.perturbation, one.population), self.of(one.perturbation, CONTROL)

    def row(self, one: Example) -> int:
        """The position of an example among the evaluate images."""
        return int(self.example(one)[0].rows[one.index])

    def between(self, one: Example) -> tuple[str, str]:
        """Names of an example's own and reached class."""
        followed, _ = self.example(one)
        return self.classes[int(followed.own[one.index])], self.classes[int(followed.reached[one.index])]

    def depth(self, position: int | None) -> int | None:
        """A position as a depth; one more than there are taps for the output."""
        if position is None or position < 0:
            return None
        return self.depths[position] if position < len(self.depths) else self.total + 1
