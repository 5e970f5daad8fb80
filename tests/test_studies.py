"""The arithmetic of the studies behind the pages, on planted values: their data are not needed here."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
from aftershock.detectors.lid import intrinsic_dimension

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
