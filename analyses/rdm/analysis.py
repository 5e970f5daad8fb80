"""Similarity of ReLU bit patterns and the Fiedler partition of classes, by depth (Jamil et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from torch import Tensor

from ...detectors.base.parameters import check_layers, selection
from ...harness.core.errors import UsageError
from ...harness.core.ranges import Count, Natural
from ...harness.tracing.traces import Need, Traces, select_taps
from ..base import Analysis, AnalysisInfo
from ..common.inputs import AnalysisInput
from ..common.populations import Population
from ..common.recording import gather, tap_groups
from ..findings import Findings
from .attacked import NAMES, place, populations
from .graph import Array, Partition, Signs, agreement, cosine, fiedler, matching, overlap, permuted, truth_of
from .measured import Placed, Separation, Split, Variant
from .report.figures import figures
from .report.tables import tables
from .report.text import claims

Laplacian = Literal["normalised", "raw", "both"]


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


class Rdm(Analysis[Separation]):
    """Do the on/off patterns of a layer's units tell classes apart, from what depth on, and how clearly?

    At each tap the packed bits of images of two classes are compared (share of agreeing units: matching, or Hamming,
    similarity), and the graph that these similarities weigh is split by its Fiedler vector; the classes' share of the
    split that is right is averaged over all pairs of classes. The labels take no part in the split.

    Beside it: Jaccard similarity, which ignores units that are off in both images; cosine similarity of the
    activations themselves; the other Laplacian; the same architecture untrained; and permuted labels. Successful
    attacks and noise of their size are placed on the clean images' partition, between the true and the reached class.

    Cost: O(taps (n^2 units + pairs images^3)) with n = classes x images, one forward pass of n images through the
    model and one through the untrained network; memory O(n^2) and 256 MiB of codes.

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
        paper="Jamil, Liu, Caglar, Cole, Blanchard, Peterson, Kirby (2023), Hamming Similarity and Graph Laplacians "
        "for Class Partitioning and Adversarial Image Detection, CVPR Workshops, arXiv:2305.01808",
        summary="Dissimilarity matrices of ReLU bits, and how well their graph's Fiedler vector separates classes, "
        "by depth.",
    )
    reads_perturbed = True

    def __init__(
        self,
        images: Annotated[int, Ge(2)] = 100,
        classes: Annotated[int, Ge(2)] = 10,
        layers: str | list[str] = "all",
        units: Count | None = None,
        laplacian: Laplacian = "both",
        activation_units: Natural = 2048,
        permutations: Annotated[int, Ge(20)] = 200,
        maps: Count = 4,
        map_images: Count = 20,
        attacks: Natural = 4,
        attacked: Count = 200,
    ) -> None:
        self.images, self.classes, self.units, self.laplacian = images, classes, units, laplacian
        self.layers = check_layers(layers)
        self.activation_units, self.permutations = activation_units, permutations
        self.maps, self.map_images, self.attacks, self.attacked = maps, map_images, attacks, attacked

    @property
    def needs(self) -> tuple[Need, ...]:
        """Bits of the chosen taps."""
        return (Need("bits", selection(self.layers), units=self.units),)

    def measure(self, given: AnalysisInput) -> Separation:
        """Compare, split, average and place.

        Raises:
            UsageError: where fewer than two classes have two correctly classified evaluate images.
        """
        evaluate = given.evaluate
        taps = evaluate.traces.tap_names()
        sample = _sample(given, self.images, self.classes)
        pairs = list(combinations(range(len(sample.classes)), 2))
        untrained, reason = given.untrained_or_reason()
        nulls = self._permutations(given, sample, pairs)
        shown = {taps[round(i)] for i in np.linspace(len(taps) - 1, 0, min(self.maps, len(taps)))}
        sets = populations(given, sample.classes, self.attacks, self.attacked, given.draws("attacked"))
        variants = self._variants(untrained is not None)
        splits: dict[tuple[str, str], Split] = {}
        dissimilarity: dict[tuple[str, str], Array] = {}
        maps: dict[str, Tensor] = {}
        placed: list[Placed] = []
        # Other accelerators may lack float64.
        device = given.device if given.device.type == "cuda" else torch.device("cpu")
        infos = select_taps(taps, evaluate.traces.taps)
        held = [*self.needs, Need("full", units=self.activation_units)]
        for names in tap_groups(infos, held, len(sample.rows)):
            bits, full = Need("bits", names, units=self.units), Need("full", names, units=self.activation_units)
            other = given.codes(untrained, evaluate, sample.rows, (bits,)) if untrained else None
            active = given.codes(given.traced_model, evaluate, sample.rows, (full,)) if self.activation_units else None
            for tap in names:
                units = evaluate.traces.units(tap)
                packed = _stored(evaluate.traces, tap, sample.rows).to(device)
                alike = {"hamming": matching(packed, packed, units), "jaccard": overlap(packed, units)}
                if other is not None:
                    theirs = other.bits(tap).to(device)
                    alike["untrained"] = matching(theirs, theirs, units)
                if active is not None:
                    alike["cosine"] = cosine(active.full(tap).to(device))
                partitions: dict[tuple[int, int], Partition] = {}
                for variant in variants:
                    found, splits[variant.name, tap] = _split(variant, alike[variant.graph], sample, pairs, nulls)
                    partitions = partitions or found
                for network in ("hamming", "untrained"):
                    if network in alike:
                        dissimilarity[network, tap] = _by_class(1 - alike[network], sample.members)
                if tap in shown:
                    maps[tap] = torch.from_numpy(self._map(alike["hamming"], sample)).float()
                del alike
                placed += _place(sets, tap, packed, units, sample, partitions)
                given.progress((taps.index(tap) + 1) / len(taps))
        depth = {t.name: i for i, t in enumerate(evaluate.traces.taps, 1)}
        return Separation(
            taps, depth, [given.classes[c] for c in sample.classes], [len(m) for m in sample.members],
            self.images, pairs, len(given.classes) - len(sample.classes), reason,
            variants, splits, dissimilarity, maps, [min(self.map_images, len(m)) for m in sample.members], placed,
        )  # fmt: skip

    def report(self, measured: Separation) -> Findings:
        """Accuracy by depth, maps, and where attacks lie."""
        arrays = {"dissimilarity": torch.stack([measured.maps[t] for t in measured.taps if t in measured.maps])}
        return Findings(claims(measured), figures(measured), tables(measured), arrays)

    def _variants(self, untrained: bool) -> list[Variant]:
        """The graphs that are split; the first is the one that the others are compared with."""
        normalised = self.laplacian != "raw"
        kind = "" if normalised else ", raw Laplacian"
        found = [Variant(f"bits, Hamming{kind}", "trained", "hamming", normalised, "solid")]
        found.append(Variant(f"bits, Jaccard{kind}", "trained", "jaccard", normalised, "dashed"))
        if self.activation_units:
            found.append(Variant(f"activations, cosine{kind}", "trained", "cosine", normalised, "dashed"))
        if self.laplacian == "both":
            found.append(Variant("bits, Hamming, raw Laplacian", "trained", "hamming", False, "dashed"))
        if untrained:
            found.append(
                Variant(f"untrained network, bits, Hamming{kind}", "untrained", "untrained", normalised, "dotted")
            )
        return found

    def _permutations(self, given: AnalysisInput, sample: _Sample, pairs: Sequence[tuple[int, int]]) -> list[Signs]:
        """The same permuted labels at every tap and for every graph, so that their nulls can be compared."""
        draws = given.draws("permutations")
        return [
            permuted(min(len(sample.members[a]), len(sample.members[b])), self.permutations, draws) for a, b in pairs
        ]

    def _map(self, alike: Array, sample: _Sample) -> Array:
        index = np.concatenate([m[: self.map_images] for m in sample.members])
        apart: Array = 1 - alike[np.ix_(index, index)]
        return apart


def _split(
    variant: Variant, alike: Array, sample: _Sample, pairs: Sequence[tuple[int, int]], nulls: Sequence[Signs]
) -> tuple[dict[tuple[int, int], Partition], Split]:
    """Partition every pair of classes at one tap."""
    partitions = {}
    accuracy, smaller, unique = [], [], []
    null = np.zeros(nulls[0].shape[1])
    for pair, permutations in zip(pairs, nulls, strict=True):
        index = _graph(sample, pair)
        part = fiedler(alike[np.ix_(index, index)], variant.normalised)
        accuracy.append(float(agreement(part, truth_of(len(index) // 2))))
        smaller.append(part.smaller)
        unique.append(part.unique)
        null += agreement(part, permutations) / len(nulls)
        partitions[pair] = part
    return partitions, Split(np.array(accuracy), np.array(smaller), np.array(unique), null)


def _place(
    sets: Sequence[Population], tap: str, packed: Tensor, units: int, sample: _Sample,
    partitions: Mapping[tuple[int, int], Partition],
) -> Iterator[Placed]:  # fmt: skip
    """Find on which side of the clean images' partition other images fall."""
    graphs = {pair: _graph(sample, pair) for pair in partitions}
    for one in sets:
        codes = _stored(one.images.traces, tap, one.where).to(packed.device)
        alike = matching(codes, packed, units)
        # An image does not vote on where its own changed copy belongs.
        alike[one.rows.numpy()[:, None] == sample.rows.numpy()] = np.nan
        shares = place(one, sample.classes, alike, graphs, partitions)
        yield Placed(one.perturbation, NAMES[one.name], tap, shares)


def _sample(given: AnalysisInput, images: int, classes: int) -> _Sample:
    """Choose classes, and the first correctly classified evaluate images of each: the set is a random one already."""
    traces = given.evaluate.traces
    labels = traces.labels
    right = labels == traces.predictions
    found = {c: ((labels == c) & right).nonzero().squeeze(1)[:images] for c in range(len(given.classes))}
    usable = [c for c, rows in found.items() if len(rows) >= 2]
    if len(usable) < 2:
        raise UsageError(
            "rdm compares classes, and fewer than two have two evaluate images that the model gets right: "
            "raise data.evaluate."
        )
    if len(usable) > classes:
        drawn = torch.randperm(len(usable), generator=given.draws("classes"))[:classes].sort().values
        usable = [usable[i] for i in drawn.tolist()]
    counts = np.cumsum([0, *(len(found[c]) for c in usable)])
    members = tuple(np.arange(a, b) for a, b in pairwise(counts))
    return _Sample(torch.cat([found[c] for c in usable]), tuple(usable), members)


def _graph(sample: _Sample, pair: tuple[int, int]) -> NDArray[np.int64]:
    """The images of a pair of classes, as many of the one as of the other."""
    first, second = (sample.members[c] for c in pair)
    count = min(len(first), len(second))
    return np.concatenate([first[:count], second[:count]])


def _stored(traces: Traces, tap: str, rows: Tensor) -> Tensor:
    """Stored bits of some images at a tap, uint8 (n, bytes)."""
    return gather(len(traces), rows, lambda part, inside: {tap: traces[part].bits(tap)[inside]})[tap]


def _by_class(apart: Array, members: Sequence[NDArray[np.int64]]) -> Array:
    """Mean dissimilarity within (of different images) and between classes: (classes, classes)."""
    found = np.empty((len(members), len(members)))
    for i, j in combinations(range(len(members)), 2):
        found[i, j] = found[j, i] = apart[np.ix_(members[i], members[j])].mean()
    for i, rows in enumerate(members):
        found[i, i] = apart[np.ix_(rows, rows)].sum() / (len(rows) * (len(rows) - 1))
    return found
