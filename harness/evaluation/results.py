"""What was measured for one data set, model and seed, as plain arrays: the input of every table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...attacks.base.kinds import Effort
from ..statistics.detection import MIN_IMAGES
from .alarms import Alarms, within_reach
from .radii import Radii
from .shadows import Variants

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

Cell = str | int | float | None


def _whole() -> IntArray:
    return np.zeros(0, np.int64)


def _share() -> BoolArray:
    return np.zeros(0, np.bool_)


def _real() -> FloatArray:
    return np.zeros(0, np.float64)


@dataclass(frozen=True, eq=False)
class Sources:
    """The source images of one data set, model and seed, and what the model says about them unperturbed.

    Attributes:
        dataset: its name.
        model: its label.
        seed: the run's seed.
        calibrate_index: int (m,), the position of each calibrate image in its split, as ``scores.csv`` shows it.
        calibrate_label: int (m,), true classes.
        calibrate_prediction: int (m,), the model's classes.
        evaluate_index: int (e,), like ``calibrate_index``.
        evaluate_label: int (e,).
        evaluate_prediction: int (e,).
        gradient: whether the model gives a gradient with respect to its input.
        flags: what is doubtful about the model itself.
    """

    dataset: str
    model: str
    seed: int
    calibrate_index: IntArray
    calibrate_label: IntArray
    calibrate_prediction: IntArray
    evaluate_index: IntArray
    evaluate_label: IntArray
    evaluate_prediction: IntArray
    gradient: bool = True
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for split in ("calibrate", "evaluate"):
            count = len(getattr(self, f"{split}_index"))
            for what in ("label", "prediction"):
                _fits(f"{split}_{what}", getattr(self, f"{split}_{what}"), count)

    @property
    def calibrate_correct(self) -> BoolArray:
        """(m,), whether the model gets the calibrate image right."""
        return np.asarray(self.calibrate_label == self.calibrate_prediction)

    @property
    def evaluate_correct(self) -> BoolArray:
        """(e,), whether the model gets the evaluate image right."""
        return np.asarray(self.evaluate_label == self.evaluate_prediction)


@dataclass(frozen=True, eq=False)
class RoundedResult:
    """A perturbation's images rounded to the levels that image files or the data have, measured again.

    Attributes:
        how: ``8-bit``, or ``levels``: the data's own, where it has fewer than 256.
        prediction: int (n,), the model's classes, in the order of the perturbation's ``index``.
        success: bool (n,), whether they are wrong.
        norms: by name: float (n,), measured after rounding.
        reason: why there is none; all arrays are empty then.
    """

    how: str
    prediction: IntArray = field(default_factory=_whole)
    success: BoolArray = field(default_factory=_share)
    norms: Mapping[str, ArrayLike] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, eq=False)
class PerturbationResult:
    """What one perturbation did to the evaluate images of one model and seed.

    Attributes:
        label: its label; ``<label>@<detector>`` for an adaptive one.
        kind: noise, corruption, attack or adaptive.
        family: perturbations of one family count as seen together.
        library: the package whose code ran.
        norm: the norm that the budget is about; empty where there is none.
        eps: the budget, if any.
        against: the detector that an adaptive attack was made against; ``None`` for every other kind.
        index: int (n,), positions among the evaluate images (0 to e − 1, each at most once) of those that were
            attacked; the model is right on all of them.
        prediction: int (n,), the model's classes of the perturbed images.
        success: bool (n,), whether the image is misclassified.
        norms: by ``l0``, ``l1``, ``l2`` and ``linf``: float (n,), the measured norm of x' − x.
        control_index: int (k,), positions among the evaluate images, a part of ``index[success]``: the positives whose
            control of equal norm kept the clean prediction.
        forwards: passes through the model per attacked image.
        backwards: gradients per attacked image.
        flags: sanity flags.
        group: the label before budgets were expanded; perturbations of one group and target form a budget curve.
        box: ``white`` or ``black``; empty where that is not known or makes no sense.
        one_step: it takes a single gradient step.
        late: successes found only in the last quarter of its passes.
        parts: of an adaptive attack, how many of the successes each of its parts made.
        follows: of an adaptive attack, how well what it followed ranks like the true score, by name, three digits.
        effort: of an adaptive attack, what it invests per image; ``None`` where it does not say.
        told: of an adaptive attack, the true scores that it was told of its final images: float (k, n), one row for
            each time that it asked; NaN where it was told nothing.
        questions: of an adaptive attack, the true scores that it was told of fooling images on its way, and those that
            a process without an attack gives: float (2, k).
        questions_reason: why that process gave none, where the detector is to blame.
        canary: of an adaptive attack, the share of the harness's own images that stand it, beside every detector; an
            attack that works leaves none. ``None`` where it is not known.
        rounded: the same images rounded to the levels of image files.
        reason: why nothing was measured (inapplicable, skipped or failed); all arrays are empty then.
        inapplicable: it is not defined for the shape of the task (``reason`` says why): it counts for no detector.
    """

    label: str
    kind: str
    family: str
    library: str
    norm: str = ""
    eps: float | None = None
    against: str | None = None
    index: IntArray = field(default_factory=_whole)
    prediction: IntArray = field(default_factory=_whole)
    success: BoolArray = field(default_factory=_share)
    norms: Mapping[str, ArrayLike] = field(default_factory=dict)
    control_index: IntArray = field(default_factory=_whole)
    forwards: float | None = None
    backwards: float | None = None
    flags: tuple[str, ...] = ()
    reason: str = ""
    inapplicable: bool = False
    group: str = ""
    box: str = ""
    one_step: bool = False
    late: int = 0
    parts: Mapping[str, int] = field(default_factory=dict)
    follows: Mapping[str, float] = field(default_factory=dict)
    effort: Effort | None = None
    told: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))
    questions: FloatArray = field(default_factory=lambda: np.zeros((2, 0)))
    questions_reason: str = ""
    canary: float | None = None
    rounded: Sequence[RoundedResult] = ()

    def __post_init__(self) -> None:
        if (self.kind == "adaptive") != (self.against is not None):
            raise ValueError(f"{self.label}: an adaptive perturbation is made against a detector, and no other kind is")
        count = len(self.index)
        if self.inapplicable and not self.reason:
            raise ValueError(f"{self.label} is inapplicable without a reason")
        if self.reason and count:
            raise ValueError(f"{self.label} has images and a reason for having none")
        for name, values in (("prediction", self.prediction), ("success", self.success), *self.norms.items()):
            _fits(f"{self.label}: {name}", np.asarray(values), count)
        for r in self.rounded:
            for name, values in (("prediction", r.prediction), ("success", r.success), *r.norms.items()):
                _fits(f"{self.label}, {r.how}: {name}", np.asarray(values), 0 if r.reason else count)
        if len(np.unique(self.index)) != count:
            raise ValueError(f"{self.label} holds an image twice")
        if not np.isin(self.control_index, self.index[self.success]).all():
            raise ValueError(f"{self.label} has a control of an image on which it did not succeed")

    def threatens(self, detector: str) -> bool:
        """Return whether it counts in the ranking of ``detector``: any attack, and the adaptive ones made against it.

        An attack that is not defined for the task counts for none.
        """
        if self.inapplicable:
            return False
        return self.kind == "attack" or (self.kind == "adaptive" and self.against == detector)


@dataclass(frozen=True)
class Threat:
    """What the ranking is about: perturbed images beyond it are shown, not ranked.

    Attributes:
        norm: ``linf``, ``l2``, ``l1`` or ``l0``.
        eps: the largest measured norm of x' − x that counts.
    """

    norm: str
    eps: float


class ThreatModel(Protocol):
    """Anything with the attributes of :class:`Threat`."""

    @property
    def norm(self) -> str: ...

    @property
    def eps(self) -> float: ...


def within(threat: ThreatModel, perturbed: PerturbationResult | RoundedResult) -> BoolArray:
    """Return which perturbed images keep to the threat by measured norm, bool (n,), float32 rounding allowed for.

    Raises:
        ValueError: if they were not measured in the threat's norm.
    """
    if not len(perturbed.success):
        return np.zeros(0, np.bool_)
    if threat.norm not in perturbed.norms:
        raise ValueError(f"The images were not measured in the threat's norm {threat.norm}")
    return within_reach(np.asarray(perturbed.norms[threat.norm], dtype=np.float64), threat.eps)


@dataclass(frozen=True, eq=False)
class Rescored:
    """Scores of one set asked for again.

    Attributes:
        rows: int (r,), positions among the set's images.
        scores: by context, float (evaluations, r): ``process`` and ``attack``; and ``same`` (the same question),
            ``order``, ``batch`` and ``gradients`` where something of these matters.
        reasons: by context, why the detector gave no scores; empty where no other process has it.
    """

    rows: IntArray
    scores: Mapping[str, FloatArray] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class DetectorResult:
    """The raw scores of one detector for one model and seed.

    Attributes:
        label: its label.
        fit_on: labels of the perturbations that it learned from, budgets expanded.
        fit_families: the families of those.
        surrogate: exact, relaxed, straight-through or none.
        calibrate: float (m,), scores of all calibrate images.
        clean: float (e,), scores of all evaluate images.
        perturbed: by a perturbation's label: float (n,), in the order of its ``index``.
        control: by a perturbation's label: float (k,), in the order of its ``control_index``.
        rounded: by a perturbation's label and the kind of rounding: float (n,), in the order of its ``index``.
        rescored: by ``calibrate``, ``clean``, a perturbation's label, ``control:<label>`` or ``<rounding>:<label>``:
            scores asked for again.
        randomised: whether it declares that its score is drawn.
        variants: what it says of variants of the evaluate images.
        radii: how far images have to be moved so that they fool the model and pass it.
        alarms: what small changes make it flag although the model is right.
        reasons: by a perturbation's label, why its scores are missing.
        reason: why the detector has no scores at all (the fit failed).
        flags: sanity flags; ``adaptive-incomplete`` puts the row below the ranked ones.
    """

    label: str
    fit_on: tuple[str, ...] = ()
    fit_families: frozenset[str] = frozenset()
    surrogate: str = "none"
    calibrate: FloatArray = field(default_factory=_real)
    clean: FloatArray = field(default_factory=_real)
    perturbed: Mapping[str, FloatArray] = field(default_factory=dict)
    control: Mapping[str, FloatArray] = field(default_factory=dict)
    rounded: Mapping[tuple[str, str], FloatArray] = field(default_factory=dict)
    rescored: Mapping[str, Rescored] = field(default_factory=dict)
    randomised: bool = False
    variants: Variants = field(default_factory=Variants)
    radii: Radii = field(default_factory=Radii)
    alarms: Alarms = field(default_factory=Alarms)
    reasons: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # A float32 score must meet its threshold in one precision.
        for name in ("calibrate", "clean"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))

    def failure(self) -> str:
        """Return why none of its scores can be used: the fit failed, or a clean score is not finite; else empty."""
        if self.reason:
            return self.reason
        return not_finite(self.calibrate, "calibrate") or not_finite(self.clean, "clean evaluate")

    def scores(self, perturbation: PerturbationResult) -> tuple[FloatArray | None, str]:
        """Return the scores of the perturbed images, or ``None`` and why they cannot be used."""
        return self._usable(self.perturbed, perturbation.label, "perturbed")

    def control_scores(self, perturbation: PerturbationResult) -> tuple[FloatArray | None, str]:
        """Return the scores of the control images, or ``None`` and why they cannot be used."""
        return self._usable(self.control, perturbation.label, "control")

    def rounded_scores(self, perturbation: PerturbationResult, how: str) -> tuple[FloatArray | None, str]:
        """Return the scores of the rounded images, or ``None`` and why they cannot be used."""
        found = self.rounded.get((perturbation.label, how))
        if found is None:
            return None, "the rounded images were not scored"
        reason = not_finite(found, "rounded")
        return (None, reason) if reason else (np.asarray(found, dtype=np.float64), "")

    def of(self, source: str) -> FloatArray | None:
        """Return the stored scores of a source as :attr:`rescored` names it."""
        if source in ("calibrate", "clean"):
            return self.calibrate if source == "calibrate" else self.clean
        kind, _, label = source.rpartition(":")
        if kind == "control":
            found = self.control.get(label)
        else:
            found = self.rounded.get((label, kind)) if kind else self.perturbed.get(label)
        return None if found is None else np.asarray(found, dtype=np.float64)

    def seen(self, perturbation: PerturbationResult) -> str:
        """Return whether it learned from the perturbation: ``exact``, ``family`` or ``no``."""
        if perturbation.label in self.fit_on:
            return "exact"
        return "family" if perturbation.family in self.fit_families else "no"

    def _usable(self, scores: Mapping[str, FloatArray], label: str, what: str) -> tuple[FloatArray | None, str]:
        if label not in scores:
            return None, self.reasons.get(label) or f"the {what} images were not scored"
        reason = not_finite(scores[label], what)
        return (None, reason) if reason else (np.asarray(scores[label], dtype=np.float64), "")


@dataclass(frozen=True, eq=False)
class SeedResult:
    """Everything that one seed measured for one data set and model.

    Attributes:
        alone: how far images have to be moved so that they fool the model.

    Raises:
        ValueError: if the arrays do not fit each other.
    """

    sources: Sources
    perturbations: Sequence[PerturbationResult]
    detectors: Sequence[DetectorResult]
    alone: Radii = field(default_factory=Radii)

    def __post_init__(self) -> None:
        check(self.sources, self.perturbations, self.detectors)


def check(sources: Sources, perturbations: Sequence[PerturbationResult], detectors: Sequence[DetectorResult]) -> None:
    """Refuse arrays that do not fit each other.

    Raises:
        ValueError: naming what does not fit.
    """
    right = sources.evaluate_correct
    for p in perturbations:
        if len(p.index) and (p.index.min() < 0 or p.index.max() >= len(right) or not right[p.index].all()):
            raise ValueError(f"{p.label} holds an image that is not an evaluate image or that the model gets wrong")
    for d in detectors:
        if d.reason:
            continue
        _fits(f"{d.label}: calibrate", d.calibrate, len(sources.calibrate_index))
        _fits(f"{d.label}: clean", d.clean, len(right))
        for p in perturbations:
            if p.label in d.perturbed:
                _fits(f"{d.label}: {p.label}", d.perturbed[p.label], len(p.index))
            if p.label in d.control:
                _fits(f"{d.label}: control of {p.label}", d.control[p.label], len(p.control_index))
            for r in p.rounded:
                if (p.label, r.how) in d.rounded:
                    _fits(f"{d.label}: {p.label}, {r.how}", d.rounded[p.label, r.how], len(r.success))


def shortage(count: int, what: str) -> str:
    """Return a reason if there are fewer than :data:`MIN_IMAGES`, else an empty string."""
    return f"{count} {what}, {MIN_IMAGES} are needed" if count < MIN_IMAGES else ""


def not_finite(scores: FloatArray, what: str) -> str:
    """Return a reason if any score is NaN or infinite, else an empty string."""
    bad = int((~np.isfinite(scores)).sum())
    return f"{bad} of {len(scores)} {what} scores are not finite" if bad else ""


def _fits(name: str, values: NDArray[np.generic], count: int) -> None:
    if values.shape != (count,):
        raise ValueError(f"{name} has the shape {values.shape}, not ({count},)")
