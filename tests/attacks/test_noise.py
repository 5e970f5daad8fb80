from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from aftershock.attacks import Perturbation
from aftershock.attacks.base.perturb_batch import perturb_batch
from aftershock.attacks.benign.noise import Gaussian, RandomSign, SaltAndPepper, Shot, Speckle, Uniform
from aftershock.harness.core.errors import UsageError
from scipy import stats
from support.attack_cases import LinearCase, apply
from torch import Tensor

NOISES = [Gaussian(0.1), Uniform(0.1), RandomSign(8 / 255), SaltAndPepper(0.2), Shot(50.0), Speckle(0.3)]
SHAPES = [(1, 8, 8), (3, 9, 13), (5, 7, 4), (2, 1, 1)]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def flat(value: float, n: int = 20, shape: tuple[int, int, int] = (3, 40, 40)) -> Tensor:
    return torch.full((n, *shape), value)


@pytest.mark.parametrize("noise", NOISES, ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_gets_the_same_noise_in_any_batch(noise: Perturbation, shape: tuple[int, int, int]) -> None:
    images = torch.rand(6, *shape, generator=torch.Generator().manual_seed(1))
    before = images.clone()
    made = apply(noise, images)
    assert made.shape == images.shape and made.dtype == torch.float32
    assert float(made.min()) >= 0 and float(made.max()) <= 1
    assert torch.equal(images, before)
    for positions in ([4], [5, 0, 2]):
        assert torch.equal(apply(noise, images[positions], indices=positions), made[positions])
    if shape[1] > 1:
        assert not torch.equal(apply(noise, images, seed=1), made)


@pytest.mark.parametrize("noise", NOISES, ids=lambda n: type(n).__name__)
def test_the_harness_has_nothing_to_mend(linear: LinearCase, noise: Perturbation) -> None:
    made = perturb_batch(noise, linear.model, linear.images, linear.labels, linear.indices, seed=0)
    assert made.flags == () and made.forwards == made.backwards == 0
    assert noise.info.kind == noise.family == "noise" and noise.info.stochastic and not noise.info.gradients


def test_random_signs_are_the_corners_of_the_ball() -> None:
    made = apply(RandomSign(0.25), flat(0.5))
    assert set(made.unique().tolist()) == {0.25, 0.75}
    # A share over 96,000 fair signs: four standard errors.
    assert float((made > 0.5).float().mean()) == pytest.approx(0.5, abs=4 * 0.5 / 96_000**0.5)
    assert set(apply(RandomSign(0.25), flat(1.0)).unique().tolist()) == {0.75, 1.0}
    images = torch.rand(4, 3, 5, 5)
    assert torch.equal(apply(RandomSign(0.0), images), images)


@pytest.mark.parametrize("amount", [0.02, 0.3, 0.9])
def test_a_share_of_the_pixels_is_salted_and_peppered_in_all_channels(amount: float) -> None:
    made = apply(SaltAndPepper(amount), flat(0.5))
    assert torch.equal(made, made[:, :1].expand_as(made))
    pixels = made[:, 0]
    for value in (0.0, 1.0):
        error = (amount / 2 * (1 - amount / 2) / pixels.numel()) ** 0.5
        assert float((pixels == value).float().mean()) == pytest.approx(amount / 2, abs=4 * error)
    assert set(made.unique().tolist()) == {0.0, 0.5, 1.0}


def test_limits_of_salt_and_pepper() -> None:
    images = torch.rand(4, 3, 20, 20) * 0.8 + 0.1
    assert torch.equal(apply(SaltAndPepper(0.0), images), images)
    assert set(apply(SaltAndPepper(1.0), images).unique().tolist()) == {0.0, 1.0}
    # A larger amount salts the same pixels and more.
    few, many = apply(SaltAndPepper(0.1), images), apply(SaltAndPepper(0.4), images)
    assert ((few != images) <= (many != images)).all()


@pytest.mark.parametrize(("value", "rate"), [(0.02, 40.0), (0.3, 50.0), (0.5, 400.0)])
def test_shot_noise_is_poisson(value: float, rate: float) -> None:
    counts = apply(Shot(rate), flat(value)).double() * rate
    assert torch.allclose(counts, counts.round(), atol=1e-4)
    n, mean = counts.numel(), value * rate
    assert float(counts.mean()) == pytest.approx(mean, abs=4 * (mean / n) ** 0.5)
    # The variance of a Poisson sample variance is (mean + 2 mean^2) / n up to 1/n^2.
    assert float(counts.var()) == pytest.approx(mean, abs=4 * ((mean + 2 * mean**2) / n) ** 0.5)
    for quantile in (0.1, 0.5, 0.9):
        count = float(stats.poisson.ppf(quantile, mean))
        share = float(stats.poisson.cdf(count, mean))
        assert float((counts <= count + 0.5).double().mean()) == pytest.approx(share, abs=4 * 0.5 / n**0.5)


def test_limits_of_shot_noise() -> None:
    images = torch.rand(4, 3, 8, 8)
    assert torch.allclose(apply(Shot(1e12), images), images, atol=1e-5)
    assert not apply(Shot(5.0), flat(0.0)).any()


def test_shot_noise_is_independent_between_images_and_channels() -> None:
    made = apply(Shot(30.0), flat(0.4, n=2)).flatten(2)
    rows = made.flatten(0, 1)
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert float(correlation.abs().max()) < 5 / 1600**0.5


@pytest.mark.parametrize("value", [0.2, 0.6])
def test_speckle_is_in_proportion_to_the_brightness(value: float) -> None:
    made = apply(Speckle(0.1), flat(value)).double() / value
    n = made.numel()
    assert float(made.mean()) == pytest.approx(1, abs=4 * 0.1 / n**0.5)
    assert float(made.std()) == pytest.approx(0.1, abs=4 * 0.1 / (2 * n) ** 0.5)


def test_speckle_leaves_black_black() -> None:
    assert not apply(Speckle(5.0), flat(0.0, n=1)).any()
    images = torch.rand(4, 3, 8, 8)
    assert torch.allclose(apply(Speckle(1e-9), images), images, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RandomSign(-0.1), "eps = -0.1"),
        (lambda: RandomSign(8), "at most 1"),
        (lambda: SaltAndPepper(1.5), "from 0 to 1"),
        (lambda: SaltAndPepper(-0.5), "at least 0"),
        (lambda: Shot(0), "above 0"),
        (lambda: Shot(float("inf")), "finite"),
        (lambda: Speckle(float("nan")), "finite"),
        (lambda: Speckle(True), "std = True"),
    ],
)
def test_wrong_values_are_one_sentence(make: Callable[[], object], words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        make()
    assert "\n" not in str(raised.value) and str(raised.value).endswith((".", ")."))
