"""At which depth a perturbed image leaves its class, and the way of single images through the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from ...detectors.base.parameters import check_layers, selection
from ...harness.core.errors import UsageError
from ...harness.core.ranges import Count, Natural
from ...harness.statistics.intervals import Estimate, proportion
from ...harness.tracing.traced_model import TracedModel
from ...harness.tracing.traces import Need, Traces, select_taps
from ..base import Analysis, AnalysisInfo
from ..common.inputs import AnalysisInput, PerturbedSet
from ..common.populations import FAILED, Population, chosen_perturbations, controls, perturbed, target_class
from ..common.recording import pooled_rows, tap_groups
from ..findings import Findings
from .examples import Key, examples
from .measured import Departed, Followed, Reading
from .probes import Kind, fit_reader, spread
from .report.figures import figures
from .report.tables import arrays, tables
from .report.text import claims


class Departure(Analysis[Departed]):
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
    through the untrained network; memory: the pooled means of one tap, and 256 MiB.

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
        images: Count = 500,
        fit: Annotated[int, Ge(2)] = 4000,
        layers: str | list[str] = "all",
        taps: Count = 32,
        neighbours: Count = 10,
        perturbations: list[str] | None = None,
        examples: Natural = 3,
        indices: list[Natural] | None = None,
    ) -> None:
        self.reader: Kind = reader
        self.images, self.fit, self.taps, self.neighbours = images, fit, taps, neighbours
        self.layers = check_layers(layers)
        self.perturbations = None if perturbations is None else list(perturbations)
        self.examples, self.indices = examples, None if indices is None else list(dict.fromkeys(indices))

    @property
    def needs(self) -> tuple[Need, ...]:
        """Pooled means of the chosen taps."""
        return (Need("pooled", selection(self.layers)),)

    def measure(self, given: AnalysisInput) -> Departed:
        """Fit readers, read every image at every tap, and find when each left.

        Raises:
            UsageError: without perturbations, without two classes among the fit images that the model gets right,
                for a label that is not there, and for ``indices`` beyond the evaluate images.
        """
        chosen = chosen_perturbations(given, self.perturbations, "departure")
        images = min(self.images, len(given.evaluate))
        self._check_indices(images)
        fit = _right(given.fit.traces)[: self.fit]
        checked = _right(given.evaluate.traces[:images])
        labels = given.fit.traces.labels[fit]
        if len(torch.unique(labels)) < 2 or not len(checked):
            raise UsageError(
                "departure reads classes from codes, and the model gets fit images of fewer than two classes or no "
                "evaluate image right: raise data.fit and data.evaluate, or train the model for longer."
            )
        traces = given.evaluate.traces
        every = [t.name for t in traces.taps]
        offered = traces.tap_names()
        taps = [offered[i] for i in spread(offered, self.taps)]
        truth = traces.labels[checked]
        chance = proportion(int(truth.bincount().max()), len(truth)).value
        populations = _populations(given, chosen, images)
        accuracy, read = self._read(given, taps, fit, labels, checked, images, populations)
        usable = np.array([found.low > chance for found in accuracy], dtype=np.bool_)
        followed = {key: Followed(*key, p.rows, p.own, p.reached, read[key], usable) for key, p in populations.items()}
        untrained, reason = given.untrained_or_reason()
        accuracies = {"trained": accuracy}
        if untrained is not None:
            accuracies["untrained"] = self._untrained(given, untrained, taps, fit, labels, checked)
        shown = examples(given, populations, followed, self.examples, self.indices)
        given.progress(1.0)
        return Departed(
            taps, [every.index(t) + 1 for t in taps], len(every), given.classes, self.reader, len(fit), len(checked),
            chance, accuracies, usable, followed, {one.label: one.kind for one in chosen}, reason, shown,
            self.indices or [],
        )  # fmt: skip

    def report(self, measured: Departed) -> Findings:
        """Depths, their distributions, and the way of single images."""
        return Findings(claims(measured), figures(measured), tables(measured), arrays(measured))

    def _check_indices(self, images: int) -> None:
        beyond = [i for i in self.indices or [] if i >= images]
        if beyond:
            raise UsageError(
                f"indices = {self.indices!r}: there is no evaluate image {beyond[0]}; departure studies {images} of "
                "them, counted from 0 (images and data.evaluate raise that)."
            )

    def _read(
        self, given: AnalysisInput, taps: Sequence[str], fit: Tensor, labels: Tensor, checked: Tensor, images: int,
        populations: Mapping[Key, Population],
    ) -> tuple[list[Estimate], dict[Key, Reading]]:  # fmt: skip
        """Accuracy of the readers on held-out images, and what they say of every population at every tap."""
        everyone = torch.arange(images)
        truth = given.evaluate.traces.labels[checked]
        read = {key: Reading.of(len(p), len(taps)) for key, p in populations.items()}
        accuracy = []
        for t, tap in enumerate(taps):
            reader = fit_reader(self.reader, pooled_rows(given.fit.traces, tap, fit), labels, self.neighbours)
            codes = pooled_rows(given.evaluate.traces, tap, everyone)
            verdict = reader.read(codes)
            accuracy.append(proportion(int((verdict[checked] == truth).sum()), len(checked)))
            for key, p in populations.items():
                if len(p):
                    moved, one = pooled_rows(p.images.traces, tap, p.where), read[key]
                    one.read[:, t] = reader.read(moved).numpy()
                    one.clean[:, t] = verdict[p.rows].numpy()
                    one.margins[:, t] = reader.margin(moved, p.own, p.reached).numpy()
                    one.clean_margins[:, t] = reader.margin(codes[p.rows], p.own, p.reached).numpy()
            given.progress(0.8 * (t + 1) / len(taps))
        return accuracy, read

    def _untrained(
        self, given: AnalysisInput, untrained: TracedModel, taps: Sequence[str], fit: Tensor, labels: Tensor,
        checked: Tensor,
    ) -> list[Estimate]:  # fmt: skip
        """The accuracy of readers that are fitted on the same images' codes in an untrained network."""
        truth = given.evaluate.traces.labels[checked]
        found = []
        infos = select_taps(list(taps), given.evaluate.traces.taps)
        for names in tap_groups(infos, self.needs, len(fit) + len(checked)):
            need = (Need("pooled", names),)
            learned = given.codes(untrained, given.fit, fit, need)
            held = given.codes(untrained, given.evaluate, checked, need)
            for tap in names:
                reader = fit_reader(self.reader, learned.pooled(tap), labels, self.neighbours)
                found.append(proportion(int((reader.read(held.pooled(tap)) == truth).sum()), len(checked)))
        return found


def _right(traces: Traces) -> Tensor:
    return (traces.predictions == traces.labels).nonzero().squeeze(1)


def _populations(given: AnalysisInput, chosen: Sequence[PerturbedSet], images: int) -> dict[Key, Population]:
    """All populations of some perturbations of the first ``images`` evaluate images."""
    right = _right(given.evaluate.traces[:images])
    labels = given.evaluate.traces.labels[right]
    pools = {c: right[labels == c] for c in range(len(given.classes))}
    found = {}
    for one in chosen:
        kept = one.rows < images
        success = perturbed(one, (kept & one.success).nonzero().squeeze(1))
        for population in (
            success,
            perturbed(one, (kept & ~one.success).nonzero().squeeze(1), FAILED),
            controls(one, success),
            target_class(given, success, pools, given.draws("target", one.label)),
        ):
            found[one.label, population.name] = population
    return found
