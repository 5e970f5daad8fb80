"""What :mod:`~aftershock.analyses.rdm` measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...harness.statistics.intervals import Estimate
from ..common.text import Style
from .graph import Array, Flags, class_interval


@dataclass(frozen=True)
class Variant:
    """A graph and a Laplacian.

    Attributes:
        name: in legends and tables.
        network: trained or untrained.
        graph: whose similarities weigh it: hamming, jaccard, cosine, untrained.
        normalised: which Laplacian.
        style: of its curve.
    """

    name: str
    network: str
    graph: str
    normalised: bool
    style: Style

    @property
    def laplacian(self) -> str:
        """Its name in tables."""
        return "normalised" if self.normalised else "raw"


@dataclass(frozen=True, eq=False)
class Split:
    """How one graph of each pair of classes is split at one tap.

    Attributes:
        accuracy: float64 (pairs,), from 0.5 to 1.
        smaller: float64 (pairs,), the share of images in the smaller part.
        unique: bool (pairs,), whether the graph has a Fiedler vector.
        null: float64 (permutations,), the mean accuracy over pairs for permuted labels.
    """

    accuracy: Array
    smaller: Array
    unique: Flags
    null: Array


@dataclass(frozen=True, eq=False)
class Placed:
    """On which side of the clean images' partition the images of one population lie at one tap.

    Attributes:
        attack: its label.
        population: attacked, noise of the same size, or the images before the attack.
        tap: its name.
        shares: float64 (n,), 1 on the reached class's side, 0 on the true one's, 0.5 on neither.
    """

    attack: str
    population: str
    tap: str
    shares: Array


@dataclass(frozen=True, eq=False)
class Separation:
    """How the patterns of each tap separate classes.

    Attributes:
        taps: names in execution order.
        depth: from 1, among all taps of the model.
        classes: names of the chosen classes.
        counts: images of each.
        asked: how many were asked for.
        pairs: of positions among the classes.
        left_out: classes that are not studied.
        no_untrained: why there is no untrained network; empty where there is one.
        variants: the graphs that are split; the first is the one that the others are compared with.
        splits: by name of the variant and tap.
        dissimilarity: by (hamming or untrained, tap): means within and between classes, float64 (classes, classes).
        maps: by tap: dissimilarities of single images, ordered by class.
        map_classes: images of each class in them.
        placed: attacked images and their controls.
    """

    taps: tuple[str, ...]
    depth: Mapping[str, int]
    classes: Sequence[str]
    counts: Sequence[int]
    asked: int
    pairs: Sequence[tuple[int, int]]
    left_out: int
    no_untrained: str
    variants: Sequence[Variant]
    splits: Mapping[tuple[str, str], Split]
    dissimilarity: Mapping[tuple[str, str], Array]
    maps: Mapping[str, Tensor]
    map_classes: Sequence[int]
    placed: Sequence[Placed]

    def split(self, variant: Variant, tap: str) -> Split:
        """Of one graph at one tap."""
        return self.splits[variant.name, tap]

    def mean(self, variant: Variant, tap: str) -> Estimate:
        """Mean accuracy over pairs with its interval."""
        return class_interval(self.split(variant, tap).accuracy, self.pairs)

    def pair(self, number: int) -> str:
        """Two names of classes."""
        a, b = self.pairs[number]
        return f"{self.classes[a]} and {self.classes[b]}"
