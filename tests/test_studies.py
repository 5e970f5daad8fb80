"""The arithmetic of the studies behind the pages, on planted values: their data are not needed here."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from aftershock.detectors.activations.lid import intrinsic_dimension

STUDIES = Path(__file__).parents[1] / "docs" / "studies"
if not STUDIES.is_dir():
    pytest.skip("the studies are in the repository, not in the source distribution", allow_module_level=True)


def study(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        # As for a script, whose own folder comes first.
        patch.syspath_prepend(str(STUDIES))
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def lid() -> ModuleType:
    return study("lid")


def test_every_study_says_what_it_measures_with_what_command_and_is_listed() -> None:
    listed = (STUDIES / "README.md").read_text(encoding="utf-8")
    for path in STUDIES.glob("*.py"):
        if path.name == "study_setup.py":
            continue
        text = path.read_text(encoding="utf-8")
        assert f"python docs/studies/{path.name}" in text
        assert f"python docs/studies/{path.name}" in listed


@pytest.mark.parametrize("original", [1e-3, 1e-4])
def test_the_published_form_of_lid_drops_the_original(lid: ModuleType, original: float) -> None:
    # Behind an original at distance d0 lie neighbours at b, b², …; with d0 dropped Σ log(r_i / r_k) is
    # -log(b) k (k - 1) / 2 whatever d0 is, and with it log(d0 / b^(k-1)) - log(b) (k - 1) (k - 2) / 2.
    k, base = 5, 2.0
    growing = base ** torch.arange(1, k + 4, dtype=torch.float64)
    row = torch.cat([torch.tensor([original], dtype=torch.float64), growing])
    row = row[torch.randperm(len(row), generator=torch.Generator().manual_seed(0))][None]
    dropped, kept = float(lid.estimates(row, k, True)), float(lid.estimates(row, k, False))
    assert dropped == pytest.approx(2 / ((k - 1) * math.log(base)))
    assert kept == pytest.approx(-k / (math.log(original / base ** (k - 1)) - math.log(base) * (k - 1) * (k - 2) / 2))
    assert kept < dropped


def test_the_estimate_is_that_of_the_detector(lid: ModuleType) -> None:
    found = torch.rand(4, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nearest = found.sort(1).values
    assert torch.allclose(lid.estimates(found, 20, False), intrinsic_dimension(nearest[:, :20]))
    assert torch.allclose(lid.estimates(found, 20, True), intrinsic_dimension(nearest[:, 1:21]))


def test_of_a_small_minibatch_one_distance_is_always_left_out(lid: ModuleType) -> None:
    found = torch.tensor([[1.0, 2.0, 4.0]])
    assert float(lid.estimates(found, 20, True)) == pytest.approx(2 / math.log(2))
    assert float(lid.estimates(found, 20, False)) == pytest.approx(2 / math.log(2))


def test_distances_are_euclidean_and_an_image_is_its_own_nearest(lid: ModuleType) -> None:
    points = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = lid.distances(points, points)
    assert torch.allclose(found, torch.cdist(points, points), atol=1e-6)
    assert torch.equal(found.argmin(1), torch.arange(7))


@pytest.fixture(scope="module")
def seen() -> ModuleType:
    return study("seen_attack")


def test_the_mahalanobis_distance_is_half_the_square_under_the_common_covariance(seen: ModuleType) -> None:
    # Two classes at (0, 0) and (10, 0), each of four points: the common covariance is diag(4, 1) / 2.
    cross = torch.tensor([[2.0, 0], [-2.0, 0], [0, 1.0], [0, -1.0]], dtype=torch.float64)
    labels = torch.tensor([0] * 4 + [1] * 4)
    fitted = seen.Gaussians.fit(torch.cat([cross, cross + torch.tensor([10.0, 0])]), labels)
    points = torch.tensor([[1.0, 0], [9.0, 2.0], [0, 0]], dtype=torch.float64)
    assert fitted.distance(points).tolist() == pytest.approx([1 / 4, 1 / 4 + 4, 0])


def test_the_step_goes_towards_the_nearest_mean_and_0_changes_nothing(seen: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(2))
    images = torch.rand(40, 3, 8, 8, generator=generator)
    model(images)
    model.eval()
    features = seen.pooled_at(model, images, "1").detach()
    assert torch.allclose(features, model[1](model[0](images)).mean((2, 3)))
    fitted = seen.Gaussians.fit(features, torch.arange(40) % 2)
    found = seen.preprocessed(model, "1", fitted, images, (0.0, 0.001))
    assert torch.allclose(found[0], fitted.distance(features))
    assert bool((found[1] < found[0]).double().mean() > 0.9)


def test_the_value_is_chosen_without_the_test_images(seen: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)

    def columns(shift: float, flipped: bool) -> torch.Tensor:
        rows = torch.randn(80, 2, generator=generator, dtype=torch.float64) + shift
        # On the test rows the other value is the better one.
        rows[40:] *= -1 if flipped else 1
        return rows

    clean = {1.0: columns(0, False), 2.0: columns(0, False)}
    found = seen.measured(clean, {1.0: columns(3, True), 2.0: columns(0.5, False)}, 40)
    assert found.chosen == 1.0 and found.by_value[1.0] < 0.2 < found.by_value[2.0]


def costs(seconds: list[float], inputs: list[list[int]], before: float = 0.0) -> Any:
    scaling = study("scaling")
    cells = {
        str(i): SimpleNamespace(key=str(i), group=str(i), inputs=tuple(map(str, needed)))
        for i, needed in enumerate(inputs)
    }
    return scaling.Costs(cells, {str(i): s for i, s in enumerate(seconds)}, dict.fromkeys(cells, 0), before)


def test_the_scaling_of_independent_cells_is_that_of_the_workers() -> None:
    scaling = study("scaling")
    found = costs([2.0] * 12, [[]] * 12, before=3.0)
    for workers, seconds in ((1, 27.0), (2, 15.0), (4, 9.0), (64, 5.0)):
        simulated = scaling.simulate(found, scaling.Machine(cores=64, opening=0, owner=0, bandwidth=1e12), workers)
        assert simulated.seconds == pytest.approx(seconds)
    # Two cores do not compute faster with four processes.
    assert scaling.simulate(found, scaling.Machine(2, 0, 0, 1e12), 4).seconds == pytest.approx(15.0)


def test_the_scaling_of_a_chain_is_none_and_its_length_is_found() -> None:
    scaling = study("scaling")
    found = costs([1.0, 2.0, 3.0, 0.5], [[], [0], [1], [0]])
    assert scaling.critical_path(found) == 6.0
    machine = scaling.Machine(cores=8, opening=0, owner=0, bandwidth=1e12)
    assert scaling.simulate(found, machine, 8).seconds == pytest.approx(6.0)
    assert scaling.simulate(found, machine, 1).seconds == pytest.approx(6.5)


def test_an_owner_that_takes_long_is_where_scaling_ends() -> None:
    scaling = study("scaling")
    found = costs([1.0] * 100, [[]] * 100)
    machine = scaling.Machine(cores=1000, opening=0, owner=0.1, bandwidth=1e12)
    simulated = scaling.simulate(found, machine, 1000)
    assert simulated.seconds == pytest.approx(11.0) and simulated.owner == pytest.approx(10 / 11)


def test_workers_begin_when_they_have_opened_the_run() -> None:
    scaling = study("scaling")
    found = costs([1.0] * 4, [[]] * 4)
    assert scaling.simulate(found, scaling.Machine(4, 5, 0, 1e12), 4).seconds == pytest.approx(6.0)
    assert scaling.simulate(found, scaling.Machine(4, 5, 0, 1e12), 1).seconds == pytest.approx(4.0)
