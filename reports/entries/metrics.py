"""The metrics of an entry, from its table of images: by the functions that make the leaderboard."""

from __future__ import annotations

import numpy as np

from ...harness.evaluation.radii import PRICES
from ...harness.evaluation.rankability import ABLATION
from ...harness.statistics.detection import ALPHAS, threshold
from ...harness.statistics.ranks import RowSample
from ...harness.statistics.samples import row_interval
from ..read.scores import sample_of_seeds
from .images import ImageTable
from .schema import Metrics, rounded

DECIDES_NO_NUMBER = True


def sample_of_table(table: ImageTable, detector: str, images: int) -> RowSample | None:
    """Return what the ranking compares; ``None`` where there is no threshold or no image.

    Args:
        table: of the entry.
        detector: its label; ``none`` is the row without a detector.
        images: the number of evaluate images, from the first on, that the figures are about.
    """
    return sample_of_seeds([s.scores for s in table.seeds], images, detector == ABLATION) if table.seeds else None


def metrics_of(table: ImageTable, detector: str, images: int) -> Metrics:
    """Return the metrics; arguments as for :func:`sample_of_table`."""
    sample = sample_of_table(table, detector, images)
    cells: dict[str, float | int | None] = {"n_images": images}
    if sample is not None:
        shares = [float(share) for share in sample.robust.mean(1)]
        low, high = row_interval(sample)
        cells |= {
            "robust_accuracy_at_fpr_5": float(np.mean(shares)),
            "robust_accuracy_low": low,
            "robust_accuracy_high": high,
            "seed_sd": float(np.std(shares, ddof=1)) if len(shares) > 1 else None,
            # No attack can know a detector that is not there.
            "adaptive_undetected_at_fpr_5": None
            if detector == ABLATION
            else _mean(_undetected(table, detector, images)),
            "fpr_realised_5": _mean([float((s.scores.clean > _threshold(s.scores.calibrate, detector)).mean())
                                     for s in table.seeds]),
        }  # fmt: skip
    found = table.distances()
    if found is not None:
        cells |= {name: value for name, value in found.cells().items() if name in PRICES}
    return Metrics.model_validate({k: rounded(v) if isinstance(v, float) else v for k, v in cells.items()})


def _threshold(calibrate: np.ndarray, detector: str) -> float:
    return 0.0 if detector == ABLATION else threshold(calibrate, ALPHAS["5"])


def _undetected(table: ImageTable, detector: str, images: int) -> list[float]:
    """Return by seed the share of right images that something fools unseen."""
    found = []
    for seed in table.seeds:
        right = seed.scores.right[:images]
        if right.any():
            lowest = seed.scores.lowest[:images][right]
            found.append(float((lowest <= _threshold(seed.scores.calibrate, detector)).mean()))
    return found


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
