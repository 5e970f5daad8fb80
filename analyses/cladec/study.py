"""What one study of ClaDec measured: what its tables, figures and sentences are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ...harness.tracing.traces import TapInfo
from .attacked import Reading
from .causal import Causes
from .measures import Measured
from .training import Budget, Key, Source


@dataclass(eq=False)
class Study:
    """Everything that one study measured.

    Attributes:
        taps: that were decoded, by depth.
        sources: of codes that were compared.
        classes: their names.
        budget: of the decoders.
        seeds: how many.
        target: of the classification loss.
        retrained: judges were trained on reconstructions, too.
        trained_on: fit images.
        controlled: there is an untrained network.
        images: the evaluate images (n, channels, height, width).
        labels: their classes.
        mean_error: mean squared error of the mean fit image: what no code at all reaches.
        readings: of the perturbations that turned an image.
        unturned: the labels of the others.
        measured: by tap and source.
        curves: by tap and source, one list of errors per epoch for each seed.
        gallery: reconstructions of the first images by the first seed.
        causes: of the first seed, by tap and source.
    """

    taps: Sequence[TapInfo]
    sources: Sequence[Source]
    classes: Sequence[str]
    budget: Budget
    seeds: int
    target: str
    retrained: bool
    trained_on: int
    controlled: bool
    images: Tensor
    labels: Tensor
    mean_error: float
    readings: Sequence[Reading]
    unturned: Sequence[str]
    measured: Measured = field(default_factory=Measured)
    curves: dict[Key, list[list[float]]] = field(default_factory=dict)
    gallery: dict[Key, Tensor] = field(default_factory=dict)
    causes: dict[Key, Causes] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Of the taps."""
        return [tap.name for tap in self.taps]

    @property
    def decoders(self) -> list[Source]:
        """The sources that decode the classifier under study, by alpha."""
        return [s for s in self.sources if s.encoder == "own"]

    def source(self, kind: str) -> Source | None:
        """The reference or the random encoder."""
        return next((s for s in self.sources if s.kind == kind), None)
