"""How often ranks tell rows apart: equal rows (must not be) and different ones (should be).

Minutes long; runs only with AFTERSHOCK_SIMULATION=1. AFTERSHOCK_REPETITIONS sets the repetitions (2000 here).
All rows are about the same model and images: they share which images are right, and their scores of an image share a
part of their variance, the correlation. Everything else is as in the leaderboard, with fewer resamples: the fewer, the
less exact a row's standard deviation, and the more often equal rows would be told apart.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
from aftershock.harness.statistics.detection import (
    calibrate_weights,
    evaluate_weights,
    resampled_shares,
    resampled_thresholds,
    threshold,
    threshold_rank,
)
from aftershock.harness.statistics.ranks import RowSample, ranks
from scipy.stats import norm

pytestmark = pytest.mark.skipif(
    os.environ.get("AFTERSHOCK_SIMULATION") != "1", reason="minutes long: set AFTERSHOCK_SIMULATION=1"
)

REPETITIONS = int(os.environ.get("AFTERSHOCK_REPETITIONS", "2000"))
RESAMPLES = int(os.environ.get("AFTERSHOCK_RESAMPLES", "200"))
ALPHA, RIGHT = 0.05, 0.99
FloatArray = np.ndarray
Record = Callable[[str, object], None]


class Board:
    """Draws leaderboards whose rows have known robust accuracies, and ranks them.

    Args:
        accuracies: (n,) expected robust accuracy of each row.
        images: number of evaluate images.
        calibrate: number of calibrate images.
        correlation: of two rows' scores of an image.
        seeds: number of seeds; a row's seeds share 60 % of what the rows do not share.
        spread: standard deviation over seeds of a row's shift of the perturbed scores.
    """

    def __init__(
        self, accuracies: list[float], images: int, calibrate: int, correlation: float, seeds: int = 1,
        spread: float = 0.0,
    ) -> None:  # fmt: skip
        self.images, self.calibrate, self.correlation, self.seeds, self.spread = (
            images, calibrate, correlation, seeds, spread,
        )  # fmt: skip
        flagged = threshold_rank(calibrate, ALPHA) / (calibrate + 1)
        caught = norm.ppf(np.array(accuracies) / (RIGHT * (1 - flagged)))
        self.shift = norm.isf(flagged) + np.hypot(1, spread) * caught
        self.of_calibrate = calibrate_weights(calibrate, RESAMPLES)
        self.of_evaluate = evaluate_weights(images, RESAMPLES)
        self.draws = np.random.default_rng(20240302)

    def scores(self, count: int) -> FloatArray:
        """Standard normal scores (rows, seeds, count)."""
        rows, normal = len(self.shift), self.draws.standard_normal
        shared = np.sqrt(self.correlation) * normal(count)
        if self.seeds == 1:
            return shared + np.sqrt(1 - self.correlation) * normal((rows, 1, count))
        own = np.sqrt(0.6) * normal((rows, 1, count)) + np.sqrt(0.4) * normal((rows, self.seeds, count))
        return shared + np.sqrt(1 - self.correlation) * own

    def ranks(self) -> tuple[FloatArray, FloatArray]:
        """Measured accuracies and ranks of one draw."""
        known = self.scores(self.calibrate)
        right = self.draws.random(self.images) < RIGHT
        lower = np.where(right, self.scores(self.images), np.inf)
        moved = self.shift[:, None] + self.spread * self.draws.standard_normal((len(self.shift), self.seeds))
        upper = self.scores(self.images) + moved[:, :, None]
        rows = []
        for row in range(len(self.shift)):
            robust, resampled = [], []
            for seed in range(self.seeds):
                low, high, clean = lower[row, seed], upper[row, seed], known[row, seed]
                t = threshold(clean, ALPHA)
                robust.append((low <= t) & (t < high))
                drawn = resampled_thresholds(clean, ALPHA, self.of_calibrate)
                resampled.append(resampled_shares([drawn], [low], [high], self.of_evaluate))
            rows.append(RowSample(np.array(robust), np.array(resampled)))
        accuracies = np.array([row.robust.mean() for row in rows])
        return accuracies, ranks(accuracies, rows)


def report(record: Record, summary: str) -> None:
    record("ranks", summary)
    print(summary)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("images", [40, 200, 1000])
@pytest.mark.parametrize("rows", [7, 32])
def test_equal_rows_share_rank_1(rows: int, images: int, correlation: float, record_property: Record) -> None:
    board = Board([0.5] * rows, images, 400, correlation)
    found = [board.ranks() for _ in range(REPETITIONS)]
    together = np.mean([places.max() == 1 for _, places in found])
    # What an order by the number alone would make of them.
    ahead = np.mean([(accuracies == accuracies.max()).sum() == 1 for accuracies, _ in found])
    summary = (
        f"{rows} equal rows, {images} images, correlation {correlation}: all on rank 1 in {together:.1%}; "
        f"one has the highest number alone in {ahead:.1%}"
    )
    report(record_property, summary)
    assert together >= 0.94, summary


@pytest.mark.parametrize(
    ("accuracy", "images", "calibrate", "correlation"),
    # The second is the worst: the error of the thresholds dominates, and the fewest scores lie above them.
    [(0.03, 200, 200, 0.5), (0.2, 1000, 200, 0.0), (0.9, 200, 400, 0.5)],
)
def test_equal_rows_share_rank_1_at_other_accuracies(
    accuracy: float, images: int, calibrate: int, correlation: float, record_property: Record
) -> None:
    board = Board([accuracy] * 32, images, calibrate, correlation)
    together = np.mean([board.ranks()[1].max() == 1 for _ in range(REPETITIONS)])
    summary = (
        f"32 rows of {accuracy}, {images} images, {calibrate} calibrate, correlation {correlation}: "
        f"all on rank 1 in {together:.1%}"
    )
    report(record_property, summary)
    assert together >= 0.94, summary


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_equal_rows_of_three_seeds_share_rank_1(spread: float, record_property: Record) -> None:
    board = Board([0.5] * 7, 200, 400, 0.5, 3, spread)
    together = np.mean([board.ranks()[1].max() == 1 for _ in range(REPETITIONS)])
    summary = f"7 equal rows, 3 seeds of spread {spread}, 200 images: all on rank 1 in {together:.1%}"
    report(record_property, summary)
    assert together >= 0.94, summary


def told_apart(board: Board) -> tuple[float, float]:
    """How often the first row is ranked above a given other, and above all."""
    found = [board.ranks()[1] for _ in range(REPETITIONS)]
    above = np.array([one[1:] > one[0] for one in found])
    return float(above.mean()), float(above.all(1).mean())


@pytest.mark.parametrize(
    ("correlation", "calibrate", "lowest"),
    # What 2000 repetitions found, less 5 points: 80 % need rows that agree about images, and 1000 calibrate images.
    [(0.0, 400, 0.14), (0.0, 1000, 0.31), (0.5, 400, 0.23), (0.5, 1000, 0.52), (0.9, 400, 0.6), (0.9, 1000, 0.87)],
)
def test_a_better_row_among_32_is_told_apart(
    correlation: float, calibrate: int, lowest: float, record_property: Record
) -> None:
    better, alone = told_apart(Board([0.5] + [0.3] * 31, 200, calibrate, correlation))
    summary = (
        f"0.5 against 31 rows of 0.3, 200 images, {calibrate} calibrate, correlation {correlation}: "
        f"ranked above a worse row in {better:.1%}, alone on rank 1 in {alone:.1%}"
    )
    report(record_property, summary)
    assert better >= lowest, summary


@pytest.mark.parametrize(("seeds", "lowest"), [(1, 0.78), (3, 0.09), (5, 0.57)])
def test_a_better_row_of_several_seeds_is_told_apart(seeds: int, lowest: float, record_property: Record) -> None:
    """Few seeds cost power: Student's t with 2 degrees of freedom reaches far at the levels that Holm asks for."""
    board = Board([0.5] + [0.3] * 6, 200, 1000, 0.5, seeds, 0.1 if seeds > 1 else 0.0)
    better, alone = told_apart(board)
    summary = (
        f"0.5 against 6 rows of 0.3, {seeds} seeds, 200 images, 1000 calibrate, correlation 0.5: "
        f"ranked above a worse row in {better:.1%}, alone on rank 1 in {alone:.1%}"
    )
    report(record_property, summary)
    assert better >= lowest, summary
