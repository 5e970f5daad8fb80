"""What :mod:`~aftershock.analyses.self_introspection` measures.

Errors in the fringe, maps, tracks, reconstructions, relevance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...harness.statistics.intervals import Estimate
from .relevance import Orders

ATTACK, NOISE = "perturbation", "noise"


@dataclass(frozen=True)
class Merit:
    """How well a score tells wrong predictions from right ones: an AUROC, and its difference to max-softmax."""

    name: str
    auroc: Estimate
    difference: Estimate


@dataclass(frozen=True)
class Errors:
    """Wrong predictions on held-out images.

    Attributes:
        images: how many there are.
        wrong: about how many the model is wrong.
        merits: of each score; empty for too few of either.
        coverages: shares of images that are kept.
        risk: by score, the error rate among the least suspicious share.
    """

    images: int
    wrong: int
    merits: Sequence[Merit]
    coverages: Sequence[float]
    risk: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Purity:
    """Class purity of a space, its interval, what chance gives, and the silhouette of the classes."""

    space: str
    size: int
    share: Estimate
    chance: float
    silhouette: float


@dataclass(frozen=True, eq=False)
class Path:
    """The ways from clean images to perturbed ones and to noise of the same size, through the maps.

    Attributes:
        label: the perturbation's.
        rows: evaluate rows of the images.
        share: float64 (steps,), t from 0 to 1.
        codes: by kind of way (``perturbation``, ``noise``), by map, float32 (m, steps, size).
        predictions: by kind, int64 (m, steps).
    """

    label: str
    rows: Sequence[int]
    share: Tensor
    codes: Mapping[str, Mapping[str, Tensor]]
    predictions: Mapping[str, Tensor]


@dataclass(frozen=True)
class Crossing:
    """Where on the way to one perturbation predictions change, and where codes cross to the predicted class.

    Attributes:
        label: the perturbation's.
        code: in which the distances are taken.
        images: how many are tracked.
        share: t of each step.
        nearing: by kind of way, at each step the distance to the clean class minus that to the reached one.
        changed: by kind of way, the share of predictions that have changed at each step.
        flip: t at which the prediction changes, mean over images.
        start: share of images that lie nearer to the reached class from the start.
        end: the same at the end, by kind of way.
        crossed: images whose code crosses on the way.
        crossing: t at which it does.
        lag: that t minus the prediction's.
    """

    label: str
    code: str
    images: int
    share: Sequence[float]
    nearing: Mapping[str, Sequence[Estimate]]
    changed: Mapping[str, Sequence[float]]
    flip: Estimate
    start: Estimate
    end: Mapping[str, Estimate]
    crossed: int
    crossing: Estimate
    lag: Estimate


@dataclass(frozen=True)
class Missed:
    """What a code misses of one set of images, by layer: share of the layer's variance on fit images.

    Attributes:
        code: which one.
        images_of: what the set is.
        images: how many.
        median: over images, for each layer.
        mean: over images, for each layer.
    """

    code: str
    images_of: str
    images: int
    median: Sequence[Estimate]
    mean: Sequence[float]


@dataclass(frozen=True)
class Told:
    """How well a score tells successes of a perturbation from other images.

    Attributes:
        label: the perturbation's.
        score: which one.
        against: ``clean`` or ``noise``.
        positives: successes.
        negatives: other images.
        auroc: with its interval.
    """

    label: str
    score: str
    against: str
    positives: int
    negatives: int
    auroc: Estimate


@dataclass(frozen=True, eq=False)
class Strip:
    """The units of a layer in order of relevance to one output.

    Attributes:
        tap: of the layer.
        depth: its position among those that are read.
        order: which relevance.
        units: positions among the units that were read, the most relevant first.
        relevance: of each.
        agreement: rank correlation of both orders in this layer.
        activations: float32 (units, images and gaps), standardised; images by class, a column of NaN between two.
    """

    tap: str
    depth: int
    order: str
    units: Sequence[int]
    relevance: Sequence[float]
    agreement: float
    activations: Tensor


@dataclass(frozen=True, eq=False)
class Introspection:
    """Everything that was measured.

    Attributes:
        taps: names of those that were read, in execution order.
        classes: their names.
        labels: int64 (n,), of the evaluate images.
        predictions: int64 (n,).
        errors: do they lie in the fringe?
        maps: by encoder, also of the untrained network, float32 (n, at most 3).
        purities: of all spaces.
        paths: through the maps.
        crossings: by perturbation and scoring code.
        missed: by code and set of images.
        told: by perturbation, score and other images.
        orders: of units, by network.
        output: to which the drawn units are relevant.
        blocks: classes whose images the drawn units show, in order.
        strips: layers with their units in order.
        no_untrained: why there is no untrained network; empty where there is one.
    """

    taps: Sequence[str]
    classes: Sequence[str]
    labels: Tensor
    predictions: Tensor
    errors: Errors
    maps: Mapping[str, Tensor]
    purities: Sequence[Purity]
    paths: Sequence[Path]
    crossings: Sequence[Crossing]
    missed: Sequence[Missed]
    told: Sequence[Told]
    orders: Mapping[str, Orders]
    output: int
    blocks: Sequence[int]
    strips: Sequence[Strip]
    no_untrained: str
