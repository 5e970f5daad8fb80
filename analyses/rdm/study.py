"""What :mod:`~aftershock.analyses.rdm` computes, before it is put in words, tables and figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from .graph import Array, Flags, class_interval

Value = str | int | float | None


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
    style: Literal["solid", "dashed", "dotted"]

    @property
    def laplacian(self) -> str:
        """Its name in tables."""
        return "normalised" if self.normalised else "raw"


@dataclass(eq=False)
class Study:
    """What was computed; by (variant, tap): arrays over pairs, or over permutations for ``null``.

    Attributes:
        taps: names in execution order.
        depth: from 1, among all taps of the model.
        classes: names of the chosen classes.
        counts: images of each.
        asked: how many were asked for.
        pairs: of positions among the classes.
        left_out: classes that are not studied.
        no_twin: why there is no untrained network; empty where there is one.
        accuracy: from 0.5 to 1.
        smaller: the share of images in the smaller part.
        unique: whether the graph has a Fiedler vector.
        null: the mean accuracy over pairs for permuted labels.
        dissimilarity: by (hamming or untrained, tap): means within and between classes, (classes, classes).
        maps: by tap: dissimilarities of single images, ordered by class.
        map_classes: images of each class in them.
        placed: attack, population, tap, and (n,) shares on the reached class's side.
    """

    taps: Sequence[str]
    depth: dict[str, int]
    classes: Sequence[str]
    counts: Sequence[int]
    asked: int
    pairs: Sequence[tuple[int, int]]
    left_out: int
    no_twin: str
    accuracy: dict[tuple[str, str], Array] = field(default_factory=dict)
    smaller: dict[tuple[str, str], Array] = field(default_factory=dict)
    unique: dict[tuple[str, str], Flags] = field(default_factory=dict)
    null: dict[tuple[str, str], Array] = field(default_factory=dict)
    dissimilarity: dict[tuple[str, str], Array] = field(default_factory=dict)
    maps: dict[str, Tensor] = field(default_factory=dict)
    map_classes: Sequence[int] = ()
    placed: list[tuple[str, str, str, Array]] = field(default_factory=list)

    def mean(self, variant: Variant, tap: str) -> tuple[float, float | None, float | None]:
        """Mean accuracy over pairs with its interval."""
        return class_interval(self.accuracy[variant.name, tap], self.pairs)

    def pair(self, number: int) -> str:
        """Two names of classes."""
        a, b = self.pairs[number]
        return f"{self.classes[a]} and {self.classes[b]}"


def count_of(counts: Iterable[int]) -> str:
    """A number of images, or from what to what."""
    fewest, most = min(counts), max(counts)
    return str(fewest) if fewest == most else f"{fewest} to {most}"


def number(value: Value) -> float:
    """A number in a table's row; NaN for a word or nothing."""
    return float(value) if isinstance(value, int | float) else float("nan")
