"""Detection from the on/off pattern of the ReLU layers (Jamil et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor

from ...harness.core.errors import UsageError
from ...harness.core.ranges import Count, Natural, Positive
from ...harness.tracing.traces import LiveTrace, Need, Traces
from ..base.classes import class_groups
from ..base.detector import Detector, DetectorInfo
from ..base.parameters import (
    check_fitted,
    check_images,
    check_layers,
    check_perturbed,
    selection,
)
from .blocks import BitBlocks, relaxed_bits
from .linear import LinearBits, Loss, fit_linear
from .patterns import BernoulliBits, StoredPatterns, fit_bernoulli, margin_weights, store_patterns
from .votes import BitVotes, fit_votes

Method = Literal["logistic", "svm", "votes", "bernoulli", "hamming"]
Weights = Literal["equal", "margin"]


class BitVector(Detector):
    """Scores the bits of several layers: 1 where a unit's pre-activation is positive.

    The paper says "a simple classifier" and no more; the methods are readings of that.

    - ``logistic``, ``svm``: a linear classifier, clean against perturbed fit images (module ``linear``). The score is
      its decision function. Supervised: it knows the perturbations that it was fitted on.
    - ``votes``: the share of votes for "perturbed" among the ``voters`` bits whose on-frequencies differ most between
      clean and perturbed fit images; a bit votes for the side on which its value is the more frequent one. That
      discriminating bits vote is the companion paper's; the choice by frequency is our reading of it. Supervised.
    - ``bernoulli``: mean negative log likelihood per unit of independent bits given the predicted class.
    - ``hamming``: smallest share of differing units between the image and fit images of the predicted class (the
      activation patterns of Olber et al., CVPR 2023, without their choice of thresholds on held-out data).

    The last two learn from the clean fit images that the model classifies correctly, by class, and weigh layers the
    same whatever their width. For a class without such an image they fall back on all classes together.

    Cost, with u units: a fit reads the bits once (linear methods: once per iteration); an image costs O(u), and for
    ``hamming`` O(u times patterns of its class) in one matrix product.

    Args:
        method: see above.
        layers: taps to read: ``all``, ``last:N``, ``first:N``, or names.
        regularisation: of the linear methods, for images of length 1; larger is smoother.
        smoothing: of frequencies by class: the weight, in images, of the frequencies over all classes.
        patterns: of ``hamming``: patterns that are kept of each class, a seeded draw; 0 keeps all.
        weights: of ``hamming``: ``margin`` lets a differing unit count the more, the further it typically is from its
            threshold in the predicted class (``patterns.margin_weights``); of ``votes``: ``margin`` lets a vote count
            as much as its frequencies differ.
        voters: of ``votes``: how many bits vote.
        by_class: of ``votes``: choose the bits within each predicted class and not over all.
        temperature: the surrogate puts sigmoid(z / temperature) in the place of a bit; small is closer to the bit,
            large gives gradients to units far from zero.

    Raises:
        UsageError: for a parameter out of range.
    """

    info = DetectorInfo(
        title="Bit vectors",
        paper="Jamil et al. 2023, Hamming Similarity and Graph Laplacians for Class Partitioning and Adversarial "
        "Image Detection, arXiv 2305.01808",
        needs=(Need("bits", "last:6"),),
        supervised=True,
        surrogate="relaxed",
        summary="A classifier, votes, a class-conditional likelihood or a nearest pattern on the bits of ReLU layers.",
    )

    def __init__(
        self,
        method: Method = "logistic",
        layers: str | list[str] = "last:6",
        regularisation: Positive = 3e-5,
        smoothing: Positive = 1.0,
        patterns: Natural = 500,
        weights: Weights = "equal",
        voters: Count = 1024,
        by_class: bool = False,
        temperature: Positive = 0.2,
    ) -> None:
        if not isinstance(by_class, bool):
            raise UsageError(f"by_class = {by_class!r}: give true or false.")
        self.method = method
        self.layers = check_layers(layers)
        self.regularisation = regularisation
        self.smoothing = smoothing
        self.patterns = patterns
        self.weights = weights
        self.voters = voters
        self.by_class = by_class
        self.temperature = temperature
        self.fitted: dict[str, Any] = {}

    @property
    def needs(self) -> tuple[Need, ...]:
        """Bits at ``layers``."""
        return (Need("bits", selection(self.layers)),)

    @property
    def supervised(self) -> bool:
        """True for ``logistic``, ``svm`` and ``votes``."""
        return self.method in ("logistic", "svm", "votes")

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        """Learn from ``clean`` and, for the supervised methods, ``perturbed``.

        Raises:
            UsageError: without images, or for a supervised method without perturbed ones.
        """
        check_images("bitvector", clean, 1)
        taps = clean.tap_names()
        if self.supervised:
            perturbed = check_perturbed(f"bitvector with method = {self.method!r}", perturbed)
            self.fitted = self._fit_supervised(clean, perturbed, taps)
            return self
        groups = class_groups(clean)
        classes = clean.logits.shape[1]
        if self.method == "bernoulli":
            self.fitted = dict(vars(fit_bernoulli(BitBlocks(clean, taps), groups, classes, self.smoothing)))
            return self
        self.fitted = dict(vars(store_patterns(clean, taps, groups, self.patterns)))
        if self.weights == "margin":
            self.fitted["weights"] = margin_weights(BitBlocks(clean, taps), groups, classes, self.smoothing)
        return self

    def score(self, traces: Traces) -> Tensor:
        """Return float64 (n,) (float32 for ``hamming``); see the class."""
        check_fitted("bitvector", self.fitted)
        taps = traces.tap_names()
        parts: list[Tensor] = [traces.logits.new_empty(0)]
        if self.method == "hamming":
            stored = StoredPatterns(**self.fitted)
            for part in traces.batches(512):
                parts.append(stored.distance([part.bits(tap) for tap in taps], part.predictions))
            return torch.cat(parts)
        start = 0
        for bits in BitBlocks(traces, taps, once=True):
            classes = traces.predictions[start : start + len(bits)]
            start += len(bits)
            parts.append(self._on_bits(bits.double(), classes))
        return torch.cat(parts)

    def surrogate(self, live: LiveTrace) -> Tensor:
        """The score with sigmoid(z / temperature) for every bit, given the class that the live logits predict."""
        check_fitted("bitvector", self.fitted)
        bits = relaxed_bits(live, live.tap_names(), self.temperature)
        classes = live.logits.argmax(1)
        if self.method == "hamming":
            return StoredPatterns(**self.fitted).relaxed_distance(bits, classes)
        return self._on_bits(bits, classes)

    def _fit_supervised(self, clean: Traces, perturbed: Traces, taps: Sequence[str]) -> dict[str, Any]:
        pair = BitBlocks(clean, taps), BitBlocks(perturbed, taps)
        if self.method != "votes":
            loss: Loss = "logistic" if self.method == "logistic" else "squared-hinge"
            return dict(vars(fit_linear(*pair, loss, self.regularisation)))
        groups = class_groups(clean), perturbed.predictions
        classes = clean.logits.shape[1]
        if not self.by_class:
            groups, classes = (groups[0].clamp(max=0), torch.zeros_like(groups[1])), 1
        return dict(vars(fit_votes(*pair, *groups, classes, self.voters, self.weights == "margin", self.smoothing)))

    def _on_bits(self, bits: Tensor, classes: Tensor) -> Tensor:
        if self.method == "bernoulli":
            return BernoulliBits(**self.fitted).surprise(bits, classes)
        if self.method == "votes":
            return BitVotes(**self.fitted).share(bits, classes)
        return LinearBits(**self.fitted).decision(bits)
