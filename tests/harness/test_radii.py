"""The price of detectors and jumps of undetected success, from planted distances, and both in a run."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from aftershock.attacks.base.perturb_batch import PerturbedBatch
from aftershock.harness.evaluation.radii import Distances, Radii, distances, misses, price_ranks
from aftershock.harness.evaluation.radius_results import radii_of
from aftershock.harness.run.tasks.radii import hides, nearest_passing
from numpy.typing import NDArray
from support.commands import Forks
from support.suites import Tiny
from support.tables import read_csv, read_table
from torch import Tensor, nn

FloatArray = NDArray[np.float64]
IMAGES = 64


def radii(radius: FloatArray, alone: FloatArray | None = None) -> Radii:
    return Radii(np.arange(len(radius)), radius, radius if alone is None else alone, 0.5)


def rows(r0: FloatArray, *rd: FloatArray) -> list[Distances]:
    found = [distances([radii(r0)], [radii(one, np.full_like(one, np.inf))]) for one in rd]
    assert all(one is not None for one in found)
    return [one for one in found if one is not None]


@pytest.fixture
def r0() -> FloatArray:
    return np.asarray(np.random.default_rng(0).uniform(0.02, 0.1, IMAGES))


def test_the_price_is_the_median_ratio(r0: FloatArray) -> None:
    draw = np.random.default_rng(1).uniform(1.2, 1.8, IMAGES)
    free, dear = (one.cells() for one in rows(r0, r0, r0 * draw))
    assert free["price"] == free["price_low"] == free["price_high"] == 1.0 and free["n_price"] == IMAGES
    assert dear["price"] == pytest.approx(np.sort(draw)[IMAGES // 2 - 1])
    low, high = dear["price_low"], dear["price_high"]
    assert low is not None and high is not None and 1.2 < low < 1.5 < high < 1.8
    assert dear["r0_median"] == pytest.approx(np.sort(r0)[IMAGES // 2 - 1]) and dear["n_rd_censored"] == 0


def test_what_nothing_passes_within_reach_is_only_known_to_cost_more(r0: FloatArray) -> None:
    some, most = np.where(np.arange(IMAGES) < 20, np.inf, 1.5 * r0), np.where(np.arange(IMAGES) < 50, np.inf, 1.5 * r0)
    few, many = (one.cells() for one in rows(r0, some, most))
    assert few["n_rd_censored"] == 20 and few["price"] == pytest.approx(1.5) and few["price_high"] is not None
    # More than half: a lower bound, and nothing above it.
    assert many["n_rd_censored"] == 50 and many["price_high"] is None and many["rd_median"] is None
    assert many["price"] is not None and many["price"] > 1.5


def test_no_image_passes_nearer_than_it_fools(r0: FloatArray) -> None:
    (found,) = rows(r0, r0 * 0.8)
    assert found.cells()["price"] == 1.0 and found.r0[:, 0] == pytest.approx(0.8 * r0)
    # An image that nothing fools within reach is left out.
    (left,) = rows(np.where(np.arange(IMAGES) < 4, np.inf, r0), np.where(np.arange(IMAGES) < 4, np.inf, r0))
    assert left.cells()["n_price"] == IMAGES - 4 and left.cells()["n_r0_censored"] == 4
    assert not misses(radii(r0), radii(r0, r0 * 0.99)) and misses(radii(r0), radii(r0, r0 * 0.95))
    # What the search alone did not find at all it missed as well.
    assert misses(radii(np.full(IMAGES, np.inf)), radii(r0)) and not misses(radii(r0), radii(np.full(IMAGES, np.inf)))


def test_a_jump_is_undetected_success_that_comes_all_at_once(r0: FloatArray) -> None:
    eps = 0.1
    wall, slope = np.full(IMAGES, 0.3), np.linspace(0.1, 0.5, IMAGES)
    jump, rise, none, many = rows(r0, wall, slope, r0, np.where(np.arange(IMAGES) % 5 < 3, 0.2, 0.4))
    assert jump.jumps(eps) and many.jumps(eps) and not rise.jumps(eps) and not none.jumps(eps)
    # Images that the model alone keeps until then are no jump of the detector.
    (late,) = rows(np.full(IMAGES, 0.29), wall)
    assert not late.jumps(eps)
    # A model that falls nearly at once itself explains a detector that does.
    steep = np.linspace(0.3, 0.34, IMAGES)
    (explained,) = rows(steep / 4, steep)
    assert not explained.jumps(eps) and jump.jumps(eps)
    # Fewer than 50 images tell nothing.
    (few,) = rows(r0[:49], wall[:49])
    assert not few.jumps(eps)
    # Each seed's images are its own: those that only another seed's model gets right count for neither.
    half = np.arange(2 * IMAGES) % 2 == 0
    apart_r0, apart_rd = (np.full((2 * IMAGES, 2), np.nan) for _ in range(2))
    for values, found in ((apart_r0, (r0, r0)), (apart_rd, (r0, wall))):
        values[half, 0], values[~half, 1] = found
    assert Distances(apart_r0, apart_rd, 1.0).jumps(eps)


def test_price_orders_rows_of_one_rank_and_no_others(r0: FloatArray) -> None:
    noise = np.random.default_rng(2).uniform(0.9995, 1.0005, IMAGES)
    cheap, same, dear, never = rows(r0, r0, r0 * noise, r0 * 1.3, np.full(IMAGES, np.inf))
    assert price_ranks([1, 1, 1, 1], [cheap, same, dear, never]) == [3, 3, 2, 1]
    assert price_ranks([1, 2, 2, 2], [cheap, same, dear, None]) == [1, 3, 2, 2]
    assert price_ranks([], []) == []
    # A rank counts significantly better rows, which may be fewer than stand above: no row leaves its group.
    assert price_ranks([1, 1, 1, 2, 3], [cheap, dear, never, never, never]) == [3, 2, 1, 4, 5]
    # Half of the images dearer and half cheaper: nothing is told apart.
    mixed = rows(r0, np.where(np.arange(IMAGES) % 2, 1.2, 1.4) * r0, 1.3 * r0)
    assert price_ranks([5, 5], mixed) == [5, 5]


def test_seeds_are_of_the_same_images(r0: FloatArray) -> None:
    second = Radii(np.arange(4, IMAGES), r0[4:], r0[4:], 0.5)
    found = distances([radii(r0), second], [radii(r0 * 2), Radii(np.arange(4, IMAGES), r0[4:] * 2, r0[4:], 0.5)])
    assert found is not None and found.r0.shape == (IMAGES, 2) and math.isnan(found.r0[0, 1])
    cells = found.cells()
    assert cells["price"] == pytest.approx(2.0)
    # An image that the model of one seed gets wrong is none that nothing fools.
    assert (cells["n_price"], cells["n_r0_censored"]) == (IMAGES, 0)
    assert distances([radii(r0), Radii()], [radii(r0), radii(r0)]) is None


@pytest.mark.parametrize(("detector", "reason"), [("", ""), ("msp", "a limit under [limits] ended it")])
def test_a_search_that_a_limit_ended_is_a_check_that_is_missing(detector: str, reason: str) -> None:
    tensors = {name: torch.tensor([0.1, torch.inf]) for name in ("radius", "alone")} | {"row": torch.tensor([0, 2])}
    store = SimpleNamespace(load=lambda _: tensors, values=lambda _: {"flags": ["limit"], "reach": 0.5})
    found: Any = SimpleNamespace(store=store, reason=lambda _: "")
    plan: Any = SimpleNamespace(radii={detector: "key"})
    # The search that knows no detector has the help of all others.
    assert radii_of(found, plan, detector).reason == reason
    assert radii_of(found, plan, "another").reason == ""


class Brightness(nn.Module):
    """Two classes, by whether the mean exceeds a half."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images.flatten(1).mean(1) - 0.5
        return torch.stack([-bright, bright], 1)


def test_what_does_not_pass_where_no_attack_runs_is_moved_outwards_before_it_counts_as_never() -> None:
    clean, labels, reach = torch.full((5, 1, 2, 2), 0.4), torch.zeros(5, dtype=torch.int64), 0.2
    moves = torch.tensor([0.11, 0.12, 0.13, 0.0, 0.19])
    images = clean + moves[:, None, None, None]
    made = PerturbedBatch(
        images, labels, labels > 0, {}, 0.0, 0.0, 0.0, (), credits=("lagrangian", "known", "known", "", "known")
    )
    # Beyond how much each image passes; the last one only beyond what counts.
    passing, asked = torch.tensor([0.11, 0.13, 9.0, 0.0, 0.201]), list[int]()

    def passes(rows: Tensor, shown: Tensor) -> Tensor:
        asked.extend(rows.tolist())
        return (shown - clean[rows]).flatten(1).amax(1) >= passing[rows] - 1e-6

    found = nearest_passing(Brightness(), made, clean, labels, "linf", reach, passes)
    torch.testing.assert_close(found, torch.tensor([0.11, 0.12 * 1.1, torch.inf, torch.inf, torch.inf]))
    assert asked.count(0) == 1 and asked.count(1) == 3 and 3 not in asked


def test_a_detector_that_flags_for_the_search_what_passes_elsewhere_is_noticed() -> None:
    elsewhere, never = torch.full((64,), 0.1), torch.tensor(torch.inf)
    assert not hides(elsewhere, elsewhere * 0.9) and not hides(elsewhere, elsewhere)
    assert hides(elsewhere, never.expand(64)) and hides(elsewhere, elsewhere * 1.3)
    # Last digits may move a few over the boundary, and of images that pass nowhere nothing is known.
    few = torch.where(torch.arange(64) < 6, torch.inf, elsewhere)
    assert not hides(elsewhere, few) and not hides(never.expand(64), never.expand(64))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny, forks: Forks) -> Path:
    folder = tmp_path_factory.mktemp("price")
    adaptive = {"name": "adaptive", "eps": 0.1, "steps": 10, "queries": 10, "restarts": 1, "images": 20}
    tiny(
        folder / "suite.toml", perturbations=[{"name": "pgd", "eps": 0.1, "steps": 5}, adaptive],
        detectors=[{"name": "msp"}], price_images=8, model={"epochs": 20},
    )  # fmt: skip
    text = (folder / "suite.toml").read_text(encoding="utf-8").replace("eps = 0.3\n", "eps = 0.1\n")
    (folder / "suite.toml").write_text(text, encoding="utf-8")
    done = forks("run", "suite.toml", "--out", "run", cwd=folder, AFTERSHOCK_CACHE=str(folder / "cache"))
    assert done.status == 0, done.output
    return folder / "run"


def test_a_run_states_the_price(run: Path) -> None:
    board = {row["detector"]: row for row in read_csv(run / "tables" / "leaderboard.csv")}
    # Near the boundary the model is not confident.
    assert float(board["none"]["price"]) == 1.0 and float(board["msp"]["price"]) > 1.05
    for row in board.values():
        assert int(row["n_price"]) == 8
        # The smallest distance that passes is at least the smallest that fools.
        assert float(row["rd_median"]) >= float(row["r0_median"])
    # Nothing that an attack got past the detector lies nearer than the smallest distance.
    radii = {
        r["index"]: float(r["rd"] or math.inf) for r in read_csv(run / "tables" / "radii.csv") if r["detector"] == "msp"
    }
    past = [
        r
        for r in read_table(run, "scores.csv.gz")
        if r["set"] == "perturbed"
        and r["perturbation"] == "adaptive@msp"
        and r["detector"] == "msp"
        and r["success"] == "1"
        and r["flagged_at_fpr_5"] == "0"
        and r["index"] in radii
    ]
    assert past and all(radii[r["index"]] <= float(r["linf"]) * (1 + 1e-6) for r in past)
    assert {row["detector"] for row in board.values()} == {"msp", "none"}
