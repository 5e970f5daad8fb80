"""Functional codes: each layer's patterns mapped to the units of a self-organising map (Lee and Vijayan 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...detectors.base.parameters import check_choice, check_count, check_layers, selection
from ...harness.core.errors import UsageError
from ...harness.tracing.traced_model import Instruments
from ...harness.tracing.traces import Need, Statistic
from ..base import Analysis, AnalysisInfo, AnalysisInput, ImageSet
from ..findings import Figure, Findings, Table, in_words
from .attacked import LANDING_COLUMNS, Landing, groups_of, land
from .layers import (
    LAYER_COLUMNS,
    TELESCOPE_COLUMNS,
    Classes,
    Layer,
    Network,
    Sizes,
    add_pixel_share,
    code_layer,
    label_information,
)
from .receptive_fields import field_pictures
from .report.figures import landing_figures, landing_maps, layer_figures, map_figures, unit_pictures
from .report.text import telling

_BATCH = 256
# Pixels beyond which images are averaged before their variance is taken.
_SIDE = 32
# Fewer turned predictions say nothing about shares.
_LEAST = 5

Row = list[str | float | None]


class FunctionalCodes(Analysis[Any]):
    """Whether a layer's activations fall into few patterns, what those say about the class, and where attacks land.

    At every tap the pooled activations of fit images are standardised and mapped to a self-organising map; an image's
    code is its best-matching unit. Measured on held-out images: quantisation and topographic error, how many codes are
    in use, the accuracy of the units' majority classes and the adjusted mutual information of unit and class; the
    participation ratio of the activations (the paper's telescope); and on whose units perturbed images land.

    Controls: the untrained network; as many centroids of k-means; a normal cloud of the same covariance; shuffled
    labels; noise of the same size as each successful perturbation; and the same images clean.

    Intervals are over held-out images, given the maps and the first draw of the untrained network's weights; how far
    other draws move that control is measured beside it.

    The paper gives neither the maps' sizes nor its statistic of a feature map: those here are ours. Fitting takes
    O(images · units · width · epochs) per tap.

    Args:
        layers: taps to read: ``all``, ``last:N``, ``first:N``, or names.
        statistic: what is kept of each feature map: its mean, maximum or standard deviation.
        rows: rows of each map.
        columns: columns of each map.
        epochs: passes of the map's batch update over the fit images.
        images: fit images and held-out images that are read at most, each.
        perturbed_images: turned predictions that are read at most of each perturbation.
        permutations: shuffles of the labels.
        untrained_draws: draws of the untrained network's weights; the first is measured like the trained one, of the
            others what their units say about the class.
        pictured_taps: how many taps' maps and units are drawn, evenly spaced from the first to the last.
        pictured_units: how many units of each.
        nearest: how many images of each unit.

    Raises:
        UsageError: for a parameter out of range.
    """

    info = AnalysisInfo(
        title="Functional codes",
        paper="Lee and Vijayan 2022, Analysis of functional neural codes of deep learning models, arXiv 2205.10952",
        summary="Self-organising maps of every layer: how finite its patterns are, what they say, where attacks land.",
    )
    reads_perturbed = True

    def __init__(
        self,
        layers: str | list[str] = "all",
        statistic: Statistic = "mean",
        rows: int = 8,
        columns: int = 8,
        epochs: int = 20,
        images: int = 4000,
        perturbed_images: int = 2000,
        permutations: int = 20,
        untrained_draws: int = 3,
        pictured_taps: int = 3,
        pictured_units: int = 6,
        nearest: int = 6,
    ) -> None:
        check_choice("statistic", statistic, Statistic)
        for name, value in (("rows", rows), ("columns", columns), ("epochs", epochs), ("nearest", nearest)):
            check_count(name, value)
        if rows * columns < 2:
            raise UsageError("rows = 1 and columns = 1 give a map of one unit: raise one of them.")
        check_count("images", images, 20)
        check_count("perturbed_images", perturbed_images)
        check_count("permutations", permutations)
        check_count("untrained_draws", untrained_draws)
        check_count("pictured_taps", pictured_taps)
        check_count("pictured_units", pictured_units)
        self.layers = check_layers(layers)
        self.statistic: Statistic = statistic
        self.sizes = Sizes(rows, columns, epochs, permutations)
        self.images = images
        self.perturbed_images = perturbed_images
        self.untrained_draws = untrained_draws
        self.pictured_taps = pictured_taps
        self.pictured_units = pictured_units
        self.nearest = nearest

    @property
    def needs(self) -> tuple[Need, ...]:
        """Pooled maps at ``layers``."""
        return (Need("pooled", selection(self.layers), self.statistic),)

    def study(self, material: AnalysisInput) -> Findings:
        """Code every layer, measure the codes, and follow perturbed images through them.

        Raises:
            UsageError: with fewer than 20 fit or held-out images.
        """
        fit, held = material.fit.traces[: self.images], material.evaluate.traces[: self.images]
        if min(len(fit), len(held)) < 20:
            raise UsageError(
                f"functional_codes was given {len(fit)} fit and {len(held)} evaluate images and needs at least 20 of "
                "each: raise data.fit or data.evaluate."
            )
        classes = Classes(len(material.classes), fit.labels.long(), held.labels.long(), held.predictions)
        layers, telescope = self._trained(material, classes)
        fresh, fresh_telescope, missing = self._untrained(material, classes)
        layers, telescope = layers + fresh, telescope + fresh_telescope
        draws: list[Row] = [[0, x.tap, x.depth, x.numbers["ami_label"]] for x in fresh if x.coder == "som"]
        draws += self._other_draws(material, classes) if fresh else []
        add_pixel_share(layers, self._pixels(material.fit, len(fit)))
        maps = [layer for layer in layers if layer.network == "trained" and layer.coder == "som"]
        material.progress(0.8)
        landings = self._landings(material, maps)
        material.progress(0.9)
        pictured = self._pictured(maps)
        rows = [layer.row() for layer in layers]
        figures, tables = self._report(material, classes, layers, landings, pictured, telescope, draws)
        return Findings(
            in_words([*telling(rows, telescope, landings, len(held), draws), *missing]), figures, tables,
            {
                "evaluate_units": torch.stack([layer.held_units for layer in maps], 1),
                "majority_classes": torch.stack([layer.majority for layer in maps]),
                **{f"prototypes/{layer.tap}": layer.book.prototypes.cpu() for layer in pictured},
            },
        )  # fmt: skip

    def _trained(self, material: AnalysisInput, classes: Classes) -> tuple[list[Layer], list[Row]]:
        fit, held = material.fit.traces[: self.images], material.evaluate.traces[: self.images]
        taps = held.tap_names()
        layers, rows = [], []
        for depth, tap in enumerate(taps, 1):
            pooled = (
                torch.cat([b.pooled(tap) for b in fit.batches(_BATCH)]),
                torch.cat([b.pooled(tap) for b in held.batches(_BATCH)]),
            )
            found, row = code_layer(material, (tap, depth, "trained"), pooled, classes, self.sizes)
            layers += found
            rows.append(row)
            material.progress(0.4 * depth / len(taps))
        return layers, rows

    def _untrained(self, material: AnalysisInput, classes: Classes) -> tuple[list[Layer], list[Row], list[str]]:
        """The maps of the untrained network, and a sentence where there is none."""
        try:
            instruments = material.untrained()
        except UsageError as error:
            return [], [], [f"There is no untrained network to compare with ({str(error).rstrip('.')})."]
        fit = self._codes(instruments, material.fit, len(classes.fit_labels), material)
        held = self._codes(instruments, material.evaluate, len(classes.held_labels), material)
        network: Network = "untrained"
        layers, rows = [], []
        for depth, tap in enumerate(fit, 1):
            found, row = code_layer(material, (tap, depth, network), (fit[tap], held[tap]), classes, self.sizes)
            layers += found
            rows.append(row)
            material.progress(0.5 + 0.2 * depth / len(fit))
        return layers, rows, []

    def _other_draws(self, material: AnalysisInput, classes: Classes) -> list[Row]:
        """What the units of further draws of the untrained network say about the label, by draw and tap."""
        rows: list[Row] = []
        for draw in range(1, self.untrained_draws):
            instruments = material.untrained(draw)
            fit = self._codes(instruments, material.fit, len(classes.fit_labels), material)
            held = self._codes(instruments, material.evaluate, len(classes.held_labels), material)
            for depth, tap in enumerate(fit, 1):
                rows.append([draw, tap, depth, label_information(material, (fit[tap], held[tap]), classes, self.sizes)])
            material.progress(0.7 + 0.1 * draw / self.untrained_draws)
        return rows

    def _codes(
        self, instruments: Instruments, images: ImageSet, count: int, material: AnalysisInput
    ) -> Mapping[str, Tensor]:
        """Pooled activations of the first ``count`` images by tap."""
        parts: dict[str, list[Tensor]] = {}
        for start in range(0, count, _BATCH):
            seen = instruments.codes(
                self.needs, images.read(slice(start, min(start + _BATCH, count))).to(material.device)
            )
            for tap in seen.tap_names():
                parts.setdefault(tap, []).append(seen.pooled(tap))
        return {tap: torch.cat(found) for tap, found in parts.items()}

    def _pixels(self, images: ImageSet, count: int) -> Tensor:
        """The first ``count`` images as rows, averaged to at most 32 by 32 pixels."""
        parts = []
        for start in range(0, count, _BATCH):
            here = images.read(slice(start, min(start + _BATCH, count)))
            size = (min(_SIDE, here.shape[2]), min(_SIDE, here.shape[3]))
            parts.append(torch.nn.functional.adaptive_avg_pool2d(here, size).flatten(1))
        return torch.cat(parts)

    def _landings(self, material: AnalysisInput, maps: Sequence[Layer]) -> dict[str, list[Landing]]:
        """By perturbation that turned enough predictions, at every tap."""
        found = {}
        for label, perturbed in material.perturbed.items():
            groups = groups_of(material, perturbed, self.perturbed_images)
            if len(groups[0]) >= _LEAST:
                found[label] = [land(label, layer, groups) for layer in maps]
        return found

    def _pictured(self, maps: Sequence[Layer]) -> list[Layer]:
        count = min(self.pictured_taps, len(maps))
        if count == 1:
            return [maps[-1]]
        return [maps[round(i * (len(maps) - 1) / (count - 1))] for i in range(count)]

    def _report(
        self, material: AnalysisInput, classes: Classes, layers: Sequence[Layer], landings: Mapping[str, list[Landing]],
        pictured: Sequence[Layer], telescope: list[Row], draws: list[Row],
    ) -> tuple[list[Figure], list[Table]]:  # fmt: skip
        accuracy = float((classes.held_predictions == classes.held_labels).double().mean())
        common = float(torch.bincount(classes.held_labels).max()) / len(classes.held_labels)
        rows = [layer.row() for layer in layers]
        figures = layer_figures(rows, telescope, draws, accuracy, common)
        maps, tables = map_figures(pictured, material.classes)
        names = {layer.tap for layer in pictured}
        units: list[Row] = []
        for found in landings.values():
            figures += landing_figures(found)
            drawn, shares = landing_maps([landing for landing in found if landing.layer.tap in names])
            figures.append(drawn)
            units += shares
        figures += maps
        fresh = [layer for layer in layers if layer.network == "untrained" and layer.tap == pictured[-1].tap]
        for layer in (*pictured, *fresh):
            shown = (self.pictured_units, self.nearest, material.classes)
            figures.append(unit_pictures(layer, material.fit, *shown))
            if layer.network == "trained":
                fields = field_pictures(layer, self, material.instruments, material.fit, *shown)
                figures += [fields] if fields is not None else []
        tables = [
            Table("functional-codes", "A coded layer of the trained or untrained network.", LAYER_COLUMNS, rows),
            Table("functional-codes-telescope", "A layer's cloud of activations.", TELESCOPE_COLUMNS, telescope),
            *tables,
        ]
        if draws:
            caption = "A layer of one draw of the untrained network's weights: what its units say about the label."
            tables.append(Table("functional-codes-untrained", caption, ("draw", "tap", "depth", "ami_label"), draws))
        if landings:
            landed = [row for found in landings.values() for landing in found for row in landing.rows()]
            columns = ("perturbation", "tap", "unit", "clean_share", "perturbed_share", "noise_share")
            tables += [
                Table("functional-codes-landing", "Images of a perturbation at a tap.", LANDING_COLUMNS, landed),
                Table("functional-codes-landing-units", "A unit and the images that land on it.", columns, units),
            ]
        return figures, tables
