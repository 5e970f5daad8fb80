"""Which perturbed images: those of one perturbation that fool the model, that a detector misses, of a class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...harness.core.errors import UsageError
from ...harness.statistics.detection import ALPHAS, threshold, threshold_reason
from ..read.frames import RunTables, only
from .names import class_of, detector_of, model_of, perturbation_of, seed_of

if TYPE_CHECKING:
    import pandas

Outcome = Literal["success", "failed", "all"]
OUTCOMES: tuple[Outcome, ...] = ("success", "failed", "all")
FLAGGED = "flagged_at_fpr_5"


@dataclass(frozen=True, eq=False)
class Selection:
    """Perturbed images of one model, seed and perturbation, in the order of the evaluate set.

    Attributes:
        dataset: its name.
        model: its label.
        seed: of the run.
        perturbation: its label.
        images: a row for each image: ``index`` (position in the test split), ``label``, ``clean_prediction``,
            ``prediction``, ``success``, ``l0``, ``l1``, ``l2``, ``linf``.
        scores: by detector: float64 (n,), NaN where it gave none.
        flagged: by detector: bool (n,), whether the score is above the threshold at FPR 5 %.
        thresholds: by detector; NaN where the calibrate images are too few for one.
    """

    dataset: str
    model: str
    seed: int
    perturbation: str
    images: pandas.DataFrame
    scores: Mapping[str, NDArray[np.float64]]
    flagged: Mapping[str, NDArray[np.bool_]]
    thresholds: Mapping[str, float]

    def __len__(self) -> int:
        return len(self.images)


def select(
    tables: RunTables,
    perturbation: str,
    *,
    missed_by: str | None = None,
    cls: str | int | None = None,
    model: str | None = None,
    seed: int | None = None,
    outcome: Outcome = "success",
    limit: int | None = None,
) -> Selection:
    """Return perturbed images and what the detectors say of them.

    Args:
        tables: of the run.
        perturbation: its label, or that before budgets were expanded (:func:`~.names.perturbation_of`).
        missed_by: keep what this detector does not flag.
        cls: keep images of this true class, by name or number.
        model: its label; may be left out where there is one.
        seed: by default the first one.
        outcome: ``success``: images that fool the model; ``failed``: images that do not; ``all``.
        limit: maximum number of images, from the first on.

    Raises:
        UsageError: for a name that the run does not have, or where no detector scored the images.
    """
    if outcome not in OUTCOMES:
        raise UsageError(f"outcome = {outcome!r}: give one of {', '.join(OUTCOMES)}.")
    if limit is not None and limit < 1:
        raise UsageError(f"limit = {limit}: give a number of at least 1.")
    model, seed = model_of(tables, model), seed_of(tables, seed)
    missed_by = None if missed_by is None else detector_of(tables, missed_by)
    perturbation = perturbation_of(tables, perturbation, missed_by)
    wanted = None if cls is None else class_of(tables, cls)
    rows = only(tables.scores, model=model, seed=seed, perturbation=perturbation, set="perturbed")
    if rows.empty:
        raise UsageError(_why_none(tables, model, seed, perturbation))
    images = rows[rows["detector"] == rows["detector"].iloc[0]].drop_duplicates("index")
    keep = np.ones(len(images), np.bool_)
    if outcome != "all":
        keep &= (images["success"] == (outcome == "success")).to_numpy()
    if wanted is not None:
        keep &= (images["label"] == wanted).to_numpy()
    by_detector = {str(d): of.drop_duplicates("index").set_index("index") for d, of in rows.groupby("detector")}
    if missed_by is not None:
        if missed_by not in by_detector:
            raise UsageError(f"{missed_by} did not score the images of {perturbation}: see its row in the report.")
        keep &= (by_detector[missed_by][FLAGGED].reindex(images["index"]) == 0).to_numpy()
    images = images[keep].head(limit) if limit is not None else images[keep]
    columns = ["index", "label", "clean_prediction", "prediction", "success", "l0", "l1", "l2", "linf"]
    index = images["index"]
    return Selection(
        str(rows["dataset"].iloc[0]), model, seed, perturbation,
        images[columns].reset_index(drop=True),
        {d: of["score"].reindex(index).to_numpy(np.float64) for d, of in by_detector.items()},
        {d: (of[FLAGGED].reindex(index) == 1).to_numpy() for d, of in by_detector.items()},
        thresholds(tables, model, seed, list(by_detector)),
    )  # fmt: skip


def thresholds(tables: RunTables, model: str, seed: int, detectors: list[str]) -> dict[str, float]:
    """Return the threshold at FPR 5 % of each detector, NaN where there is none."""
    calibrate = only(tables.scores, model=model, seed=seed, set="calibrate")
    found: dict[str, float] = {}
    for detector in detectors:
        scores = calibrate.loc[calibrate["detector"] == detector, "score"].to_numpy(np.float64)
        usable = np.isfinite(scores).all() and not threshold_reason(len(scores), ALPHAS["5"])
        found[detector] = threshold(scores, ALPHAS["5"]) if usable else float("nan")
    return found


def _why_none(tables: RunTables, model: str, seed: int, perturbation: str) -> str:
    row: Any = only(tables.perturbations, model=model, seed=seed, perturbation=perturbation)
    where = f"{perturbation} on {model}, seed {seed}"
    reason = row["reason"].dropna()
    if len(reason):
        return f"There are no images of {where}: {reason.iloc[0]}."
    return f"No detector of {tables.folder} scored the images of {where}, so its tables hold none of them."
