"""The ranking: one row of ``leaderboard.csv`` per detector, for one data set, model and threat, over all seeds.

An image is robust for the thresholds t with ``clean score <= t < lowest score of what fools the model``: the model is
right, the detector lets the clean image pass, and nothing within the threat both fools the model and passes. Everything
about the worst case follows from these two numbers per image, its resamples included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...attacks.base.kinds import QUARTER
from ..statistics.detection import ALPHAS, MIN_IMAGES, threshold, threshold_reason
from ..statistics.intervals import wilson
from ..statistics.ranks import RowSample
from ..statistics.samples import row_interval, row_sample
from .consistency import consistency_flags
from .csv_files import number_of
from .radii import (
    DISCONTINUOUS,
    PRICES,
    R0_SEARCH,
    UNSEEN,
    Distances,
    Radii,
    both_ranks,
    distances,
    misses,
)
from .rankability import ABLATION, BENIGN_FLAGGED, CONTROL_FLAGGED, TIES, attack_flags, counts, is_upper_bound, reasons
from .results import Cell, FloatArray, SeedResult, ThreatModel
from .seed_scores import SeedScores, ablation
from .verdict import order

_ALPHA = ALPHAS["5"]
# A share of the control, or of harmless images, whose lower bound lies above this is a flag.
_FALSE_ALARMS = 0.5


@dataclass(frozen=True)
class Protocol:
    """What rows of one table share.

    Attributes:
        digest: over data, weights, splits, perturbations, threat, seeds and the protocol's version.
        series: the same without the seeds: single-seed runs of one series can be joined.
    """

    digest: str
    series: str = ""


def leaderboard_rows(
    per_seed: Sequence[SeedResult],
    threat: ThreatModel,
    protocol: Protocol,
    missing: Mapping[int, str] | None = None,
    ranked: int | None = None,
    alarms: int = 0,
) -> list[dict[str, Cell]]:
    """Return the rows of ``leaderboard.csv`` for one data set and model: every detector and ``none``.

    ``none`` flags nothing. A cell is the mean over seeds. t is the threshold at FPR 5 %, calibrated per seed. The
    attacks that count for a detector are those of kind ``attack`` and the adaptive ones made against it, so no number
    depends on which other detectors there are; the rank does.

    - ``robust_accuracy_at_fpr_5``: the share of all evaluate images that the model gets right, whose clean score is at
      most t, and that no counting attack fools within the threat, by measured norm, with a score of at most t: neither
      its images nor these rounded to the levels of image files. Its interval resamples calibrate and evaluate source
      images together, the same draw for all seeds; with several seeds it is widened by their spread.
    - ``robust_accuracy_is_upper_bound``: 1 where an attack of the row was not at its best and some image stands.
    - ``adaptive_undetected_at_fpr_5``: of the evaluate images that the model gets right, the share that some counting
      attack fools unseen within the threat; empty where no adaptive attack against the detector has finished.
    - ``passes_once``, ``passes_majority``: the same, in any of the evaluations of a score that is drawn, as for an
      attacker who submits an image again and again, and in most of them; equal for a score that is not drawn.
    - ``n_images``: how many evaluate images these figures are about. Adaptive attacks are dear, so they may cover only
      the first ``ranked`` of them (a random draw, the same for every row).

    - ``worst_auroc``, ``worst_perturbation``: the smallest mean AUROC (successes against clean) over the counting
      attacks with enough images, whether within the threat or not, as in ``metrics.csv``.
    - ``tpr_at_fpr_1``: the smallest mean share of successes flagged at FPR 1 %, over the same attacks.
    - ``mean_auroc_seen`` (exactly or by family), ``mean_auroc_unseen``, ``n_unseen``: over kind ``attack``.
    - ``control_flagged_at_fpr_5``: the share of the kept controls of all counting attacks with a score > t.
    - ``benign_flagged_at_fpr_5``: the share of the images under noise and corruptions that keep the prediction and
      have a score > t.
    - ``fpr_realised_5``: the share of all clean evaluate images with a score > t.
    - ``reencoded_flagged_at_fpr_5``: of the first 256 evaluate images that the model gets right, before and after they
      were moved by a pixel, saved as JPEG of quality 95 and brightened by 1/255, the share with a score > t.
    - ``shadow_flagged_at_fpr_5``: likewise, after the small change that the run's secret decides.
    - ``shadow_robust``, ``shadow_source_robust``, ``n_shadow``: the share of shadow images that stand an adaptive
      attack, the share of the images that they were made of, and how many pairs these are; empty where so few of the
      latter stand that nothing could be told. Model and detector are right about both of a pair.
    - ``false_alarm_at_quarter_eps``: of the first 64 evaluate images that the model gets right and the detector lets
      pass, the share for which a search found a change of at most a quarter of the budget that is flagged although the
      model is still right; empty where no worst case over all adaptive attacks was made at the budget of the threat.
    - ``flags``: joined by ``; ``. ``seed_sd``: the standard deviation of robust accuracy over seeds.

    - ``price``, ``price_low``, ``price_high``: the median over images of rd / r0, the smallest distance at which
      something fools the model and passes the detector over the smallest at which something fools it, and its interval
      for the given threshold; an empty upper end says that it costs at least that much. ``r0_median``, ``rd_median``
      (empty where half of the images or more are censored). ``n_price``: images that something fools within the large
      budget; of them ``n_rd_censored`` where nothing passes there; ``n_r0_censored``: images that nothing fools.

    ``rank`` is 1 + the number of rows that are significantly better (:func:`..statistics.ranks.ranks`); within rows of
    one rank, the number of rows that are significantly dearer is added (:func:`.radii.price_ranks`). ``accuracy_rank``
    is the rank without the price.
    ``not_ranked_reason`` says why a row has none: the flags that take it away (:mod:`.rankability`), or what failed.
    Where scores of a counting attack are missing there is no robust accuracy, since what slipped past is not known.

    Raises:
        ValueError: if the seeds are of different data sets, models or source images, or a detector is called ``none``.
    """
    if not per_seed:
        return []
    _check_seeds(per_seed)
    first = per_seed[0].sources
    images = len(first.evaluate_index) if ranked is None else min(ranked, len(first.evaluate_index))
    head: dict[str, Cell] = {
        "rank": None,
        "accuracy_rank": None,
        "dataset": first.dataset,
        "model": first.model,
        "detector": "",
        "norm": threat.norm,
        "eps": threat.eps,
    }
    rows: list[dict[str, Cell]] = []
    samples: list[RowSample | None] = []
    radii: list[Distances | None] = []
    for label in [*dict.fromkeys(d.label for s in per_seed for d in s.detectors), ABLATION]:
        row = _Row(label, per_seed, threat, images, alarms)
        radii.append(row.distances)
        row.failures += [f"seed {seed} is missing: {reason}" for seed, reason in (missing or {}).items()]
        sample = row.sample()
        rows.append({**head, "detector": label, **row.cells(sample), "n_images": images,
                     "protocol_digest": protocol.digest, "series_digest": protocol.series})  # fmt: skip
        samples.append(sample)
    return _in_order(rows, samples, radii)


def _in_order(
    rows: list[dict[str, Cell]], samples: Sequence[RowSample | None], radii: Sequence[Distances | None]
) -> list[dict[str, Cell]]:
    """Return rows with their ranks, in the order of the table."""
    able = [i for i, row in enumerate(rows) if not row["not_ranked_reason"] and samples[i] is not None]
    found = both_ranks([sample for i in able if (sample := samples[i]) is not None], [radii[i] for i in able])
    for i, placed in zip(able, found, strict=True):
        rows[i] = {**rows[i], **placed._asdict()}
    return sorted(rows, key=place)


def place(row: Mapping[str, Cell]) -> tuple[object, ...]:
    """Return what rows of a table are sorted by (:func:`.verdict.order`)."""
    robust, rank, price = (row.get(name) for name in ("robust_accuracy_at_fpr_5", "rank", "price"))
    return order(str(row["detector"]), number_of(rank), number_of(robust), number_of(price))


class _Row:
    """One detector over all seeds, or ``none``: a detector that gives every image the score 0 and the threshold 0."""

    def __init__(
        self, label: str, per_seed: Sequence[SeedResult], threat: ThreatModel, ranked: int, alarms: int
    ) -> None:
        self.label, self.threat = label, threat
        self.flags: list[str] = []
        self.failures: list[str] = []
        self.surrogate = ABLATION
        self.seeds: list[SeedScores] = []
        self.alone: list[Radii] = []
        for one in per_seed:
            own = (d for d in one.detectors if d.label == label)
            found = ablation(one, alarms) if label == ABLATION else next(own, None)
            if found is None:
                self.failures.append(f"seed {one.sources.seed} is missing")
                continue
            self.surrogate = found.surrogate
            self.flags += [*found.flags, *attack_flags(one, found, ranked, threat)]
            self.flags += consistency_flags(found, one.perturbations) if label != ABLATION else ()
            count = len(found.calibrate)
            failure = found.failure() or (threshold_reason(count, _ALPHA) if label != ABLATION else None)
            if failure:
                self.failures.append(failure)
                continue
            t = 0.0 if label == ABLATION else threshold(found.calibrate, _ALPHA)
            self.flags += found.variants.flags(t)
            self.seeds.append(SeedScores.of(one.sources, found, t, one.perturbations, threat, ranked))
            self.alone.append(one.alone)
        self.distances = self._distances()

    def _distances(self) -> Distances | None:
        """Return how far images have to be moved, after saying what is doubtful about that."""
        own = [s.detector.radii for s in self.seeds]
        # A model without gradients is flagged as such, and has no search.
        self.flags += [f"{UNSEEN}: {r}" for s in self.seeds if (r := s.detector.radii.reason) and s.sources.gradient]
        self.flags += [R0_SEARCH] if any(misses(a, o) for a, o in zip(self.alone, own, strict=True)) else []
        found = distances(self.alone, own)
        self.flags += [DISCONTINUOUS] if found is not None and found.jumps(self.threat.eps) else []
        return found

    def sample(self) -> RowSample | None:
        """Return what its robust accuracy, the interval and the comparison with other rows are made from."""
        attacked = any(p.threatens(self.label) and not p.inapplicable for s in self.seeds for p in s.perturbations)
        if not self.seeds or not all(s.complete for s in self.seeds) or (self.label == ABLATION and not attacked):
            return None
        if not len(self.seeds[0].lower):
            return None
        images = len(self.seeds[0].sources.calibrate_index)
        return row_sample([s.worst_case for s in self.seeds], images, _ALPHA)

    def cells(self, sample: RowSample | None) -> dict[str, Cell]:
        """Return the cells of the row that need measuring."""
        seeds = self.seeds
        robust = [] if sample is None else [float(of) for of in sample.robust.mean(1)]
        adaptive = [p for s in seeds for p in s.perturbations if counts(p, self.label, self.threat)]
        attacked = bool(robust) and any(not p.reason for p in adaptive)
        control, benign = self._flagged(SeedScores.controls), self._flagged(SeedScores.benign)
        doubts = [CONTROL_FLAGGED] if control.low > _FALSE_ALARMS else []
        doubts += [BENIGN_FLAGGED] if benign.low > _FALSE_ALARMS else []
        doubts += [TIES] if any(s.ties for s in seeds) else []
        flags = list(dict.fromkeys([*self.flags, *doubts, *self.failures]))
        why = reasons(flags, self.failures) if robust else reasons(flags, self.failures) or flags
        low, high = (None, None) if sample is None else row_interval(sample)
        return {
            "robust_accuracy_at_fpr_5": _mean(robust),
            "robust_accuracy_low": low,
            "robust_accuracy_high": high,
            "robust_accuracy_is_upper_bound": int(is_upper_bound(flags, max(robust))) if robust else None,
            "adaptive_undetected_at_fpr_5": _mean(s.undetected for s in seeds) if attacked else None,
            **self._by_attack(),
            "control_flagged_at_fpr_5": control.share,
            "benign_flagged_at_fpr_5": benign.share,
            "fpr_realised_5": _mean(float((s.detector.clean > s.threshold).mean()) for s in seeds),
            "surrogate": self.surrogate,
            "flags": _joined(flags),
            "not_ranked_reason": _joined(why) if why or robust else "no robust accuracy",
            "seeds": " ".join(str(s.sources.seed) for s in seeds),
            "seed_sd": float(np.std(robust, ddof=1)) if len(robust) > 1 else None,
            "reencoded_flagged_at_fpr_5": _mean(s.detector.variants.flagged("re-encoded", s.threshold) for s in seeds),
            **self._shadows(),
            **(self.distances.cells() if self.distances is not None else dict.fromkeys(PRICES)),
            "passes_once": _mean(s.undetected_once for s in seeds) if attacked else None,
            "passes_majority": _mean(s.undetected for s in seeds) if attacked else None,
            "false_alarm_at_quarter_eps": _mean(s.detector.alarms.share(QUARTER * self.threat.eps) for s in seeds),
        }

    def _shadows(self) -> dict[str, Cell]:
        """Return what is known of shadow images, the means over seeds of the attack with the largest lead."""
        worst = [w for s in self.seeds if (w := s.detector.variants.worst()) is not None]
        return {
            "shadow_flagged_at_fpr_5": _mean(s.detector.variants.flagged("shadow", s.threshold) for s in self.seeds),
            "shadow_robust": _mean(float(w.shadow.mean()) for w in worst),
            "shadow_source_robust": _mean(float(w.original.mean()) for w in worst),
            "n_shadow": int(np.mean([len(w.shadow) for w in worst])) if worst else None,
        }

    def _flagged(self, of: Callable[[SeedScores], Iterable[FloatArray]]) -> _FalseAlarms:
        """Return the mean share over seeds of some images that are flagged, and its lower 95 % bound."""
        shares, images = [], []
        for seed in self.seeds:
            pooled = np.concatenate([np.zeros(0), *of(seed)])
            if len(pooled) >= MIN_IMAGES:
                shares.append(float((pooled > seed.threshold).mean()))
                # Several attacks have controls of the same images: no more of them than there are images.
                images.append(min(len(pooled), len(seed.sources.evaluate_index)))
        share = _mean(shares)
        if share is None or min(images) < MIN_IMAGES:
            return _FalseAlarms(share, 0.0)
        return _FalseAlarms(share, wilson(share, min(images))[0])

    def _by_attack(self) -> dict[str, Cell]:
        areas: dict[str, list[float]] = {}
        rates: dict[str, list[float]] = {}
        groups: dict[str, str] = {}
        for s in self.seeds if self.label != ABLATION else ():
            for p in s.perturbations:
                area = s.auroc(p) if p.threatens(self.label) else None
                if area is not None:
                    areas.setdefault(p.label, []).append(area)
                    if p.kind == "attack":
                        groups[p.label] = "no" if s.detector.seen(p) == "no" else "yes"
                rate = s.tpr(p, ALPHAS["1"]) if p.threatens(self.label) else None
                if rate is not None:
                    rates.setdefault(p.label, []).append(rate)
        means = {label: float(np.mean(found)) for label, found in areas.items()}
        seen = {kind: [means[label] for label, group in groups.items() if group == kind] for kind in ("yes", "no")}
        worst = min(means, key=lambda label: (means[label], label), default=None)
        return {
            "worst_auroc": means[worst] if worst is not None else None,
            "worst_perturbation": worst or "",
            "mean_auroc_seen": _mean(seen["yes"]),
            "mean_auroc_unseen": _mean(seen["no"]),
            "n_unseen": len(seen["no"]) if means else None,
            "tpr_at_fpr_1": min((float(np.mean(found)) for found in rates.values()), default=None),
        }


@dataclass(frozen=True)
class _FalseAlarms:
    """A share of harmless images that are flagged, and its lower bound."""

    share: float | None
    low: float


def _joined(texts: Iterable[str]) -> str:
    return "; ".join(" ".join(text.replace(";", ",").split()) for text in dict.fromkeys(texts))


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
