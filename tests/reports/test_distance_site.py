"""Distances of images on the page: budget curves, ranks of joined runs, the price in words; from hostile files, too."""

from __future__ import annotations

import math

import numpy as np
import pytest
from aftershock.harness.evaluation.verdict import Standing, cost
from aftershock.reports.read.distances import published_distances
from aftershock.reports.read.run_directory import Row
from aftershock.reports.site.distances import distance_rows


def distance(detector: str, index: float | None, rd: float | None, seed: str = "0", r0: float | None = 0.1) -> Row:
    return Row({"detector": detector, "seed": seed}, {"index": index, "r0": r0, "rd": rd, "reach": 0.4})


def test_undetected_success_at_a_budget_is_what_was_found_within_it() -> None:
    rows = distance_rows(
        [distance("msp", 0.0, 0.1), distance("msp", 1.0, 0.3), distance("msp", 2.0, None, r0=0.35),
         distance("msp", 3.0, None, r0=None)], ("linf", 0.2),
    )  # fmt: skip
    at = {row.number("eps"): row for row in rows}
    assert min(eps for eps in at if eps) < 0.07 and max(eps for eps in at if eps) == 0.4
    first, last = (at[eps] for eps in (min(e for e in at if e and e > 0.1), 0.4))
    assert (first.number("success_rate"), first.number("undetected_success_at_fpr_5")) == (0.5, 0.25)
    assert (last.number("success_rate"), last.number("undetected_success_at_fpr_5")) == (0.75, 0.5)
    assert last.number("flagged_at_fpr_5") == pytest.approx(1 / 3)


@pytest.mark.parametrize("eps", [None, 0.0, -1.0, 5e-324, 1e-310, 1e308, math.nan, math.inf])
def test_no_budget_of_a_file_is_too_odd_for_a_curve(eps: float | None) -> None:
    assert len(distance_rows([distance("msp", 0.0, 0.1)], ("linf", eps))) <= 64


def test_a_file_with_a_seed_in_every_row_has_no_curves() -> None:
    assert distance_rows([distance("msp", 0.0, 0.1, str(i)) for i in range(10_001)], ("linf", 0.2)) == []


def test_distances_of_several_runs_are_of_the_same_images_in_the_same_order() -> None:
    rows = [distance("one", 4.0, 0.2), distance("one", 2.0, None, "1"), distance("two", 2.0, 0.3, "1"),
            distance("two", None, 0.3)]  # fmt: skip
    one, two, missing = published_distances(rows, ["one", "two", "three"])
    assert one is not None and two is not None and missing is None
    np.testing.assert_array_equal(one.rd, [[0.2, math.nan], [math.nan, math.inf]])
    np.testing.assert_array_equal(two.rd, [[math.nan, math.nan], [math.nan, 0.3]])


def test_a_file_with_an_image_and_a_seed_in_every_row_orders_nothing() -> None:
    rows = [distance("one", float(i), 0.2, str(i)) for i in range(5000)]
    assert published_distances(rows, ["one"]) == [None]


def test_what_the_dearest_detector_costs_is_said_in_words() -> None:
    none, msp = Standing("none", 1.0, "", 1.0, 1.0, 1.0), Standing("msp", 1.0, "", 1.004, 1.0, 1.02)
    assert cost([none]) == "" and "nothing" in cost([none, msp])
    assert "1.40 times" in cost([none, msp, Standing("kde", 1.0, "", 1.4, 1.2, 1.6)])
    # Unranked rows have no say, and a lower bound of 1 is not a price of 1.
    assert "kde" not in cost([none, msp, Standing("kde", None, "blind", 1.4, 1.2, 1.6)])
    bound = cost([none, Standing("kde", 1.0, "", 1.0, 1.0, None)])
    assert "at least 1.00" in bound and "nothing" not in bound
