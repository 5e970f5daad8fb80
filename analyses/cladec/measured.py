"""What :mod:`~aftershock.analyses.cladec` measures: values of every image and seed, and some pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...harness.statistics.intervals import Estimate
from .causal import Causes
from .measures import SHARES, difference, estimate
from .training import Budget, Key, Source

# The column of the images themselves, before any tap.
IMAGE = "image"
# Images of each perturbation in galleries.
SHOWN = 8


@dataclass(frozen=True, eq=False)
class Reading:
    """What became of one perturbation's images.

    Attributes:
        label: the perturbation's.
        images: how many that fool the model.
        controls: how many of them have noise of the same size.
        true: classes of the first few, int64 (k,).
        reached: their predicted classes, int64 (k,).
        originals: float32 (k, channels, height, width), before the perturbation.
        perturbed: float32 (k, channels, height, width).
        values: float32 (seeds, n) by tap and source name (of the undecoded image: its own name and an empty one), by
            measure: ``reached`` and ``true`` are what the fresh classifier reads, ``nearer`` says whether the
            reconstruction lies nearer to the mean reconstruction of the reached class than to that of the true one;
            ``control_...`` for noise.
        shown: reconstructions of the first images by the first seed, by tap and source.
    """

    label: str
    images: int
    controls: int
    true: Tensor
    reached: Tensor
    originals: Tensor
    perturbed: Tensor
    values: Mapping[tuple[str, str], Mapping[str, Tensor]]
    shown: Mapping[Key, Tensor]

    def estimate(self, tap: str, source: str, measure: str) -> Estimate | None:
        """The share of images, or ``None`` without any."""
        seeds = self.values[tap, source].get(measure)
        return None if seeds is None else estimate(seeds, True)

    def turning(self, taps: Sequence[str], source: str) -> str | None:
        """The first tap from which on, and everywhere behind, the reached class is read more often than the true one.

        "More often": the interval of the paired difference lies above 0.
        """
        found = None
        for tap in reversed(taps):
            seen = self.values[tap, source]
            if difference(seen["reached"] - seen["true"], True).low <= 0:
                break
            found = tap
        return found


@dataclass(frozen=True, eq=False)
class Decoded:
    """Everything that was measured.

    Attributes:
        taps: names of those that were decoded, by depth.
        sources: of codes that were compared.
        classes: their names.
        budget: of the decoders.
        seeds: how many.
        retrained: judges were trained on reconstructions, too.
        trained_on: fit images.
        tested_on: evaluate images.
        images: the first of them, as many as galleries show, (k, channels, height, width).
        labels: their classes.
        mean_error: mean squared error of the mean fit image: what no code at all reaches.
        no_untrained: why there is no untrained network; empty where there is one.
        readings: of the perturbations that fool the model.
        powerless: the labels of the others.
        values: float32 (seeds, images) by tap and source, by measure.
        original: float32 (seeds, images) by measure, on the images themselves.
        curves: by tap and source, one list of errors per epoch for each seed.
        gallery: reconstructions of the first images by the first seed, by tap and source.
        causes: of the first seed, by tap and source.
    """

    taps: Sequence[str]
    sources: Sequence[Source]
    classes: Sequence[str]
    budget: Budget
    seeds: int
    retrained: bool
    trained_on: int
    tested_on: int
    images: Tensor
    labels: Tensor
    mean_error: float
    no_untrained: str
    readings: Sequence[Reading]
    powerless: Sequence[str]
    values: Mapping[Key, Mapping[str, Tensor]]
    original: Mapping[str, Tensor]
    curves: Mapping[Key, Sequence[Sequence[float]]]
    gallery: Mapping[Key, Tensor]
    causes: Mapping[Key, Causes]

    @property
    def decoders(self) -> list[Source]:
        """The sources that decode the classifier under study, by alpha."""
        return [s for s in self.sources if s.encoder == "own"]

    def source(self, kind: str) -> Source | None:
        """The reference or the random encoder."""
        return next((s for s in self.sources if s.kind == kind), None)

    def estimate(self, tap: str, source: Source, measure: str) -> Estimate:
        """The mean of one measure."""
        return estimate(self.values[tap, source][measure], measure in SHARES)

    def baseline(self, measure: str) -> Estimate:
        """The same measure on the images themselves."""
        return estimate(self.original[measure], measure in SHARES)

    def difference(self, tap: str, one: Source, other: Source, measure: str) -> Estimate:
        """``one`` minus ``other`` on the same images, seeds and judges."""
        pair = [self.values[tap, source][measure] for source in (one, other)]
        return difference(pair[0] - pair[1], measure in SHARES)
