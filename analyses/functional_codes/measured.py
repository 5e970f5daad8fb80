"""What :mod:`~aftershock.analyses.functional_codes` measures.

Coded layers, where perturbed images land, and what units stand for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..findings import Value

PERTURBED, NOISE, CLEAN = "perturbed", "noise", "clean"
Row = Sequence[Value]


@dataclass(frozen=True, eq=False)
class CodedLayer:
    """The units of one layer's map, or of as many centroids.

    Attributes:
        tap: its name.
        depth: 1 for the first that is read.
        network: ``trained`` or ``untrained``.
        coder: ``som`` or ``kmeans``.
        units: how many.
        held_units: of the held-out images, int64 (m,).
        counts: fit images by class and unit, int64 (classes, units).
        majority: int64 (units,), the majority class of each, learnt on fit images.
        numbers: by column of the table.
    """

    tap: str
    depth: int
    network: str
    coder: str
    units: int
    held_units: Tensor
    counts: Tensor
    majority: Tensor
    numbers: Mapping[str, float]

    @property
    def sizes(self) -> Tensor:
        """Fit images on each unit, int64 (units,)."""
        return self.counts.sum(0)


@dataclass(frozen=True, eq=False)
class Telescope:
    """How wide a layer's cloud of activations is.

    Attributes:
        tap: its name.
        depth: 1 for the first that is read.
        network: ``trained`` or ``untrained``.
        numbers: by column of the table.
    """

    tap: str
    depth: int
    network: str
    numbers: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Landing:
    """Where the images of one perturbation land at one tap.

    Attributes:
        perturbation: its label.
        tap: its name.
        depth: 1 for the first that is read.
        numbers: by name of the images (``perturbed``, ``noise``, ``clean``), by column of the table.
        shares: by name of the images, the share that lies on each unit, float32 (rows, columns) as the map lies.
    """

    perturbation: str
    tap: str
    depth: int
    numbers: Mapping[str, Mapping[str, float]]
    shares: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class PicturedMap:
    """A map that is drawn.

    Attributes:
        tap: of the trained network.
        prototypes: float32 (units, d), standardised.
        steps: float32 (rows, columns), mean distance of each prototype to those beside it.
    """

    tap: str
    prototypes: Tensor
    steps: Tensor


@dataclass(frozen=True, eq=False)
class UnitImages:
    """The most occupied units of a map in images, those with the most fit images first.

    Attributes:
        tap: its name.
        network: ``trained`` or ``untrained``.
        units: which ones.
        images: float32 (units, columns, channels, height, width): the mean of a unit's images, then those nearest to
            its prototype; NaN leaves a gap.
    """

    tap: str
    network: str
    units: Sequence[int]
    images: Tensor


@dataclass(frozen=True, eq=False)
class UnitFields:
    """What the strongest map of each of these units sees of its nearest images.

    Attributes:
        tap: of the trained network.
        units: which ones.
        maps: the map in which each unit's prototype lies highest.
        heights: how high, in standard deviations of fit images.
        images: float32 (units, nearest, channels, height, width); NaN leaves a gap.
    """

    tap: str
    units: Sequence[int]
    maps: Sequence[int]
    heights: Sequence[float]
    images: Tensor


@dataclass(frozen=True, eq=False)
class Codes:
    """Everything that was measured.

    Attributes:
        classes: their names.
        held: how many held-out images.
        accuracy: of the network on them.
        common: the share of the most frequent class among them.
        layers: by network, depth and coder.
        telescope: by network and depth.
        draws: number, tap, depth and information with the label, of each draw of the untrained network's weights.
        no_untrained: why there is no untrained network; empty where there is one.
        landings: by perturbation that fools the model on enough images, at every tap.
        maps: those that are drawn.
        features: images of units.
        fields: receptive fields of units.
    """

    classes: Sequence[str]
    held: int
    accuracy: float
    common: float
    layers: Sequence[CodedLayer]
    telescope: Sequence[Telescope]
    draws: Sequence[tuple[int, str, int, float]]
    no_untrained: str
    landings: Mapping[str, Sequence[Landing]]
    maps: Sequence[PicturedMap]
    features: Sequence[UnitImages]
    fields: Sequence[UnitFields]

    def of(self, network: str, coder: str = "som") -> list[CodedLayer]:
        """The layers of one network and coder, by depth."""
        return [layer for layer in self.layers if (layer.network, layer.coder) == (network, coder)]

    def map_of(self, tap: str, network: str = "trained") -> CodedLayer:
        """The map of one tap."""
        return next(layer for layer in self.of(network) if layer.tap == tap)

    def by_tap(self) -> dict[str, list[float]]:
        """The information of all draws of the untrained network, by tap in order of depth."""
        found: dict[str, list[float]] = {}
        for _, tap, _, value in self.draws:
            found.setdefault(tap, []).append(value)
        return found
