"""Self-introspection: one latent code of all hidden activations as a map, and the units ordered by relevance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...detectors.activations.latent import Latent
from ...detectors.base.parameters import check_count, check_layers, selection
from ...harness.core.errors import UsageError
from ...harness.core.seeds import derive_seed
from ...harness.tracing.traced_model import Instruments
from ...harness.tracing.traces import Need, Traces
from .. import Analysis, AnalysisInfo, AnalysisInput, Findings
from ..findings import in_words
from .fringe import error_scores, merits
from .latent_map import Code, EncoderName, activations, fit_code, read_batches, retrace
from .relevance import Evidence, Orders, attribute, compare_orders
from .report.relevance import relevance_page
from .report.tables import Page, fringe_page, map_page, reconstruction_page, track_page
from .tracks import Paths, follow, pick, purities

MAP_SIZE = 3
ENCODERS: tuple[EncoderName, ...] = ("autoencoder", "pca")


@dataclass(frozen=True, eq=False)
class Network:
    """A network as the analysis sees it: its evaluate images' traces and activations, and its maps.

    Attributes:
        traces: of the evaluate images, with labels.
        raw: their activations, float32 (n, d).
        maps: three-dimensional codes by encoder.
    """

    instruments: Instruments
    traces: Traces
    raw: Tensor
    maps: dict[str, Code]


class SelfIntrospection(Analysis[Any]):
    """Encodes all hidden activations together and reads the code as a map (Pardo et al. 2019).

    The paper shows such a code of a network's "possible hidden activations", finds errors in its "fringe areas",
    re-arranges hidden units by their relevance to an output, and gives a frame for noise and attacks: damaged input,
    moved activations, wrong response. It states neither sizes nor scores; those here are ours, and each claim stands
    next to what could explain it away: principal components, an untrained network, max-softmax, noise of equal size.

    Cost: two autoencoders (three with the untrained network) of O(fit_images · units · taps · hidden · epochs), one
    backward pass for each image of ``images``, and ``steps`` forward passes for every tracked image and its noise.

    Args:
        layers: taps to read: ``all``, ``last:N``, ``first:N``, or names.
        units: units that are read of each tap, a seeded sample.
        latent: size of the code that scores are computed in; the map has three.
        hidden: sizes of the encoder's hidden layers.
        epochs: passes of the autoencoders over the fit images.
        fit_images: fit images that are read at most.
        images: evaluate images that are read at most.
        neighbours: how many count for the purity and for the fringe.
        steps: points of a track.
        tracked: images that are tracked for each perturbation.
        drawn: tracked images of each perturbation that the map shows.
        shown: perturbations in the figures, the first that succeed; tables have all.
        pictured: taps whose rearranged units are drawn.

    Raises:
        UsageError: for a parameter out of range.
    """

    info = AnalysisInfo(
        title="Self-introspection",
        paper="Pardo et al. 2019, Coloring the Black Box: Visualizing neural network behavior with a "
        "self-introspective model, arXiv 1910.04903",
        summary="One latent code of all hidden activations: a map with tracks of perturbations, errors in its fringe, "
        "and units by relevance.",
    )
    reads_perturbed = True

    def __init__(
        self,
        layers: str | list[str] = "all",
        units: int = 256,
        latent: int = 16,
        hidden: tuple[int, ...] = (512, 128),
        epochs: int = 15,
        fit_images: int = 4000,
        images: int = 1000,
        neighbours: int = 10,
        steps: int = 11,
        tracked: int = 50,
        drawn: int = 3,
        shown: int = 3,
        pictured: int = 3,
    ) -> None:
        # The detector checks what is its own.
        Latent(layers=layers, latent=latent, units=units, hidden=hidden, epochs=epochs, neighbours=neighbours)
        check_count("fit_images", fit_images, 2)
        check_count("images", images, 3)
        check_count("steps", steps, 2)
        for name, value in (("tracked", tracked), ("drawn", drawn), ("shown", shown), ("pictured", pictured)):
            check_count(name, value)
        self.layers = check_layers(layers)
        self.units = units
        self.latent = latent
        self.hidden = tuple(hidden)
        self.epochs = epochs
        self.fit_images = fit_images
        self.images = images
        self.neighbours = neighbours
        self.steps = steps
        self.tracked = tracked
        self.drawn = drawn
        self.shown = shown
        self.pictured = pictured

    @property
    def needs(self) -> tuple[Need, ...]:
        """At most ``units`` activations of each of ``layers``, and the pooled last tap as a control for the map."""
        return (Need("full", selection(self.layers), units=self.units), Need("pooled", "last:1"))

    def study(self, material: AnalysisInput) -> Findings:
        """Fit the codes, then measure map, tracks, fringe and relevance.

        Raises:
            UsageError: for fewer than two fit or three evaluate images.
        """
        fit, evaluate = material.fit.traces[: self.fit_images], material.evaluate.traces[: self.images]
        if len(fit) < 2 or len(evaluate) < 3:
            raise UsageError(
                f"self_introspection was given {len(fit)} fit and {len(evaluate)} evaluate images and needs at least "
                "2 and 3: raise data.fit and data.evaluate."
            )
        done = _Progress(material.progress, 9)
        trained = self._network(material, material.instruments, fit, evaluate, "trained", done)
        scoring: dict[str, Code] = {name: self._fit(material, fit, name, self.latent, "scores") for name in ENCODERS}
        done()
        untrained, reason = self._untrained(material, done)
        perturbed = pick(material.perturbed, len(evaluate), self.tracked)
        paths = follow(self, material, trained.maps | _named(scoring, "scores"), perturbed, self.steps)
        done()
        pages = [
            self._fringe(material, trained, scoring),
            self._map(material, trained, scoring, untrained, paths),
            track_page(paths, scoring, self.shown, derive_seed(material.seed, "tracks")),
            self._reconstruction(material, trained, scoring),
        ]
        done()
        pages.append(self._relevance(material, trained, untrained, done))
        sentences = [sentence for page in pages for sentence in page.sentences]
        return Findings(
            in_words([*sentences, *([f"There is no untrained network to compare with: {reason}"] if reason else [])]),
            [figure for page in pages for figure in page.figures],
            [table for page in pages for table in page.tables],
            {name: value for page in pages for name, value in page.arrays.items()},
        )

    def _fit(self, material: AnalysisInput, fit: Traces, encoder: EncoderName, size: int, purpose: str) -> Code:
        detector = Latent(
            encoder, self.layers, size, self.units, self.hidden, self.epochs, self.neighbours, component="fringe"
        )
        return fit_code(detector, fit, material.draws(purpose, encoder))

    def _network(
        self, material: AnalysisInput, instruments: Instruments, fit: Traces, evaluate: Traces, name: str,
        done: Callable[[], None],
    ) -> Network:  # fmt: skip
        maps: dict[str, Code] = {encoder: self._fit(material, fit, encoder, MAP_SIZE, name) for encoder in ENCODERS}
        done()
        return Network(instruments, evaluate, activations(evaluate), maps)

    def _untrained(self, material: AnalysisInput, done: Callable[[], None]) -> tuple[Network | None, str]:
        try:
            instruments = material.untrained()
        except UsageError as error:
            done()
            return None, str(error)
        fit = retrace(self, instruments, material.fit, min(self.fit_images, len(material.fit)))
        evaluate = retrace(self, instruments, material.evaluate, min(self.images, len(material.evaluate)))
        return self._network(material, instruments, fit, evaluate, "untrained", done), ""

    def _fringe(self, material: AnalysisInput, trained: Network, scoring: dict[str, Code]) -> Page:
        wrong = trained.traces.predictions != trained.traces.labels
        scores = error_scores(trained.traces, trained.raw, scoring, self.neighbours)
        found = merits(scores, wrong, "max-softmax", derive_seed(material.seed, "fringe"))
        return fringe_page(found, scores, wrong)

    def _map(
        self, material: AnalysisInput, trained: Network, scoring: dict[str, Code], untrained: Network | None,
        paths: Sequence[Paths],
    ) -> Page:  # fmt: skip
        labels = trained.traces.labels
        spaces = {f"{name}, 3 numbers": code.encode(trained.raw) for name, code in trained.maps.items()}
        maps = dict(spaces)
        spaces |= {f"{name}, {code.size} numbers": code.encode(trained.raw) for name, code in scoring.items()}
        if untrained is not None:
            before = {f"untrained network, {n}, 3 numbers": c.encode(untrained.raw) for n, c in untrained.maps.items()}
            maps |= before
            spaces |= before
        spaces |= _layers("", trained, next(iter(trained.maps.values())))
        if untrained is not None:
            spaces |= _layers("untrained network, ", untrained, next(iter(untrained.maps.values())))
        pixels = torch.cat([part.flatten(1) for part in read_batches(material.evaluate, len(labels))])
        spaces["the images' pixels"] = pixels
        found = purities(spaces, labels, self.neighbours, derive_seed(material.seed, "purity"))
        return map_page(maps, trained.traces, material.classes, found, paths, self.shown, self.drawn)

    def _reconstruction(self, material: AnalysisInput, trained: Network, scoring: dict[str, Code]) -> Page:
        return reconstruction_page(material.perturbed, trained.traces, trained.raw, scoring, self.shown)

    def _relevance(
        self, material: AnalysisInput, trained: Network, untrained: Network | None, done: Callable[[], None]
    ) -> Page:
        networks = {"trained": trained} if untrained is None else {"trained": trained, "untrained": untrained}
        orders: dict[str, tuple[Evidence, Orders]] = {}
        for name, network in networks.items():
            evidence = self._evidence(material, network)
            orders[name] = evidence, compare_orders(evidence, material.draws("relevance", name))
            done()
        names = trained.traces.tap_names()
        return relevance_page(names, trained.traces.labels, material.classes, orders, self.pictured)

    def _evidence(self, material: AnalysisInput, network: Network) -> Evidence:
        traces = network.traces
        chosen = [tap for tap in traces.taps if tap.name in traces.tap_names()]
        parts = [
            attribute(network.instruments, chosen, self.units, images)
            for images in read_batches(material.evaluate, len(traces))
        ]
        units = [traces.units(tap.name, "full") for tap in chosen]
        return Evidence(network.raw, traces.logits, torch.cat(parts), units, [tap.units for tap in chosen])


def _named(codes: dict[str, Code], suffix: str) -> dict[str, Code]:
    return {f"{name} {suffix}": code for name, code in codes.items()}


def _layers(prefix: str, network: Network, code: Code) -> dict[str, Tensor]:
    """The spaces that need no code: all activations, the last layer, and its pooled maps."""
    traces = network.traces
    last = traces.tap_names()[-1]
    return {
        f"{prefix}all activations, standardised": code.standardise(network.raw),
        f"{prefix}last tap read, {last}": traces.full(last),
        f"{prefix}last tap of the network, pooled": traces.pooled(traces.tap_names("last:1")[0]),
    }


class _Progress:
    """Counts steps of work that take about as long."""

    def __init__(self, tell: Callable[[float], None], steps: int) -> None:
        self._tell, self._steps, self._done = tell, steps, 0

    def __call__(self) -> None:
        self._done += 1
        self._tell(min(1.0, self._done / self._steps))
