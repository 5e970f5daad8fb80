"""Similarity of ReLU bit patterns and the Fiedler partition of classes, by depth (Jamil et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...detectors.base.parameters import check_choice, check_count, check_layers, selection
from ...harness.core.errors import UsageError
from ...harness.tracing.traced_model import Instruments
from ...harness.tracing.traces import Need, Traces
from .. import Analysis, AnalysisInfo, AnalysisInput, Findings, ImageSet
from .attacked import Placement, place, populations
from .graph import Array, Partition, agreement, cosine, fiedler, matching, overlap, permuted, truth_of
from .report.tables import findings
from .study import Study, Variant

Laplacian = Literal["normalised", "raw", "both"]

# Bytes of codes that are held at once, beside those of one tap.
_MEMORY = 1 << 28
_BATCH = 256


@dataclass(frozen=True)
class _Reader:
    """Asks :meth:`Instruments.codes` for codes."""

    needs: tuple[Need, ...]


@dataclass(frozen=True, eq=False)
class _Sample:
    """Images that the model classifies correctly, class by class.

    Attributes:
        rows: int64 (n,), their positions among the evaluate images.
        classes: indices of classes, ascending.
        members: for each of them, its positions in ``rows``.
    """

    rows: Tensor
    classes: tuple[int, ...]
    members: tuple[NDArray[np.int64], ...]


class Rdm(Analysis):
    """Do the on/off patterns of a layer's units tell classes apart, from what depth on, and how clearly?

    At each tap the packed bits of images of two classes are compared (share of agreeing units: matching, or Hamming,
    similarity), and the graph that these similarities weigh is split by its Fiedler vector; the classes' share of the
    split that is right is averaged over all pairs of classes. The labels take no part in the split.

    Beside it: Jaccard similarity, which ignores units that are off in both images; cosine similarity of the
    activations themselves; the other Laplacian; the same architecture untrained; and permuted labels. Successful
    attacks and noise of their size are placed on the clean images' partition, between the true and the reached class.

    Cost: O(taps (n^2 units + pairs images^3)) with n = classes x images, one forward pass of n images through the
    model and one through its untrained twin; memory O(n^2) and 256 MiB of codes.

    Args:
        images: correctly classified evaluate images per class, at most; a pair uses as many of either class.
        classes: how many classes are paired with each other, at most; a seeded sample where there are more.
        layers: taps to study: ``all``, ``last:N``, ``first:N``, or names.
        units: bits per tap, at most (a seeded sample); ``None`` for all.
        laplacian: ``normalised``, ``raw`` as in the paper, or ``both``: normalised, and beside it raw.
        activation_units: units per tap for the cosine similarity of activations; 0 leaves it out.
        permutations: of the labels, for the null.
        maps: at how many taps, evenly spread, the dissimilarities of single images are shown.
        map_images: images per class in these maps.
        attacks: how many attacks are placed, the most successful budget of each; 0 for none.
        attacked: successes of each attack that are placed, at most.
    """

    info = AnalysisInfo(
        title="Hamming similarity and Fiedler partition",
        paper="Jamil, Liu, Cole, Blanchard, King, Kirby, Peterson (2023), Hamming Similarity and Graph Laplacians for "
        "Class Partitioning and Adversarial Image Detection, CVPR Workshops, arXiv:2305.01808",
        summary="Dissimilarity matrices of ReLU bits, and how well their graph's Fiedler vector separates classes, "
        "by depth.",
    )
    reads_perturbed = True

    def __init__(
        self,
        images: int = 100,
        classes: int = 10,
        layers: str | list[str] = "all",
        units: int | None = None,
        laplacian: Laplacian = "both",
        activation_units: int = 2048,
        permutations: int = 200,
        maps: int = 4,
        map_images: int = 20,
        attacks: int = 4,
        attacked: int = 200,
    ) -> None:
        check_count("images", images, 2)
        check_count("classes", classes, 2)
        if units is not None:
            check_count("units", units)
        check_choice("laplacian", laplacian, Laplacian)
        check_count("activation_units", activation_units, 0)
        check_count("permutations", permutations, 20)
        check_count("maps", maps)
        check_count("map_images", map_images)
        check_count("attacks", attacks, 0)
        check_count("attacked", attacked)
        self.images, self.classes, self.units, self.laplacian = images, classes, units, laplacian
        self.layers = check_layers(layers)
        self.activation_units, self.permutations = activation_units, permutations
        self.maps, self.map_images, self.attacks, self.attacked = maps, map_images, attacks, attacked

    @property
    def needs(self) -> tuple[Need, ...]:
        """Bits of the chosen taps."""
        return (Need("bits", selection(self.layers), units=self.units),)

    def study(self, material: AnalysisInput) -> Findings:
        """Compare, split, average and place.

        Raises:
            UsageError: where fewer than two classes have two correctly classified evaluate images.
        """
        evaluate = material.evaluate
        taps = evaluate.traces.tap_names()
        sample = _sample(material, self.images, self.classes)
        pairs = list(combinations(range(len(sample.classes)), 2))
        untrained, reason = _twin(material)
        study = Study(
            taps=taps,
            depth={t.name: i for i, t in enumerate(evaluate.traces.taps, 1)},
            classes=[material.classes[c] for c in sample.classes],
            counts=[len(m) for m in sample.members],
            asked=self.images,
            pairs=pairs,
            left_out=len(material.classes) - len(sample.classes),
            no_twin=reason,
        )
        nulls = self._permutations(material, sample, pairs)
        shown = {taps[round(i)] for i in np.linspace(len(taps) - 1, 0, min(self.maps, len(taps)))}
        sets = populations(material, sample.classes, self.attacks, self.attacked, material.draws("attacked"))
        variants = self._variants(untrained is not None)
        # Other accelerators may lack float64.
        device = material.device if material.device.type == "cuda" else torch.device("cpu")
        for names in self._groups(evaluate.traces, taps, len(sample.rows)):
            other = self._codes(untrained, "bits", names, evaluate, sample.rows) if untrained else {}
            activations = (
                self._codes(material.instruments, "full", names, evaluate, sample.rows) if self.activation_units else {}
            )
            for tap in names:
                units = evaluate.traces.units(tap)
                packed = _stored(evaluate.traces, tap, sample.rows).to(device)
                alike = {"hamming": matching(packed, packed, units), "jaccard": overlap(packed, units)}
                if other:
                    twin = other[tap].to(device)
                    alike["untrained"] = matching(twin, twin, units)
                if activations:
                    alike["cosine"] = cosine(activations[tap].to(device))
                partitions: dict[tuple[int, int], Partition] = {}
                for variant in variants:
                    found = self._split(study, variant, tap, alike[variant.graph], sample, nulls)
                    if variant is variants[0]:
                        partitions = found
                for network in ("hamming", "untrained"):
                    if network in alike:
                        study.dissimilarity[network, tap] = _by_class(1 - alike[network], sample.members)
                if tap in shown:
                    study.maps[tap] = torch.from_numpy(self._map(alike["hamming"], sample)).float()
                    study.map_classes = [min(self.map_images, len(m)) for m in sample.members]
                del alike
                self._place(study, sets, tap, packed, units, sample, partitions)
                material.progress((taps.index(tap) + 1) / len(taps))
        return findings(study, variants)

    def _variants(self, twin: bool) -> list[Variant]:
        """The graphs that are split; the first is the one that the others are compared with."""
        normalised = self.laplacian != "raw"
        kind = "" if normalised else ", raw Laplacian"
        found = [Variant(f"bits, Hamming{kind}", "trained", "hamming", normalised, "solid")]
        found.append(Variant(f"bits, Jaccard{kind}", "trained", "jaccard", normalised, "dashed"))
        if self.activation_units:
            found.append(Variant(f"activations, cosine{kind}", "trained", "cosine", normalised, "dashed"))
        if self.laplacian == "both":
            found.append(Variant("bits, Hamming, raw Laplacian", "trained", "hamming", False, "dashed"))
        if twin:
            found.append(
                Variant(f"untrained network, bits, Hamming{kind}", "untrained", "untrained", normalised, "dotted")
            )
        return found

    def _permutations(
        self, material: AnalysisInput, sample: _Sample, pairs: Sequence[tuple[int, int]]
    ) -> list[NDArray[np.int8]]:
        """The same permuted labels at every tap and for every graph, so that their nulls can be compared."""
        draws = material.draws("permutations")
        return [
            permuted(min(len(sample.members[a]), len(sample.members[b])), self.permutations, draws) for a, b in pairs
        ]

    def _split(
        self, study: Study, variant: Variant, tap: str, alike: Array, sample: _Sample,
        nulls: Sequence[NDArray[np.int8]],
    ) -> dict[tuple[int, int], Partition]:  # fmt: skip
        """Partition every pair of classes at one tap."""
        partitions = {}
        accuracy, smaller, unique = [], [], []
        null = np.zeros(self.permutations)
        for pair, permutations in zip(study.pairs, nulls, strict=True):
            index = _graph(sample, pair)
            part = fiedler(alike[np.ix_(index, index)], variant.normalised)
            accuracy.append(float(agreement(part, truth_of(len(index) // 2))))
            smaller.append(part.smaller)
            unique.append(part.unique)
            null += agreement(part, permutations) / len(nulls)
            partitions[pair] = part
        study.accuracy[variant.name, tap] = np.array(accuracy)
        study.smaller[variant.name, tap] = np.array(smaller)
        study.unique[variant.name, tap] = np.array(unique)
        study.null[variant.name, tap] = null
        return partitions

    def _place(
        self, study: Study, sets: Sequence[Placement], tap: str, packed: Tensor, units: int, sample: _Sample,
        partitions: Mapping[tuple[int, int], Partition],
    ) -> None:  # fmt: skip
        """Find on which side of the clean images' partition other images fall."""
        for one in sets:
            codes = _stored(one.images.traces, tap, one.rows).to(packed.device)
            alike = matching(codes, packed, units)
            # An image does not vote on where its own changed copy belongs.
            alike[one.sources.numpy()[:, None] == sample.rows.numpy()] = np.nan
            graphs = {pair: _graph(sample, pair) for pair in study.pairs}
            study.placed.append((one.attack, one.population, tap, place(one, alike, graphs, partitions)))

    def _map(self, alike: Array, sample: _Sample) -> Array:
        index = np.concatenate([m[: self.map_images] for m in sample.members])
        apart: Array = 1 - alike[np.ix_(index, index)]
        return apart

    def _groups(self, traces: Traces, taps: Sequence[str], images: int) -> Iterator[list[str]]:
        """Taps whose codes are held at the same time."""
        group: list[str] = []
        held = 0
        for tap in taps:
            size = images * (traces.units(tap) // 8 + 4 * self.activation_units)
            if group and held + size > _MEMORY:
                yield group
                group, held = [], 0
            group.append(tap)
            held += size
        yield group

    def _codes(
        self, instruments: Instruments, representation: Literal["bits", "full"], taps: Sequence[str],
        images: ImageSet, rows: Tensor,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Codes of some evaluate images, by tap, from a forward pass."""
        limit = self.units if representation == "bits" else self.activation_units
        reader = _Reader((Need(representation, tuple(taps), units=limit),))

        def read(part: slice, inside: Tensor) -> Mapping[str, Tensor]:
            found = instruments.codes(reader.needs, images.read(part)[inside])
            return {tap: found.bits(tap) if representation == "bits" else found.full(tap) for tap in taps}

        return _gather(len(images), rows, read)


def _sample(material: AnalysisInput, images: int, classes: int) -> _Sample:
    """Choose classes, and the first correctly classified evaluate images of each: the set is a random one already."""
    traces = material.evaluate.traces
    labels = traces.labels
    right = labels == traces.predictions
    found = {c: ((labels == c) & right).nonzero().squeeze(1)[:images] for c in range(len(material.classes))}
    usable = [c for c, rows in found.items() if len(rows) >= 2]
    if len(usable) < 2:
        raise UsageError(
            "rdm compares classes, and fewer than two have two evaluate images that the model gets right: "
            "raise data.evaluate."
        )
    if len(usable) > classes:
        drawn = torch.randperm(len(usable), generator=material.draws("classes"))[:classes].sort().values
        usable = [usable[i] for i in drawn.tolist()]
    counts = np.cumsum([0, *(len(found[c]) for c in usable)])
    members = tuple(np.arange(a, b) for a, b in pairwise(counts))
    return _Sample(torch.cat([found[c] for c in usable]), tuple(usable), members)


def _graph(sample: _Sample, pair: tuple[int, int]) -> NDArray[np.int64]:
    """The images of a pair of classes, as many of the one as of the other."""
    first, second = (sample.members[c] for c in pair)
    count = min(len(first), len(second))
    return np.concatenate([first[:count], second[:count]])


def _twin(material: AnalysisInput) -> tuple[Instruments | None, str]:
    try:
        return material.untrained(), ""
    except UsageError as error:
        return None, str(error)


def _gather(length: int, rows: Tensor, read: Callable[[slice, Tensor], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Some rows of something that is read in batches, in the order of ``rows`` (int64, (n,))."""
    order = rows.argsort()
    wanted = rows[order]
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, length, _BATCH):
        inside = wanted[(wanted >= start) & (wanted < start + _BATCH)] - start
        if len(inside):
            for name, values in read(slice(start, min(start + _BATCH, length)), inside).items():
                parts.setdefault(name, []).append(values)
    back = order.argsort()
    return {name: torch.cat(values)[back] for name, values in parts.items()}


def _stored(traces: Traces, tap: str, rows: Tensor) -> Tensor:
    """Stored bits of some images at a tap, uint8 (n, bytes)."""
    return _gather(len(traces), rows, lambda part, inside: {tap: traces[part].bits(tap)[inside]})[tap]


def _by_class(apart: Array, members: Sequence[NDArray[np.int64]]) -> Array:
    """Mean dissimilarity within (of different images) and between classes: (classes, classes)."""
    found = np.empty((len(members), len(members)))
    for i, j in combinations(range(len(members)), 2):
        found[i, j] = found[j, i] = apart[np.ix_(members[i], members[j])].mean()
    for i, rows in enumerate(members):
        found[i, i] = apart[np.ix_(rows, rows)].sum() / (len(rows) * (len(rows) - 1))
    return found
