"""One seed's scores of one detector, as its row needs them: which images are robust, and for which thresholds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..statistics.detection import MIN_IMAGES, auroc, threshold, threshold_reason
from ..statistics.samples import WorstCase
from .alarms import Alarms
from .consistency import luckiest_scores, majority_scores
from .rankability import ABLATION
from .results import (
    BoolArray,
    DetectorResult,
    FloatArray,
    IntArray,
    PerturbationResult,
    SeedResult,
    Sources,
    ThreatModel,
    within,
)

# Calibrate scores equal to the threshold: more than this share, and the threshold cannot hold its rate.
TIED = 0.01


@dataclass(frozen=True, eq=False)
class SeedScores:
    """One seed's usable scores of one detector: thresholds apart, all that its row is made from."""

    sources: Sources
    detector: DetectorResult
    threshold: float
    perturbations: Sequence[PerturbationResult]
    lower: FloatArray
    upper: FloatArray
    luckiest: FloatArray
    complete: bool

    @classmethod
    def of(
        cls, sources: Sources, d: DetectorResult, t: float, p: Sequence[PerturbationResult], threat: ThreatModel,
        ranked: int,
    ) -> SeedScores:  # fmt: skip
        lower = np.where(sources.evaluate_correct, d.clean, np.inf)
        upper, luckiest = np.full(len(lower), np.inf), np.full(len(lower), np.inf)
        complete = True
        for index, fooled, scores, luck in _candidates(d, p, threat):
            if scores is None or luck is None:
                complete = False
                continue
            # Within one perturbation an image stands once, so plain indexing keeps every minimum.
            for worst, found in ((upper, scores), (luckiest, luck)):
                worst[index[fooled]] = np.minimum(worst[index[fooled]], found[fooled])
        return cls(sources, d, t, p, lower[:ranked], upper[:ranked], luckiest[:ranked], complete)

    @property
    def undetected(self) -> float | None:
        """The share of right images that something fools and gets past; in most evaluations of a drawn score."""
        return self._passed(self.upper)

    @property
    def undetected_once(self) -> float | None:
        """The same, in any evaluation."""
        return self._passed(self.luckiest)

    def _passed(self, worst: FloatArray) -> float | None:
        right = self.sources.evaluate_correct[: len(worst)]
        return float((worst[right] <= self.threshold).mean()) if right.any() else None

    @property
    def worst_case(self) -> WorstCase:
        """What the ranking compares."""
        none = self.detector.label == ABLATION
        return WorstCase(np.zeros(0) if none else self.detector.calibrate, self.lower, self.upper)

    def controls(self) -> Iterator[FloatArray]:
        for p in self.perturbations:
            if p.threatens(self.detector.label):
                scores, _ = self.detector.control_scores(p)
                if scores is not None:
                    yield scores

    def benign(self) -> Iterator[FloatArray]:
        for p in self.perturbations:
            if p.kind in ("noise", "corruption"):
                scores, _ = self.detector.scores(p)
                if scores is not None:
                    yield scores[~p.success]

    def auroc(self, p: PerturbationResult) -> float | None:
        """Successes against clean images that the model gets right, ``None`` for too few of either."""
        scores, _ = self.detector.scores(p)
        negative = self.detector.clean[self.sources.evaluate_correct]
        if scores is None or len(negative) < MIN_IMAGES or int(p.success.sum()) < MIN_IMAGES:
            return None
        return auroc(scores[p.success], negative)

    def tpr(self, p: PerturbationResult, alpha: float) -> float | None:
        """Return the share of the successes flagged at a false positive rate, ``None`` for too few images."""
        scores, _ = self.detector.scores(p)
        short = threshold_reason(len(self.detector.calibrate), alpha)
        if scores is None or short or int(p.success.sum()) < MIN_IMAGES:
            return None
        return float((scores[p.success] > threshold(self.detector.calibrate, alpha)).mean())

    @property
    def ties(self) -> bool:
        """Whether too many calibrate scores equal the threshold."""
        return self.detector.label != ABLATION and float((self.detector.calibrate == self.threshold).mean()) > TIED


def _candidates(
    detector: DetectorResult, perturbations: Sequence[PerturbationResult], threat: ThreatModel
) -> Iterator[tuple[IntArray, BoolArray, FloatArray | None, FloatArray | None]]:
    """Yield every set of images that counts: positions, whether they fool within the threat, and the scores.

    Scores are those that decide and the smallest of any evaluation; ``None`` where an attack did not run or was not
    scored: without them there is no worst case.
    """
    for p in perturbations:
        if not p.threatens(detector.label) or p.inapplicable:
            continue
        scores = None if p.reason else detector.scores(p)[0]
        yield p.index, p.success & within(threat, p), *_decided(detector, p.label, scores)
        for r in () if p.reason else p.rounded:
            found = None if r.reason else detector.rounded_scores(p, r.how)[0]
            fools = r.success & within(threat, r) if not r.reason else np.zeros(0, np.bool_)
            yield p.index, fools, *_decided(detector, f"{r.how}:{p.label}", found)


def _decided(
    detector: DetectorResult, source: str, scores: FloatArray | None
) -> tuple[FloatArray | None, FloatArray | None]:
    if scores is None:
        return None, None
    return majority_scores(detector, source, scores), luckiest_scores(detector, source, scores)


def ablation(seed: SeedResult, alarms: int = 0) -> DetectorResult:
    """Return the detector that gives every image the score 0.

    Args:
        seed: all results.
        alarms: number of evaluate images, from the first on, on which false alarms were looked for.
    """
    right = np.flatnonzero(seed.sources.evaluate_correct[:alarms])
    return DetectorResult(
        ABLATION,
        radii=seed.alone,
        alarms=Alarms(right, np.full(len(right), np.inf)),
        calibrate=np.zeros(len(seed.sources.calibrate_index)),
        clean=np.zeros(len(seed.sources.evaluate_index)),
        perturbed={p.label: np.zeros(len(p.index)) for p in seed.perturbations},
        control={p.label: np.zeros(len(p.control_index)) for p in seed.perturbations},
        rounded={(p.label, r.how): np.zeros(len(r.success)) for p in seed.perturbations for r in p.rounded},
    )
