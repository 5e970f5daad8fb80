"""One side of a comparison: what a run measured of one model and detector, as paired tests need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...harness.evaluation.radii import Distances
from ...harness.evaluation.tables import NORMS
from ...harness.statistics.detection import MIN_IMAGES
from ...harness.statistics.paired import Scored
from ...harness.statistics.ranks import RowSample
from ..read.distances import published_distances
from ..read.frames import RunTables, only
from ..read.run_directory import read_run
from ..read.scores import sample_of
from .selection import FLAGGED

if TYPE_CHECKING:
    import pandas

IntArray = NDArray[np.int64]
ATTACKS = ("attack", "adaptive")


@dataclass(frozen=True)
class Side:
    """A model and detector of a run.

    Attributes:
        tables: of the run.
        model: its label.
        detector: its label; ``none`` for the row without a detector.
    """

    tables: RunTables
    model: str
    detector: str

    @cached_property
    def row(self) -> Mapping[str, Any]:
        """The row of the leaderboard; empty where there is none."""
        found = only(self.tables.leaderboard, model=self.model, detector=self.detector)
        return {} if found.empty else dict(found.iloc[0])

    def number(self, column: str) -> float:
        """Return a number of the row, NaN where it has none."""
        value = self.row.get(column)
        return float("nan") if value is None else float(value)

    @cached_property
    def scores(self) -> pandas.DataFrame:
        """The scores of the model's images."""
        return only(self.tables.scores, model=self.model)

    @cached_property
    def own(self) -> pandas.DataFrame:
        """Those that the detector gave."""
        return only(self.scores, detector=self.detector)

    @cached_property
    def kinds(self) -> dict[str, str]:
        """The kind of every perturbation, by label."""
        rows = only(self.tables.perturbations, model=self.model)
        return dict(zip(rows["perturbation"], rows["kind"], strict=True))

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds that it was scored with."""
        return sorted(int(s) for s in self.own["seed"].unique())

    @cached_property
    def sample(self) -> RowSample | None:
        """What the board's test of robust accuracy compares; ``None`` where the row has no robust accuracy."""
        images, norm = self.number("n_images"), str(self.row.get("norm"))
        if not np.isfinite([images, self.number("robust_accuracy_at_fpr_5")]).all() or norm not in NORMS:
            return None
        return sample_of(self.scores, self.detector, self.kinds, norm, self.number("eps"), int(images))

    def scored(self, perturbation: str, seeds: Sequence[int] | None = None) -> list[Scored] | None:
        """Return the successes of a perturbation against the clean images that the model gets right, by seed.

        ``None`` where there are too few of either, or a score is missing.

        Args:
            perturbation: its label.
            seeds: which; by default all.
        """
        found = []
        for seed in self.seeds if seeds is None else seeds:
            of_seed = only(self.own, seed=seed)
            clean = of_seed[of_seed["set"] == "clean"]
            clean = clean[clean["label"] == clean["prediction"]]
            hit = of_seed[(of_seed["set"] == "perturbed") & (of_seed["perturbation"] == perturbation)]
            hit = hit[hit["success"] == 1]
            if min(len(clean), len(hit)) < MIN_IMAGES or clean["score"].isna().any() or hit["score"].isna().any():
                return None
            found.append(
                Scored(*(of["score"].to_numpy(np.float64) for of in (hit, clean)),
                       *(of["index"].to_numpy(np.int64) for of in (hit, clean)))
            )  # fmt: skip
        return found or None

    def per_image(self, perturbation: str, what: str) -> pandas.Series[Any]:
        """Return by seed and image whether something holds of the attacked images, 0 or 1; without missing ones.

        Args:
            perturbation: its label.
            what: ``success``, ``flagged`` (of what fools the model) or ``undetected`` (fools the model and passes).
        """
        rows = only(self.own, perturbation=perturbation, set="perturbed").set_index(["seed", "index"])
        if what == "success":
            return rows["success"].dropna().astype(np.int64)
        rows = rows[rows[FLAGGED].notna() & rows["success"].notna()]
        if what == "flagged":
            return rows.loc[rows["success"] == 1, FLAGGED].astype(np.int64)
        return ((rows["success"] == 1) & (rows[FLAGGED] == 0)).astype(np.int64)

    @cached_property
    def sources(self) -> tuple[bytes, bytes]:
        """The positions and classes of the evaluate and of the calibrate images: equal where the images are."""
        first = only(self.own, seed=self.seeds[0]) if self.seeds else self.own
        columns = ["index", "label"]
        evaluate, calibrate = (
            first.loc[first["set"] == name, columns].to_numpy(np.int64).tobytes() for name in ("clean", "calibrate")
        )
        return evaluate, calibrate


def distances(tables: RunTables, model: str, detectors: list[str]) -> list[Distances | None]:
    """Return the distances of some rows of one model, of the same images and seeds in the same order."""
    rows = [r for r in read_run(tables.folder).rows("radii") if r.text("model") == model]
    return published_distances(rows, detectors)
