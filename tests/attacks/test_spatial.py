from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from aftershock.attacks import Perturbation
from aftershock.attacks.base.perturb_batch import perturb_batch
from aftershock.attacks.benign.spatial import Rotate, Translate
from aftershock.harness.core.errors import UsageError
from scipy import ndimage
from support.attack_cases import DigitsCase, apply
from torch import Tensor

SHAPES = [(1, 8, 8), (3, 32, 32), (5, 9, 13)]
SPATIAL = [Rotate(20.0), Rotate(70.0, "border"), Translate(0.2), Translate(0.9, "border")]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def ramp(n: int, height: int, width: int) -> Tensor:
    """Images of one channel whose value is the column over the width."""
    return (torch.arange(width) / width).expand(n, 1, height, width).clone()


@pytest.mark.parametrize("perturbation", SPATIAL, ids=lambda p: f"{type(p).__name__}-{p.padding}")
@pytest.mark.parametrize("shape", [*SHAPES, (2, 1, 1)])
def test_an_image_moves_the_same_way_in_any_batch(perturbation: Perturbation, shape: tuple[int, int, int]) -> None:
    images = torch.rand(5, *shape)
    made = apply(perturbation, images)
    assert made.shape == images.shape and made.dtype == torch.float32
    assert float(made.min()) >= 0 and float(made.max()) <= 1
    for positions in ([3], [4, 0]):
        assert torch.equal(apply(perturbation, images[positions], indices=positions), made[positions])
    if shape[1] > 1:
        assert not torch.equal(made, images)
    assert (perturbation.info.kind, perturbation.family) == ("corruption", "spatial")


@pytest.mark.parametrize("perturbation", [Rotate(0.0), Translate(0.0)], ids=lambda p: type(p).__name__)
def test_nothing_moves_by_nothing(perturbation: Perturbation) -> None:
    images = torch.rand(3, 3, 9, 13)
    assert torch.equal(apply(perturbation, images), images)


@pytest.mark.parametrize(("padding", "mode"), [("reflect", "mirror"), ("border", "nearest")])
def test_rotation_is_scipys_to_the_left_or_to_the_right(padding: Literal["reflect", "border"], mode: str) -> None:
    images = torch.rand(24, 1, 9, 13)
    made = apply(Rotate(20.0, padding), images)
    right = []
    for image, result in zip(images[:, 0].double().numpy(), made[:, 0].numpy(), strict=True):
        both = [ndimage.rotate(image, angle, reshape=False, order=1, mode=mode) for angle in (20, -20)]
        matches = [np.allclose(result, one, atol=1e-5) for one in both]
        assert sum(matches) == 1
        right.append(matches[1])
    # 24 fair signs: both directions, and neither fewer than 4 times (a chance of 3e-4).
    assert 4 <= sum(right) <= 20


def test_quarter_and_half_turns_are_exact() -> None:
    images = torch.rand(6, 3, 8, 8)
    quarter = apply(Rotate(90.0), images)
    for image, result in zip(images, quarter, strict=True):
        assert any(torch.allclose(result, image.rot90(k, (1, 2)), atol=1e-6) for k in (1, -1))
    assert torch.allclose(apply(Rotate(180.0), images), images.flip((2, 3)), atol=1e-6)


def test_translation_has_its_length_and_any_direction() -> None:
    down = (torch.arange(40) / 40)[:, None].expand(400, 1, 40, 50).clone()
    right = ramp(400, 40, 50)
    perturbation = Translate(0.1)
    moved_down = (down - apply(perturbation, down))[:, 0, 20, 25] * 40
    moved_right = (right - apply(perturbation, right))[:, 0, 20, 25] * 50
    # A tenth of the shorter side, 40 pixels.
    assert torch.allclose(torch.hypot(moved_down, moved_right), torch.full((400,), 4.0), atol=1e-4)
    angles = torch.atan2(moved_down, moved_right)
    quarters = torch.histc(angles, 4, -math.pi, math.pi)
    assert float(quarters.min()) > 100 - 4 * math.sqrt(75) and float(quarters.max()) < 100 + 4 * math.sqrt(75)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Rotate(181), "from 0 to 180"),
        (lambda: Rotate(-5), "degrees = -5"),
        (lambda: Rotate(5, "zeros"), "reflect or border"),  # type: ignore[arg-type]
        (lambda: Translate(1.2), "from 0 to 1"),
        (lambda: Translate(float("nan")), "finite"),
        (lambda: Translate(0.1, "wrap"), "reflect or border"),  # type: ignore[arg-type]
    ],
)
def test_wrong_values_are_one_sentence(make: Callable[[], object], words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        make()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("perturbation", SPATIAL, ids=lambda p: f"{type(p).__name__}-{p.padding}")
def test_the_harness_has_nothing_to_mend(perturbation: Perturbation, digits: DigitsCase) -> None:
    made = perturb_batch(perturbation, digits.model, digits.images, digits.labels, digits.indices, seed=0)
    assert made.flags == () and made.forwards == made.backwards == 0 and made.success.any()
