"""Functional codes: each layer's patterns mapped to the units of a self-organising map (Lee and Vijayan 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from ...detectors.base.parameters import check_layers, selection
from ...harness.core.errors import UsageError
from ...harness.core.ranges import Count
from ...harness.tracing.traced_model import TracedModel
from ...harness.tracing.traces import Need, Statistic, Traces
from ..base import Analysis, AnalysisInfo
from ..common.inputs import AnalysisInput, ImageSet
from ..common.recording import BATCH, spread
from ..findings import Findings
from .attacked import groups_of, land
from .layers import Classes, Layer, Network, Sizes, add_pixel_share, code_layer, label_information
from .measured import PERTURBED, Codes, Landing, PicturedMap, Telescope
from .measures import neighbour_distances
from .pictures import unit_fields, unit_images
from .report.figures import figures
from .report.tables import tables
from .report.text import claims

# Pixels beyond which images are averaged before their variance is taken.
_SIDE = 32
# Fewer successes say nothing about shares.
_LEAST = 5


class FunctionalCodes(Analysis[Codes]):
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
        perturbed_images: successes that are read at most of each perturbation.
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
        rows: Count = 8,
        columns: Count = 8,
        epochs: Count = 20,
        images: Annotated[int, Ge(20)] = 4000,
        perturbed_images: Count = 2000,
        permutations: Count = 20,
        untrained_draws: Count = 3,
        pictured_taps: Count = 3,
        pictured_units: Count = 6,
        nearest: Count = 6,
    ) -> None:
        if rows * columns < 2:
            raise UsageError("rows = 1 and columns = 1 give a map of one unit: raise one of them.")
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

    def measure(self, given: AnalysisInput) -> Codes:
        """Code every layer, measure the codes, and follow perturbed images through them.

        Raises:
            UsageError: with fewer than 20 fit or held-out images.
        """
        fit, held = given.fit.traces[: self.images], given.evaluate.traces[: self.images]
        if min(len(fit), len(held)) < 20:
            raise UsageError(
                f"functional_codes was given {len(fit)} fit and {len(held)} evaluate images and needs at least 20 of "
                "each: raise data.fit or data.evaluate."
            )
        classes = Classes(len(given.classes), fit.labels.long(), held.labels.long(), held.predictions)
        layers, telescope = self._coded(given, (fit, held), classes, "trained", 0.0)
        untrained, reason = given.untrained_or_reason()
        fresh: list[Layer] = []
        draws: list[tuple[int, str, int, float]] = []
        if untrained is not None:
            traces = self._traces(given, untrained, classes)
            fresh, more = self._coded(given, traces, classes, "untrained", 0.5)
            telescope += more
            draws = [(0, x.tap, x.depth, x.numbers["ami_label"]) for x in fresh if x.coder == "som"]
            draws += self._other_draws(given, classes)
        pixels = self._pixels(given.fit, len(fit))
        add_pixel_share([*layers, *fresh], pixels)
        maps = [layer for layer in layers if layer.coder == "som"]
        given.progress(0.8)
        landings = self._landings(given, maps)
        given.progress(0.9)
        shown = [maps[i] for i in spread(len(maps), self.pictured_taps)]
        drawn = [*shown, *(layer for layer in fresh if layer.tap == shown[-1].tap)]
        fields = [
            unit_fields(layer, self.needs, given.traced_model, given.fit, self.pictured_units, self.nearest)
            for layer in shown
        ]
        return Codes(
            given.classes,
            len(held),
            float((held.predictions == classes.held_labels).double().mean()),
            float(torch.bincount(classes.held_labels).max()) / len(held),
            [layer.record() for layer in (*layers, *fresh)],
            telescope,
            draws,
            reason,
            landings,
            [PicturedMap(x.tap, x.book.prototypes.cpu(), neighbour_distances(x.som)) for x in shown],
            [unit_images(layer, given.fit, self.pictured_units, self.nearest) for layer in drawn],
            [found for found in fields if found is not None],
        )

    def report(self, measured: Codes) -> Findings:
        """What units say, how finite and how wide codes are, and where attacks land."""
        maps = measured.of("trained")
        arrays = {
            "evaluate_units": torch.stack([layer.held_units for layer in maps], 1),
            "majority_classes": torch.stack([layer.majority for layer in maps]),
            **{f"prototypes/{one.tap}": one.prototypes for one in measured.maps},
        }
        return Findings(claims(measured), figures(measured), tables(measured), arrays)

    def _coded(
        self, given: AnalysisInput, traces: tuple[Traces, Traces], classes: Classes, network: Network, start: float
    ) -> tuple[list[Layer], list[Telescope]]:
        """The layers of a network, from its traces of fit and held-out images."""
        layers, widths = [], []
        taps = traces[0].tap_names()
        for depth, tap in enumerate(taps, 1):
            pooled = [torch.cat([b.pooled(tap) for b in part.batches(BATCH)]) for part in traces]
            found, width = code_layer(given, (tap, depth, network), (pooled[0], pooled[1]), classes, self.sizes)
            layers += found
            widths.append(width)
            given.progress(start + (0.4 if network == "trained" else 0.2) * depth / len(taps))
        return layers, widths

    def _other_draws(self, given: AnalysisInput, classes: Classes) -> list[tuple[int, str, int, float]]:
        """What the units of further draws of the untrained network say about the label, by draw and tap."""
        rows = []
        for draw in range(1, self.untrained_draws):
            fit, held = self._traces(given, given.untrained(draw), classes)
            for depth, tap in enumerate(fit.tap_names(), 1):
                told = label_information(given, (fit.pooled(tap), held.pooled(tap)), classes, self.sizes)
                rows.append((draw, tap, depth, told))
            given.progress(0.7 + 0.1 * draw / self.untrained_draws)
        return rows

    def _traces(self, given: AnalysisInput, network: TracedModel, classes: Classes) -> tuple[Traces, Traces]:
        """What another network makes of the fit and held-out images."""
        fit, held = torch.arange(len(classes.fit_labels)), torch.arange(len(classes.held_labels))
        return (
            given.codes(network, given.fit, fit, self.needs), given.codes(network, given.evaluate, held, self.needs)
        )  # fmt: skip

    def _pixels(self, images: ImageSet, count: int) -> Tensor:
        """The first ``count`` images as rows, averaged to at most 32 by 32 pixels."""
        parts = []
        for start in range(0, count, BATCH):
            here = images.read(slice(start, min(start + BATCH, count)))
            size = (min(_SIDE, here.shape[2]), min(_SIDE, here.shape[3]))
            parts.append(torch.nn.functional.adaptive_avg_pool2d(here, size).flatten(1))
        return torch.cat(parts)

    def _landings(self, given: AnalysisInput, maps: Sequence[Layer]) -> dict[str, list[Landing]]:
        """By perturbation that fools the model on enough images, at every tap."""
        found = {}
        for label, one in given.perturbed.items():
            groups = groups_of(given, one, self.perturbed_images)
            if len(groups[PERTURBED]) >= _LEAST:
                found[label] = [land(layer, groups) for layer in maps]
        return found
