"""At which depth a perturbed image leaves its class, and the way of single images through the layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ...detectors.base.parameters import check_choice, check_count, check_layers, selection
from ...harness.core.errors import UsageError
from ...harness.statistics.intervals import proportion
from ...harness.tracing.traced_model import Instruments
from ...harness.tracing.traces import Need, Traces, select_taps
from .. import Analysis, AnalysisInfo, AnalysisInput, Findings, ImageSet, PerturbedSet
from .events import Interval
from .examples import examples
from .probes import Kind, TapReader, fit_reader, pooled, spread
from .report.figures import figures
from .report.tables import arrays, tables
from .report.text import sentences
from .study import Crowd, Study, crowds

# Bytes of the untrained network's codes that are held at once.
_MEMORY = 1 << 28
_BATCH = 256


class Departure(Analysis):
    """At which depth does a perturbed image leave its class, at which does it arrive at the other one?

    At each tap a reader, fitted on pooled means of clean images that the model gets right, says which class a code
    is read as. A tap whose reader is no better than chance on held-out images says nothing and is left out; an image
    is judged only at taps that read its clean code as its true class. There,

    - its first change is the first tap that reads the perturbed code as another class;
    - it has departed for good at the first tap from which on no tap reads it as its class;
    - it has arrived at the first tap from which on every tap reads it as the class that the network predicts.

    Beside the successes of each perturbation: its failures, noise of the same norm (which left the prediction as it
    was), and clean images of the class that was reached. The readers themselves are compared with readers of the same
    architecture untrained.

    Cost: O(taps (fit + perturbed images) maps classes) for centroids, a forward pass of the fit and evaluate images
    through the untrained twin; memory: the pooled means of one tap, and 256 MiB.

    Args:
        reader: ``centroid`` (nearest class centroid of standardised pooled means), ``neighbours`` (majority of the
            nearest fit images) or ``linear`` (logistic regression).
        images: evaluate images, at most; the first ones.
        fit: clean images that the readers are fitted on, at most.
        layers: taps to study: ``all``, ``last:N``, ``first:N``, or names.
        taps: how many of them, at most, evenly spread.
        neighbours: how many fit images vote under ``neighbours``.
        perturbations: labels of those to study; ``None`` for all that were not made against one detector.
        examples: single images that are shown of each perturbation, from the earliest to the latest departure.
        indices: positions among the evaluate images of those to show instead.
    """

    info = AnalysisInfo(
        title="Depth of departure",
        paper="Readers of single layers as in Alain, Bengio (2016), Understanding intermediate layers using linear "
        "classifier probes, arXiv:1610.01644, and Papernot, McDaniel (2018), Deep k-Nearest Neighbors, "
        "arXiv:1803.04765",
        summary="The tap at which a perturbed image leaves its class and the one at which it arrives at another, "
        "beside noise of the same size.",
    )
    reads_perturbed = True

    def __init__(
        self,
        reader: Kind = "centroid",
        images: int = 500,
        fit: int = 4000,
        layers: str | list[str] = "all",
        taps: int = 32,
        neighbours: int = 10,
        perturbations: list[str] | None = None,
        examples: int = 3,
        indices: list[int] | None = None,
    ) -> None:
        check_choice("reader", reader, Kind)
        check_count("images", images)
        check_count("fit", fit, 2)
        check_count("taps", taps)
        check_count("neighbours", neighbours)
        check_count("examples", examples, 0)
        for index in indices or []:
            check_count("indices", index, 0)
        self.reader: Kind = reader
        self.images, self.fit, self.taps, self.neighbours = images, fit, taps, neighbours
        self.layers = check_layers(layers)
        self.perturbations = None if perturbations is None else list(perturbations)
        self.examples, self.indices = examples, None if indices is None else list(dict.fromkeys(indices))

    @property
    def needs(self) -> tuple[Need, ...]:
        """Pooled means of the chosen taps."""
        return (Need("pooled", selection(self.layers)),)

    def study(self, material: AnalysisInput) -> Findings:
        """Fit readers, read every image at every tap, and tell when each left.

        Raises:
            UsageError: without perturbations, without two classes among the fit images that the model gets right,
                for a label that is not there, and for ``indices`` beyond the evaluate images.
        """
        chosen = self._chosen(material)
        images = min(self.images, len(material.evaluate))
        self._check_indices(images)
        fit = _right(material.fit.traces)[: self.fit]
        checked = _right(material.evaluate.traces[:images])
        labels = material.fit.traces.labels[fit]
        if len(torch.unique(labels)) < 2 or not len(checked):
            raise UsageError(
                "departure reads classes from codes, and the model gets fit images of fewer than two classes or no "
                "evaluate image right: raise data.fit and data.evaluate, or train the model for longer."
            )
        traces = material.evaluate.traces
        every = [t.name for t in traces.taps]
        offered = traces.tap_names()
        taps = [offered[i] for i in spread(offered, self.taps)]
        truth = traces.labels[checked]
        chance = proportion(int(truth.bincount().max()), len(truth))[0]
        found = crowds(material, chosen, images)
        accuracy = {"trained": self._follow(material, taps, fit, labels, checked, images, found)}
        usable = np.array([low > chance for _, low, _ in accuracy["trained"]], dtype=np.bool_)
        for crowd in found.values():
            crowd.usable = usable
        reason = ""
        try:
            accuracy["untrained"] = self._untrained(material, material.untrained(), taps, fit, labels, checked)
        except UsageError as error:
            reason = str(error)
        study = Study(
            taps, [every.index(t) + 1 for t in taps], len(every), material.classes, self.reader, len(fit),
            len(checked), chance, accuracy, usable, found, {one.label: one.kind for one in chosen}, reason,
        )  # fmt: skip
        shown = examples(study, material, self.examples, self.indices)
        material.progress(1.0)
        words = list(sentences(study, shown, self.indices or []))
        return Findings(words, figures(study, shown), tables(study, shown), arrays(study))  # fmt: skip

    def _chosen(self, material: AnalysisInput) -> list[PerturbedSet]:
        there = material.perturbed
        wanted = list(there) if self.perturbations is None else self.perturbations
        unknown = [label for label in wanted if label not in there]
        if unknown or not wanted:
            raise UsageError(
                f"departure has no perturbation {', '.join(map(repr, unknown)) or 'to study'}; there are "
                f"{', '.join(there) or 'none: add [[perturbations]] to the suite'}."
            )
        return [there[label] for label in dict.fromkeys(wanted)]

    def _check_indices(self, images: int) -> None:
        beyond = [i for i in self.indices or [] if i >= images]
        if beyond:
            raise UsageError(
                f"indices = {self.indices!r}: there is no evaluate image {beyond[0]}; departure studies {images} of "
                "them, counted from 0 (images and data.evaluate raise that)."
            )

    def _follow(
        self, material: AnalysisInput, taps: Sequence[str], fit: Tensor, labels: Tensor, checked: Tensor, images: int,
        found: Mapping[tuple[str, str], Crowd],
    ) -> list[Interval]:  # fmt: skip
        """Read every crowd at every tap; the accuracy of the readers on held-out images."""
        everyone = torch.arange(images)
        truth = material.evaluate.traces.labels[checked]
        for crowd in found.values():
            shape = (len(crowd), len(taps))
            crowd.read, crowd.clean = np.empty(shape, np.int64), np.empty(shape, np.int64)
            crowd.margins, crowd.clean_margins = np.empty(shape, np.float32), np.empty(shape, np.float32)
        accuracy = []
        for t, tap in enumerate(taps):
            reader = fit_reader(self.reader, pooled(material.fit.traces, tap, fit), labels, self.neighbours)
            codes = pooled(material.evaluate.traces, tap, everyone)
            verdict = reader.read(codes)
            accuracy.append(proportion(int((verdict[checked] == truth).sum()), len(checked)))
            for crowd in found.values():
                if len(crowd):
                    _read(reader, crowd, t, tap, codes[crowd.rows], verdict[crowd.rows])
            material.progress(0.8 * (t + 1) / len(taps))
        return accuracy

    def _untrained(
        self,
        material: AnalysisInput,
        twin: Instruments,
        taps: Sequence[str],
        fit: Tensor,
        labels: Tensor,
        checked: Tensor,
    ) -> list[Interval]:
        """The accuracy of readers that are fitted on the same images' codes in an untrained network."""
        truth = material.evaluate.traces.labels[checked]
        found = []
        for names in _groups(material.evaluate.traces, taps, len(fit) + len(checked)):
            reading = _Reading((Need("pooled", tuple(names)),))
            seen = [
                _codes(twin, reading, names, images, rows)
                for images, rows in ((material.fit, fit), (material.evaluate, checked))
            ]
            for tap in names:
                reader = fit_reader(self.reader, seen[0][tap], labels, self.neighbours)
                found.append(proportion(int((reader.read(seen[1][tap]) == truth).sum()), len(checked)))
        return found


class _Reading:
    """Asks :meth:`Instruments.codes` for codes."""

    def __init__(self, needs: tuple[Need, ...]) -> None:
        self.needs = needs


def _right(traces: Traces) -> Tensor:
    return (traces.predictions == traces.labels).nonzero().squeeze(1)


def _read(reader: TapReader, crowd: Crowd, t: int, tap: str, clean: Tensor, verdict: Tensor) -> None:
    codes = pooled(crowd.images.traces, tap, crowd.where)
    crowd.read[:, t] = reader.read(codes).numpy()
    crowd.clean[:, t] = verdict.numpy()
    crowd.margins[:, t] = reader.margin(codes, crowd.own, crowd.reached).numpy()
    crowd.clean_margins[:, t] = reader.margin(clean, crowd.own, crowd.reached).numpy()


def _groups(traces: Traces, taps: Sequence[str], images: int) -> Iterator[list[str]]:
    """Taps whose pooled means are held at the same time."""
    group: list[str] = []
    held = 0
    for info in select_taps(list(taps), traces.taps):
        # As pooling does: (tokens, features) keeps features, anything else its first axis.
        maps = info.shape[-1] if len(info.shape) == 2 else info.shape[0] if info.shape else 1
        size = 4 * images * maps
        if group and held + size > _MEMORY:
            yield group
            group, held = [], 0
        group.append(info.name)
        held += size
    yield group


def _codes(
    twin: Instruments, reading: _Reading, taps: Sequence[str], images: ImageSet, rows: Tensor
) -> dict[str, Tensor]:
    """Pooled means of some images (ascending positions) by tap, from a forward pass."""
    parts: dict[str, list[Tensor]] = {tap: [] for tap in taps}
    for start in range(0, len(images), _BATCH):
        stop = min(start + _BATCH, len(images))
        inside = rows[(rows >= start) & (rows < stop)] - start
        if len(inside):
            traces = twin.codes(reading.needs, images.read(slice(start, stop))[inside])
            for tap in taps:
                parts[tap].append(traces.pooled(tap, "mean"))
    return {tap: torch.cat(found) for tap, found in parts.items()}
