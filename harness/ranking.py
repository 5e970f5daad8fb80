"""The ranking: one row of ``leaderboard.csv`` per detector, for one data set, model and threat, over all seeds.

An image is robust for the thresholds t with ``clean score <= t < lowest score of what turns it``: the model is right,
the detector lets the clean image pass, and nothing within the threat both turns it and slips past. Everything about the
worst case follows from these two numbers per image, its resamples included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .metrics import (
    Weights,
    auroc,
    calibrate_weights,
    evaluate_weights,
    percentile_interval,
    resampled_shares,
    resampled_thresholds,
    threshold,
    threshold_reason,
)
from .results import (
    ALPHAS,
    MIN_IMAGES,
    Cell,
    DetectorResult,
    FloatArray,
    PerturbationResult,
    SeedResult,
    Sources,
    ThreatModel,
    within,
)

ABLATION = "none"
NO_ADAPTIVE = "no-adaptive-attack"
INCOMPLETE = "adaptive-incomplete"
BELOW_THREAT = "adaptive-below-threat"
UNCHECKED = "adaptive-unchecked"
# Budgets that differ by less are one (8/255 written in two ways).
_SAME = 1e-6
_LEVEL = 0.95
_ALPHA = ALPHAS["5"]


def leaderboard_rows(
    per_seed: Sequence[SeedResult],
    threat: ThreatModel,
    protocol_digest: str,
    missing: Mapping[int, str] | None = None,
    ranked: int | None = None,
) -> list[dict[str, Cell]]:
    """The rows of ``leaderboard.csv`` for one data set and model: every detector and ``none``, which flags nothing.

    A cell is the mean over seeds. t is the threshold at FPR 5 %, calibrated per seed. The attacks that count for a
    detector are those of kind ``attack`` and the adaptive ones made against it, so no row depends on which other
    detectors there are.

    - ``robust_accuracy_at_fpr_5``: the share of all evaluate images that the model gets right, whose clean score is at
      most t, and that no counting attack turns, within the threat by measured norm, with a score of at most t. Its
      interval resamples calibrate and evaluate source images together, the same draw for all seeds.
    - ``adaptive_undetected_at_fpr_5``: of the evaluate images that the model gets right, the share that some counting
      attack turns unseen within the threat; empty where no adaptive attack against the detector has finished.
    Adaptive attacks are dear, so they may cover only the first ``ranked`` evaluate images (a random draw, the same for
    every row): these three figures and their interval are then about those images alone, in every row.

    - ``worst_auroc``, ``worst_perturbation``: the smallest mean AUROC (successes against clean) over the counting
      attacks with enough images, whether within the threat or not, as in ``metrics.csv``.
    - ``mean_auroc_seen`` (exactly or by family), ``mean_auroc_unseen``, ``n_unseen``: over kind ``attack``.
    - ``control_flagged_at_fpr_5``: the share of the kept controls of all counting attacks with a score > t.
    - ``benign_flagged_at_fpr_5``: the share of the images under noise and corruptions that keep the prediction and
      have a score > t.
    - ``fpr_realised_5``: the share of all clean evaluate images with a score > t.
    - ``flags``: joined by ``; ``. ``seed_sd``: the standard deviation of robust accuracy over seeds.

    Ranked are rows with a robust accuracy for every seed; equal numbers (to six digits) share a rank, by name. Rows
    with the flag ``adaptive-incomplete`` follow without a rank, then those in which something failed. Where scores of a
    counting attack are missing there is no robust accuracy, since nobody knows what slipped past.

    Raises:
        ValueError: if the seeds are of different data sets, models or source images, or a detector is called ``none``.
    """
    if not per_seed:
        return []
    _check_seeds(per_seed)
    first = per_seed[0].sources
    calibrate = calibrate_weights(len(first.calibrate_index))
    rows_ranked = len(first.evaluate_index) if ranked is None else min(ranked, len(first.evaluate_index))
    evaluate = evaluate_weights(rows_ranked)
    head: dict[str, Cell] = {
        "rank": None,
        "dataset": first.dataset,
        "model": first.model,
        "detector": "",
        "norm": threat.norm,
        "eps": threat.eps,
    }
    rows = []
    for label in [*dict.fromkeys(d.label for s in per_seed for d in s.detectors), ABLATION]:
        subject = _Subject(label, per_seed, threat, rows_ranked)
        subject.failures += [f"seed {seed} is missing: {reason}" for seed, reason in (missing or {}).items()]
        rows.append(
            {**head, "detector": label, **subject.cells(calibrate, evaluate), "protocol_digest": protocol_digest}
        )
    return _ranked(rows)


def _ranked(rows: list[dict[str, Cell]]) -> list[dict[str, Cell]]:
    """Rows in the order of the table, with their ranks; drops the key that only the order needs."""

    def place(row: dict[str, Cell]) -> tuple[int, float, str]:
        robust = row["robust_accuracy_at_fpr_5"]
        value = round(float(robust), 6) if robust is not None else -1.0
        return int(row["place"] or 0), -value, str(row["detector"])

    rows = sorted(rows, key=place)
    places = [place(row)[:2] for row in rows]
    return [
        {name: places.index(own) + 1 if name == "rank" and not own[0] else cell
         for name, cell in row.items() if name != "place"}
        for row, own in zip(rows, places, strict=True)
    ]  # fmt: skip


@dataclass(frozen=True, eq=False)
class _SeedScores:
    """One seed's usable scores of one detector: thresholds apart, all that its row is made from."""

    sources: Sources
    detector: DetectorResult
    threshold: float
    perturbations: Sequence[PerturbationResult]
    lower: FloatArray
    upper: FloatArray
    complete: bool

    @classmethod
    def of(
        cls, sources: Sources, d: DetectorResult, t: float, p: Sequence[PerturbationResult], threat: ThreatModel,
        ranked: int,
    ) -> _SeedScores:  # fmt: skip
        lower = np.where(sources.evaluate_correct, d.clean, np.inf)
        upper = np.full(len(lower), np.inf)
        complete = True
        for one in p:
            if not one.threatens(d.label):
                continue
            # An attack that did not run proves nothing: without it there is no worst case.
            scores = None if one.reason else d.scores(one)[0]
            if scores is None:
                complete = False
                continue
            turned = one.success & within(threat, one)
            # Within one perturbation an image stands once, so plain indexing keeps every minimum.
            upper[one.index[turned]] = np.minimum(upper[one.index[turned]], scores[turned])
        return cls(sources, d, t, p, lower[:ranked], upper[:ranked], complete)

    @property
    def robust(self) -> float:
        return float(((self.lower <= self.threshold) & (self.threshold < self.upper)).mean())

    @property
    def undetected(self) -> float | None:
        right = self.sources.evaluate_correct[: len(self.upper)]
        return float((self.upper[right] <= self.threshold).mean()) if right.any() else None

    def flagged(self, scores: Iterable[FloatArray]) -> float | None:
        """The share above the threshold, ``None`` for too few images."""
        pooled = np.concatenate([np.zeros(0), *scores])
        return float((pooled > self.threshold).mean()) if len(pooled) >= MIN_IMAGES else None

    def controls(self) -> Iterable[FloatArray]:
        for p in self.perturbations:
            if p.threatens(self.detector.label):
                scores, _ = self.detector.control_scores(p)
                if scores is not None:
                    yield scores

    def benign(self) -> Iterable[FloatArray]:
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


class _Subject:
    """One detector over all seeds, or ``none``: a detector that gives every image the score 0 and the threshold 0."""

    def __init__(self, label: str, per_seed: Sequence[SeedResult], threat: ThreatModel, ranked: int) -> None:
        self.label, self.threat = label, threat
        self.flags: list[str] = []
        self.failures: list[str] = []
        self.surrogate = ABLATION
        self.seeds: list[_SeedScores] = []
        for one in per_seed:
            found = _ablation(one) if label == ABLATION else next((d for d in one.detectors if d.label == label), None)
            if found is None:
                self.failures.append(f"seed {one.sources.seed} is missing")
                continue
            self.surrogate = found.surrogate
            self.flags += [*found.flags, *_gaps(one, found, ranked, threat)]
            count = len(found.calibrate)
            failure = found.failure() or (threshold_reason(count, _ALPHA) if label != ABLATION else None)
            if failure:
                self.failures.append(failure)
                continue
            t = 0.0 if label == ABLATION else threshold(found.calibrate, _ALPHA)
            self.seeds.append(_SeedScores.of(one.sources, found, t, one.perturbations, threat, ranked))

    def cells(self, calibrate: Weights, evaluate: Weights) -> dict[str, Cell]:
        """The cells of the row that need measuring, and ``place``: 0 ranked, 1 below, 2 failed, 3 without a number."""
        seeds = self.seeds
        robust = [s.robust for s in seeds] if seeds and all(s.complete for s in seeds) else []
        low, high = self._interval(calibrate, evaluate, robust)
        adaptive = [p for s in seeds for p in s.perturbations if _counts(p, self.label, self.threat)]
        attacked = bool(robust) and any(not p.reason for p in adaptive)
        flags = list(dict.fromkeys([*self.flags, *self.failures]))
        place = 3 if not robust else 2 if self.failures else 1 if INCOMPLETE in flags else 0
        return {
            "robust_accuracy_at_fpr_5": _mean(robust),
            "robust_accuracy_low": low,
            "robust_accuracy_high": high,
            "adaptive_undetected_at_fpr_5": _mean(s.undetected for s in seeds) if attacked else None,
            **self._aurocs(),
            "control_flagged_at_fpr_5": _mean(s.flagged(s.controls()) for s in seeds),
            "benign_flagged_at_fpr_5": _mean(s.flagged(s.benign()) for s in seeds),
            "fpr_realised_5": _mean(float((s.detector.clean > s.threshold).mean()) for s in seeds),
            "surrogate": self.surrogate,
            "flags": "; ".join(" ".join(f.replace(";", ",").split()) for f in flags),
            "seeds": " ".join(str(s.sources.seed) for s in seeds),
            "seed_sd": float(np.std(robust, ddof=1)) if len(robust) > 1 else None,
            "place": place,
        }

    def _interval(
        self, calibrate: Weights, evaluate: Weights, robust: Sequence[float]
    ) -> tuple[float | None, float | None]:
        if not robust:
            return None, None
        thresholds = [
            np.zeros(len(calibrate))
            if self.label == ABLATION
            else resampled_thresholds(s.detector.calibrate, _ALPHA, calibrate)
            for s in self.seeds
        ]
        shares = resampled_shares(thresholds, [s.lower for s in self.seeds], [s.upper for s in self.seeds], evaluate)
        return percentile_interval(shares, _LEVEL, float(np.mean(robust)))

    def _aurocs(self) -> dict[str, Cell]:
        counting: dict[str, list[float]] = {}
        seen: dict[str, list[float]] = {"yes": [], "no": []}
        groups: dict[str, str] = {}
        for s in self.seeds if self.label != ABLATION else ():
            for p in s.perturbations:
                area = s.auroc(p) if p.threatens(self.label) else None
                if area is not None:
                    counting.setdefault(p.label, []).append(area)
                    if p.kind == "attack":
                        groups[p.label] = "no" if s.detector.seen(p) == "no" else "yes"
        means = {label: float(np.mean(areas)) for label, areas in counting.items()}
        for label, group in groups.items():
            seen[group].append(means[label])
        worst = min(means, key=lambda label: (means[label], label), default=None)
        return {
            "worst_auroc": means[worst] if worst is not None else None,
            "worst_perturbation": worst or "",
            "mean_auroc_seen": _mean(seen["yes"]),
            "mean_auroc_unseen": _mean(seen["no"]),
            "n_unseen": len(seen["no"]) if means else None,
        }


def _counts(p: PerturbationResult, detector: str, threat: ThreatModel) -> bool:
    """Whether an adaptive attack says something about a detector under this threat: its norm, no larger budget."""
    within = p.norm == threat.norm and p.eps is not None and p.eps <= threat.eps * (1 + _SAME)
    return p.kind == "adaptive" and p.threatens(detector) and within


def _gaps(seed: SeedResult, detector: DetectorResult, ranked: int, threat: ThreatModel) -> list[str]:
    """Flags for what is missing from the attacks that count for a detector."""
    flags = []
    right = int(seed.sources.evaluate_correct[:ranked].sum())
    counting = [p for p in seed.perturbations if p.threatens(detector.label)]
    adaptive = [p for p in counting if _counts(p, detector.label, threat)]
    if detector.label != ABLATION and not adaptive:
        flags.append(NO_ADAPTIVE)
    elif adaptive and all((p.eps or 0.0) < threat.eps * (1 - _SAME) for p in adaptive):
        flags.append(BELOW_THREAT)
    if adaptive and all(p.reason for p in adaptive):
        flags.append(INCOMPLETE)
    for p in counting:
        if p.reason:
            flags.append(f"{p.label} is missing: {p.reason}")
            continue
        attacked = int((p.index < ranked).sum())
        if attacked < right:
            flags.append(f"{p.label} attacked {attacked} of {right} images")
        if not detector.failure():
            scores, reason = detector.scores(p)
            if scores is None:
                flags.append(f"{p.label} is not scored: {reason}")
    return flags


def _ablation(seed: SeedResult) -> DetectorResult:
    return DetectorResult(
        ABLATION,
        calibrate=np.zeros(len(seed.sources.calibrate_index)),
        clean=np.zeros(len(seed.sources.evaluate_index)),
        perturbed={p.label: np.zeros(len(p.index)) for p in seed.perturbations},
        control={p.label: np.zeros(len(p.control_index)) for p in seed.perturbations},
    )


def _check_seeds(per_seed: Sequence[SeedResult]) -> None:
    first = per_seed[0].sources
    for one in per_seed:
        s = one.sources
        if (s.dataset, s.model) != (first.dataset, first.model):
            raise ValueError("a leaderboard is about one data set and one model")
        if not (
            np.array_equal(s.calibrate_index, first.calibrate_index)
            and np.array_equal(s.evaluate_index, first.evaluate_index)
        ):
            raise ValueError("the seeds have different source images")
        if any(d.label == ABLATION for d in one.detectors):
            raise ValueError(f"{ABLATION!r} is the row that flags nothing: no detector can have this label")


def _mean(values: Iterable[float | None]) -> float | None:
    present = [v for v in values if v is not None]
    return float(np.mean(present)) if present else None
