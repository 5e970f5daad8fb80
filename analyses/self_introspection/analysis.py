"""Self-introspection: one latent code of all hidden activations as a map, and the units ordered by relevance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from ...detectors.activations.latent import Latent
from ...detectors.base.parameters import check_layers, selection
from ...harness.core.errors import UsageError
from ...harness.core.ranges import Count
from ...harness.core.seeds import derive_seed
from ...harness.tracing.traced_model import TracedModel
from ...harness.tracing.traces import Need, Traces
from ..base import Analysis, AnalysisInfo
from ..common.inputs import AnalysisInput, ImageSet
from ..common.recording import read_images
from ..findings import Findings
from .fringe import error_scores, errors
from .latent_map import Code, EncoderName, activations, fit_code
from .measured import Introspection, Purity
from .reconstruction import compare_reconstructions
from .relevance import Evidence, attribute, compare_orders
from .report.figures import figures
from .report.tables import tables
from .report.text import claims
from .strips import rearrange
from .tracks import cross, follow, path_of, pick, purities_of

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

    traced_model: TracedModel
    traces: Traces
    raw: Tensor
    maps: dict[str, Code]


class SelfIntrospection(Analysis[Introspection]):
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
        units: Count = 256,
        latent: Count = 16,
        hidden: tuple[Count, ...] = (512, 128),
        epochs: Count = 15,
        fit_images: Annotated[int, Ge(2)] = 4000,
        images: Annotated[int, Ge(3)] = 1000,
        neighbours: Count = 10,
        steps: Annotated[int, Ge(2)] = 11,
        tracked: Count = 50,
        drawn: Count = 3,
        shown: Count = 3,
        pictured: Count = 3,
    ) -> None:
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

    def measure(self, given: AnalysisInput) -> Introspection:
        """Fit the codes, then measure map, tracks, fringe and relevance.

        Raises:
            UsageError: for fewer than two fit or three evaluate images.
        """
        fit, evaluate = given.fit.traces[: self.fit_images], given.evaluate.traces[: self.images]
        if len(fit) < 2 or len(evaluate) < 3:
            raise UsageError(
                f"self_introspection was given {len(fit)} fit and {len(evaluate)} evaluate images and needs at least "
                "2 and 3: raise data.fit and data.evaluate."
            )
        done = _Progress(given.progress, 8)
        trained = self._network(given, given.traced_model, fit, evaluate, "trained")
        done()
        scoring: dict[str, Code] = {name: self._fit(given, fit, name, self.latent, "scores") for name in ENCODERS}
        done()
        network, reason = given.untrained_or_reason()
        untrained = None
        if network is not None:
            fit, evaluate = (
                self._traces(given, network, s, n) for s, n in ((given.fit, len(fit)), (given.evaluate, len(evaluate)))
            )
            untrained = self._network(given, network, fit, evaluate, "untrained")
        done()
        perturbed = pick(given.perturbed, len(trained.traces), self.tracked)
        named = {f"{name} scores": code for name, code in scoring.items()}
        paths = follow(self.needs, given, trained.maps | named, perturbed, self.steps)
        done()
        labels, predictions = trained.traces.labels, trained.traces.predictions
        wrong = predictions != labels
        scores = error_scores(trained.traces, trained.raw, scoring, self.neighbours)
        found = errors(scores, wrong, derive_seed(given.seed, "fringe"))
        done()
        images = read_images(given.evaluate.read, len(given.evaluate), torch.arange(len(labels)))
        maps, purities = self._map(given, trained, scoring, untrained, images)
        seed = derive_seed(given.seed, "tracks")
        crossings = [cross(path, name, code, seed) for path in paths for name, code in scoring.items()]
        missed, told = compare_reconstructions(given.perturbed, trained.traces, trained.raw, scoring)
        done()
        evidence, orders = {}, {}
        for name, one in {"trained": trained, "untrained": untrained}.items():
            if one is not None:
                evidence[name] = self._evidence(one, images)
                orders[name] = compare_orders(evidence[name], given.draws("relevance", name))
            done()
        taps = trained.traces.tap_names()
        output, blocks, strips = rearrange(taps, labels, len(given.classes), evidence["trained"], self.pictured)
        return Introspection(
            taps, given.classes, labels, predictions, found, maps, purities,
            [path_of(path, list(trained.maps)) for path in paths], crossings, missed, told, orders, output, blocks,
            strips, reason,
        )  # fmt: skip

    def report(self, measured: Introspection) -> Findings:
        """Errors, the map with its tracks, reconstructions and relevance."""
        trained = measured.orders["trained"]
        arrays = {f"map/{name}": points for name, points in measured.maps.items()}
        arrays |= {
            "relevance/correlation": trained.correlation,
            "relevance/gradient_x_activation": trained.attribution,
        }
        return Findings(
            claims(measured, self.shown), figures(measured, self.shown, self.drawn), tables(measured), arrays
        )  # fmt: skip

    def _fit(self, given: AnalysisInput, fit: Traces, encoder: EncoderName, size: int, purpose: str) -> Code:
        detector = Latent(
            encoder, self.layers, size, self.units, self.hidden, self.epochs, self.neighbours, component="fringe"
        )
        return fit_code(detector, fit, given.draws(purpose, encoder))

    def _network(self, given: AnalysisInput, network: TracedModel, fit: Traces, evaluate: Traces, name: str) -> Network:
        maps: dict[str, Code] = {encoder: self._fit(given, fit, encoder, MAP_SIZE, name) for encoder in ENCODERS}
        return Network(network, evaluate, activations(evaluate), maps)

    def _traces(self, given: AnalysisInput, network: TracedModel, images: ImageSet, count: int) -> Traces:
        """Traces of the first images in another network, with their labels."""
        found = given.codes(network, images, torch.arange(count), self.needs)
        return replace(found, label_rows=images.traces[:count].labels)

    def _map(
        self, given: AnalysisInput, trained: Network, scoring: dict[str, Code], untrained: Network | None,
        images: Tensor,
    ) -> tuple[dict[str, Tensor], list[Purity]]:  # fmt: skip
        """The maps, and how pure classes are in them and in other spaces."""
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
        spaces["the images' pixels"] = images.flatten(1)
        seed = derive_seed(given.seed, "purity")
        return maps, purities_of(spaces, trained.traces.labels, self.neighbours, seed)

    def _evidence(self, network: Network, images: Tensor) -> Evidence:
        traces = network.traces
        chosen = [tap for tap in traces.taps if tap.name in traces.tap_names()]
        attributions = attribute(network.traced_model, chosen, self.units, images)
        units = [traces.units(tap.name, "full") for tap in chosen]
        return Evidence(network.raw, traces.logits, attributions, units, [tap.units for tap in chosen])


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
