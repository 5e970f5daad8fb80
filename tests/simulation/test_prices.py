"""How often the interval of a price holds the true median, with none and with many ratios beyond the large budget.

Minutes long; runs only with AFTERSHOCK_SIMULATION=1. AFTERSHOCK_REPETITIONS sets the repetitions (600).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
import pytest
from aftershock.harness.evaluation.radii import Distances
from scipy.stats import norm

pytestmark = pytest.mark.skipif(
    os.environ.get("AFTERSHOCK_SIMULATION") != "1", reason="minutes long: set AFTERSHOCK_SIMULATION=1"
)

REPETITIONS = int(os.environ.get("AFTERSHOCK_REPETITIONS", "600"))
IMAGES, SIGMA = 64, 0.5
REACH = 0.5


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4])
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_of_the_price_covers_the_median(
    share: float, seeds: int, record_property: Callable[[str, object], None]
) -> None:
    draw = np.random.default_rng(int(100 * share) + seeds)
    truth = 1 + math.exp(-1.0)
    held = 0
    for _ in range(REPETITIONS):
        # Images differ, and what a detector costs on one is much the same for every seed.
        own = draw.normal(size=(IMAGES, 1)) * math.sqrt(0.8) + draw.normal(size=(IMAGES, seeds)) * math.sqrt(0.2)
        ratio = 1 + np.exp(-1.0 + SIGMA * own)
        # Of each pair the reach, in units of r0, is drawn so that the wanted share lies beyond it.
        reach = np.full((IMAGES, seeds), np.inf)
        if share:
            beyond = float(norm.ppf(1 - share)) * math.sqrt(2) + draw.normal(size=(IMAGES, seeds))
            reach = 1 + np.exp(-1.0 + SIGMA * beyond)
        r0 = np.where(np.isfinite(reach), REACH / reach, 0.01)
        rd = np.where(ratio <= reach, r0 * ratio, np.inf)
        found = Distances(r0, rd, REACH).cells()
        low, high = found["price_low"], found["price_high"]
        assert low is not None
        held += low <= truth <= (math.inf if high is None else high)
    # Two standard errors of a simulated 95 %, and what a bootstrap of 64 images lacks.
    record_property("coverage", held / REPETITIONS)
    print(f"coverage {held / REPETITIONS:.1%}")
    assert held / REPETITIONS > 0.92
