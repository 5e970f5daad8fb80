"""Coverage of the interval over images and seeds, as the leaderboard forms it.

Minutes long; runs only with AFTERSHOCK_SIMULATION=1. AFTERSHOCK_REPETITIONS sets the repetitions (500).
The true value is the expectation of robust accuracy over images and seeds. Seeds differ in how far the perturbed scores
are shifted, with a standard deviation given in those of the score: 1 spreads the robust accuracy of single seeds around
0.5 over nearly all of [0, 1]. Their scores of an image share 60 % of their variance.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
from aftershock.harness.statistics.detection import (
    calibrate_weights,
    evaluate_weights,
    percentile_interval,
    resampled_shares,
    resampled_thresholds,
    threshold,
)
from aftershock.harness.statistics.seeds import seed_interval
from scipy.stats import norm

pytestmark = pytest.mark.skipif(
    os.environ.get("AFTERSHOCK_SIMULATION") != "1", reason="minutes long: set AFTERSHOCK_SIMULATION=1"
)

REPETITIONS = int(os.environ.get("AFTERSHOCK_REPETITIONS", "500"))
ALPHA, RIGHT, CALIBRATE, RESAMPLES = 0.05, 0.99, 1000, 400
Record = Callable[[str, object], None]


@pytest.mark.parametrize("images", [200, 500])
@pytest.mark.parametrize("true", [0.02, 0.5, 0.93])
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seeds", [3, 5])
def test_coverage_over_images_and_seeds(
    seeds: int, spread: float, true: float, images: int, record_property: Record
) -> None:
    # Clean and perturbed scores are independent, so the share is right × (1 − α) × P(perturbed > t).
    shift = norm.ppf(1 - ALPHA) + np.hypot(1, spread) * norm.ppf(true / (RIGHT * (1 - ALPHA)))
    draws = np.random.default_rng(20240301)
    of_calibrate, of_evaluate = calibrate_weights(CALIBRATE, RESAMPLES), evaluate_weights(images, RESAMPLES)

    def scores(count: int, mean: np.ndarray) -> list[np.ndarray]:
        shared = draws.normal(size=count)
        return [m + np.sqrt(0.6) * shared + np.sqrt(0.4) * draws.normal(size=count) for m in mean]

    found = []
    for _ in range(REPETITIONS):
        known = scores(CALIBRATE, np.zeros(seeds))
        right = draws.random(images) < RIGHT
        lower = [np.where(right, clean, np.inf) for clean in scores(images, np.zeros(seeds))]
        upper = scores(images, shift + spread * draws.normal(size=seeds))
        thresholds = [resampled_thresholds(one, ALPHA, of_calibrate) for one in known]
        shares = resampled_shares(thresholds, lower, upper, of_evaluate)
        points = [threshold(one, ALPHA) for one in known]
        per_seed = [((a <= t) & (t < b)).mean() for t, a, b in zip(points, lower, upper, strict=True)]
        inner = percentile_interval(shares, 0.95, float(np.mean(per_seed)))
        found.append((*inner, *seed_interval(*inner, per_seed, images=images)))
    alone = np.mean([low <= true <= high for low, high, *_ in found])
    above, below = (float(np.mean(bad)) for bad in zip(*((true < a, b < true) for *_, a, b in found), strict=True))
    width = np.mean([high - low for *_, low, high in found])
    summary = (
        f"{seeds} seeds, spread {spread}, true {true}, {images} images: coverage {1 - above - below:.1%} "
        f"(interval too high {above:.1%}, too low {below:.1%}; mean width {width:.3f}; images alone {alone:.1%})"
    )
    record_property("coverage", summary)
    print(summary)
    # 93 %, and twice its standard error.
    assert 1 - above - below >= 0.93 - 2 * np.sqrt(0.93 * 0.07 / REPETITIONS), summary
