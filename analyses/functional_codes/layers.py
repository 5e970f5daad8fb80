"""One layer, coded: its prototypes, which unit each image lies on, and what those units say about the class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ...detectors.codes.codebook import Codebook, quantisation_error
from ...detectors.codes.kmeans import fit_kmeans
from ...detectors.codes.latent import Standardiser, fit_standardiser
from ...detectors.codes.som import SOM, fit_som, topographic_error
from ...harness.statistics.intervals import proportion
from ..common.inputs import AnalysisInput
from .measured import CodedLayer, Telescope
from .measures import (
    class_counts,
    class_distances,
    columns,
    components_for,
    entropy,
    gaussian_like,
    highest_information,
    majority_classes,
    mean_cosine,
    mutual_information,
    over_images,
    participation_ratio,
    relative_error,
    variance_share,
)

Network = Literal["trained", "untrained"]
Coder = Literal["som", "kmeans"]


@dataclass(frozen=True, eq=False)
class Sizes:
    """How the maps are made and checked.

    Attributes:
        rows: of a map.
        columns: of a map.
        epochs: passes of the batch update.
        permutations: shuffles of the labels.
    """

    rows: int
    columns: int
    epochs: int
    permutations: int


@dataclass(frozen=True, eq=False)
class Classes:
    """What is known of the fit and held-out images.

    Attributes:
        count: how many classes there are.
        fit_labels: int64 (n,).
        held_labels: int64 (m,).
        held_predictions: of the trained network, int64 (m,).
    """

    count: int
    fit_labels: Tensor
    held_labels: Tensor
    held_predictions: Tensor


@dataclass(frozen=True, eq=False)
class Layer:
    """A coded layer.

    Attributes:
        tap: its name.
        depth: 1 for the first that is read.
        network: trained or untrained.
        coder: map or k-means.
        standardiser: of the pooled activations, from fit images.
        book: the prototypes, in standardised units; a :class:`SOM` for a map.
        fit_units: of the fit images, int64 (n,).
        fit_errors: their distances to them, float32 (n,).
        held_units: of the held-out images, int64 (m,).
        counts: fit images by class and unit.
        majority: the majority class of each unit, learnt on fit images.
        numbers: by column of the table.
    """

    tap: str
    depth: int
    network: Network
    coder: Coder
    standardiser: Standardiser
    book: Codebook
    fit_units: Tensor
    fit_errors: Tensor
    held_units: Tensor
    counts: Tensor
    majority: Tensor
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def som(self) -> SOM:
        """The prototypes as a map."""
        if not isinstance(self.book, SOM):
            raise TypeError("centroids of k-means lie on no map")
        return self.book

    def match(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Units and distances of pooled activations (n, maps), on the CPU."""
        device = self.book.prototypes.device
        units, errors = self.book.match(self.standardiser.apply(pooled).to(device))
        return units.cpu(), errors.cpu()

    def record(self) -> CodedLayer:
        """What is kept of it."""
        return CodedLayer(
            self.tap, self.depth, self.network, self.coder, self.book.units, self.held_units, self.counts,
            self.majority, self.numbers,
        )  # fmt: skip


def code_layer(
    given: AnalysisInput,
    place: tuple[str, int, Network],
    pooled: tuple[Tensor, Tensor],
    classes: Classes,
    sizes: Sizes,
) -> tuple[list[Layer], Telescope]:
    """Fit the map of one layer, and as many centroids where the network is trained, and measure them.

    Args:
        given: whose device fits the map and whose seed draws.
        place: tap, depth and network.
        pooled: activations of fit and held-out images, float32 (n, maps) and (m, maps).
        classes: of those images.
        sizes: of the map.

    Returns:
        the layers, the map first, and how wide their cloud is.
    """
    tap, depth, network = place
    standardiser = fit_standardiser([pooled[0]])
    fit, held = (standardiser.apply(x).to(given.device) for x in pooled)
    books: list[tuple[Coder, Codebook]] = [("som", _fit_map(fit, sizes))]
    if network == "trained":
        draws = given.draws("kmeans", tap)
        books.append(("kmeans", fit_kmeans(fit, sizes.rows * sizes.columns, draws)))
    layers = []
    for coder, book in books:
        fit_units, fit_errors = (x.cpu() for x in book.match(fit))
        held_units = book.match(held)[0].cpu()
        counts = class_counts(fit_units, classes.fit_labels, (classes.count, book.units))
        layer = Layer(
            tap, depth, network, coder, standardiser, book, fit_units, fit_errors, held_units, counts,
            majority_classes(counts, book.prototypes),
        )  # fmt: skip
        layer.numbers.update(_errors(layer, fit, held), **_codes(layer), **_meaning(layer, classes))
        layer.numbers.update(_shuffled(layer, classes, given.draws("shuffle", tap, network, coder), sizes))
        layers.append(layer)
    if len(layers) > 1:
        layers[0].numbers.update(_paired(layers[0], layers[1], classes))
    layers[0].numbers["relative_error_gaussian"] = _gaussian(fit, len(held), given.draws("gaussian", *place), sizes)
    return layers, _telescope(layers[0], pooled[0])


def label_information(given: AnalysisInput, pooled: tuple[Tensor, Tensor], classes: Classes, sizes: Sizes) -> float:
    """Adjusted mutual information of the held-out images' units with their labels, for a map fitted like a layer's."""
    standardiser = fit_standardiser([pooled[0]])
    fit, held = (standardiser.apply(x).to(given.device) for x in pooled)
    units = _fit_map(fit, sizes).match(held)[0].cpu()
    return mutual_information(units, classes.held_labels)


def _fit_map(fit: Tensor, sizes: Sizes) -> SOM:
    """Fit a map whose units stand for the samples around them, since errors are compared with those of centroids.

    A larger last radius would pull the units of a small map to its middle.
    """
    return fit_som(fit, sizes.rows, sizes.columns, sizes.epochs, last_radius=0.5, repairs=0)


def _errors(layer: Layer, fit: Tensor, held: Tensor) -> dict[str, float]:
    centre = fit.mean(0)
    found = {
        "quantisation_error_fit": quantisation_error(layer.book, fit),
        "quantisation_error": quantisation_error(layer.book, held),
        "relative_error_fit": relative_error(layer.book, fit, centre),
        "relative_error": relative_error(layer.book, held, centre),
    }
    if isinstance(layer.book, SOM):
        found["topographic_error_fit"] = topographic_error(layer.book, fit)
        found["topographic_error"] = topographic_error(layer.book, held)
    return found


def _gaussian(fit: Tensor, held: int, draws: torch.Generator, sizes: Sizes) -> float:
    cloud = gaussian_like(fit, len(fit) + held, draws)
    book = _fit_map(cloud[: len(fit)], sizes)
    return relative_error(book, cloud[len(fit) :], cloud[: len(fit)].mean(0))


def _codes(layer: Layer) -> dict[str, float]:
    sizes = layer.counts.sum(0)
    bits = entropy(sizes)
    return {
        "occupied_fit": int((sizes > 0).sum()),
        "occupied": int(layer.held_units.unique().numel()),
        "entropy_bits": bits,
        "effective_codes": 2**bits,
    }


def _meaning(layer: Layer, classes: Classes) -> dict[str, float]:
    units = layer.held_units
    found: dict[str, float] = {}

    def shared(with_what: Tensor) -> Callable[[Tensor], float]:
        return lambda kept: mutual_information(units[kept], with_what[kept])

    hits = layer.majority[units] == classes.held_labels
    found |= columns("accuracy", proportion(int(hits.sum()), len(hits)))
    found |= columns("ami_label", over_images(shared(classes.held_labels), len(units)))
    found |= columns("ami_prediction", over_images(shared(classes.held_predictions), len(units)))
    found["ami_label_highest_possible"] = highest_information(units, classes.held_labels)
    if isinstance(layer.book, SOM):
        steps = class_distances(layer.book, units, classes.held_labels)
        found.update(zip(("same_class_steps", "other_class_steps"), steps, strict=True))
    return found


def _paired(ours: Layer, theirs: Layer, classes: Classes) -> dict[str, float]:
    """What the map's units say about the label beyond those of k-means, on the same images."""

    def difference(kept: Tensor) -> float:
        labels = classes.held_labels[kept]
        return mutual_information(ours.held_units[kept], labels) - mutual_information(theirs.held_units[kept], labels)

    return columns("ami_above_kmeans", over_images(difference, len(classes.held_labels)))


def _shuffled(layer: Layer, classes: Classes, draws: torch.Generator, sizes: Sizes) -> dict[str, float]:
    labels = classes.held_labels
    found = [
        mutual_information(layer.held_units, labels[torch.randperm(len(labels), generator=draws)])
        for _ in range(sizes.permutations)
    ]
    return {"ami_shuffled": sum(found) / len(found), "ami_shuffled_highest": max(found)}


def _telescope(layer: Layer, pooled: Tensor) -> Telescope:
    """How wide the layer's cloud is, in its own units: standardising would make every map count the same."""
    ratio = over_images(lambda kept: participation_ratio(pooled[kept]), len(pooled))
    scale = layer.standardiser.scale
    spread = torch.where(scale > 0, 1 / scale.clamp(min=1e-30), 0.0)
    prototypes = layer.book.prototypes.cpu()[layer.counts.sum(0) > 0] * spread + layer.standardiser.mean
    numbers = {
        "width": pooled.shape[1],
        **columns("participation_ratio", ratio),
        "components_for_90_percent": components_for(pooled, 0.9),
        "prototype_cosine": mean_cosine(prototypes),
    }
    return Telescope(layer.tap, layer.depth, layer.network, numbers)


def add_pixel_share(layers: list[Layer], pixels: Tensor) -> None:
    """How much of the variance of the fit images' pixels (n, p) lies between each layer's units."""
    for layer in layers:
        layer.numbers["pixel_share"] = variance_share(pixels, layer.fit_units, layer.book.units)
