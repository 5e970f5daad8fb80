"""The arithmetic of the studies behind the pages, on planted values: their data are not needed here."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType

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
