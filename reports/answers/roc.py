"""The ROC curve of one detector on one perturbation, with the point of its calibrated threshold."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...harness.core.errors import UsageError
from ...harness.statistics.detection import MIN_IMAGES, auroc, auroc_interval
from ...harness.statistics.paired import roc_points
from ..read.frames import RunTables
from .measured import Side
from .names import detector_of, model_of, perturbation_of, seed_of
from .selection import thresholds

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Roc:
    """A ROC curve: images that fool the model against clean ones that the model gets right.

    Attributes:
        detector: its label.
        perturbation: its label.
        model: its label.
        seed: of the run.
        fpr: false positive rates, float64 (k,), rising from 0 to 1.
        tpr: true positive rates, float64 (k,).
        scores: above which an image is flagged at each point, float64 (k,).
        auroc: the area under the curve.
        interval: its 95 % interval.
        threshold: that at FPR 5 %, from the calibrate images; NaN where these are too few.
        at_threshold: (fpr, tpr) at it, on these images.
        n_positive: number of images that fool the model.
        n_negative: number of clean images.
    """

    detector: str
    perturbation: str
    model: str
    seed: int
    fpr: FloatArray = field(repr=False)
    tpr: FloatArray = field(repr=False)
    scores: FloatArray = field(repr=False)
    auroc: float
    interval: tuple[float, float]
    threshold: float
    at_threshold: tuple[float, float]
    n_positive: int
    n_negative: int


def roc(tables: RunTables, detector: str, perturbation: str, model: str | None = None, seed: int | None = None) -> Roc:
    """Return the ROC curve of a detector on a perturbation.

    Args:
        tables: of the run.
        detector: its label.
        perturbation: its label, or that before budgets were expanded.
        model: its label; may be left out where there is one.
        seed: by default the first one.

    Raises:
        UsageError: for a name that the run does not have, or fewer than 30 images on either side.
    """
    detector, model, seed = detector_of(tables, detector), model_of(tables, model), seed_of(tables, seed)
    perturbation = perturbation_of(tables, perturbation, detector)
    found = Side(tables, model, detector).scored(perturbation, [seed])
    if found is None:
        raise UsageError(
            f"There is no ROC curve of {detector} on {perturbation} ({model}, seed {seed}): it needs the scores of "
            f"{MIN_IMAGES} images that fool the model and of {MIN_IMAGES} clean ones."
        )
    (scored,) = found
    fpr, tpr, scores = roc_points(scored.positive, scored.negative)
    ends = auroc_interval(
        scored.positive, scored.negative, positive_source=scored.positive_source,
        negative_source=scored.negative_source,
    )  # fmt: skip
    t = thresholds(tables, model, seed, [detector])[detector]
    at = (float((scored.negative > t).mean()), float((scored.positive > t).mean()))
    return Roc(
        detector, perturbation, model, seed, fpr, tpr, scores, auroc(scored.positive, scored.negative), ends, t,
        at if np.isfinite(t) else (float("nan"), float("nan")), len(scored.positive), len(scored.negative),
    )  # fmt: skip
