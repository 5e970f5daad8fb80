"""From thresholds and worst cases per image to what the ranking compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .detection import (
    calibrate_weights,
    evaluate_weights,
    percentile_interval,
    resampled_shares,
    resampled_thresholds,
    threshold,
)
from .ranks import RowSample
from .seeds import seed_interval

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class WorstCase:
    """One seed of one row: for which thresholds t each image is robust, ``lower <= t < upper``.

    Attributes:
        calibrate: scores of the calibrate images, float64 (m,); empty for the row without a detector, whose threshold
            and scores are 0.
        lower: the clean score, float64 (n,); infinite where the model is wrong.
        upper: the lowest score of what fools the model within the threat, float64 (n,); infinite where nothing does.
    """

    calibrate: FloatArray
    lower: FloatArray
    upper: FloatArray


def row_sample(seeds: Sequence[WorstCase], calibrate_images: int, alpha: float = 0.05) -> RowSample:
    """Return whether each image is robust at the calibrated threshold, and the share of them in every resample.

    Calibrate and evaluate images are resampled together, by the same draw for every row and seed of as many images.

    Args:
        seeds: one for each seed, of the same images.
        calibrate_images: their number, which a row without a detector does not tell.
        alpha: the false positive rate of the threshold.

    Raises:
        ValueError: if there is no seed or no image, or too few calibrate images for a threshold.
    """
    known, images = calibrate_weights(calibrate_images), evaluate_weights(len(seeds[0].lower))
    robust, resampled = [], []
    for seed in seeds:
        t, drawn = 0.0, np.zeros(len(known))
        if len(seed.calibrate):
            t, drawn = threshold(seed.calibrate, alpha), resampled_thresholds(seed.calibrate, alpha, known)
        robust.append((seed.lower <= t) & (t < seed.upper))
        resampled.append(resampled_shares([drawn], [seed.lower], [seed.upper], images))
    return RowSample(np.stack(robust), np.stack(resampled))


def row_interval(sample: RowSample, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of a row's robust accuracy: of its images, and with several seeds of these too."""
    per_seed = [float(share) for share in sample.robust.mean(1)]
    low, high = percentile_interval(sample.resampled.mean(0), level, float(np.mean(per_seed)))
    return seed_interval(low, high, per_seed, level, images=sample.robust.shape[1])
