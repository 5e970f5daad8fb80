from __future__ import annotations

import ast
import colorsys
import io
import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from aftershock.attacks.base.perturb_batch import perturb_batch
from aftershock.attacks.benign import blurs, corruptions, noise, spatial, weather
from aftershock.attacks.benign import filters as filtering
from aftershock.attacks.benign.corruptions import Corruption
from aftershock.attacks.benign.filters import convolve, gaussian_blur, gaussian_weights, plasma, sample, shifted, trail
from aftershock.harness.core.errors import UnavailableError, UsageError
from aftershock.harness.core.seeds import Draws
from PIL import Image
from scipy import ndimage
from support.attack_cases import DigitsCase, LinearCase, apply
from torch import Tensor

ALL = [
    part
    for module in (corruptions, blurs, weather)
    for part in vars(module).values()
    if isinstance(part, type) and issubclass(part, Corruption) and part.__module__ == module.__name__
    if part is not Corruption
]
SHAPES = [(1, 8, 8), (3, 32, 32), (5, 9, 13)]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def smooth(n: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Images with some structure, each spread over [0.05, 0.95]."""
    white = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed)).numpy()
    sigma = 0.035 * min(shape[1:]) + 0.2
    images = torch.from_numpy(ndimage.gaussian_filter(white, (0, 0, sigma, sigma)))
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low) * 0.9 + 0.05


def ramp(n: int, height: int, width: int) -> Tensor:
    """Images of one channel whose value is the column over the width."""
    return (torch.arange(width) / width).expand(n, 1, height, width).clone()


def distance(images: Tensor, others: Tensor) -> float:
    return float(torch.linalg.vector_norm((images - others).flatten(1), dim=1).mean())


def test_all_of_them_are_here() -> None:
    assert len(ALL) == 19
    assert {part.info.family for part in ALL} == {
        "corruption-noise", "corruption-blur", "corruption-weather", "corruption-digital",
    }  # fmt: skip
    for part in ALL:
        assert part.info.kind == "corruption" and not part.info.gradients and part.info.norm is None
        assert part.__doc__ and part.info.summary and part().severity == 3


@pytest.mark.parametrize("part", ALL, ids=lambda part: part.__name__)
@pytest.mark.parametrize("shape", SHAPES)
def test_severities_rank_by_distance(part: type[Corruption], shape: tuple[int, int, int], digits: DigitsCase) -> None:
    images = digits.images[:32] if shape == (1, 8, 8) else smooth(32, shape)
    if part is corruptions.Saturate and shape[0] == 1:
        pytest.skip("no colour to saturate")
    distances = [distance(apply(part(severity), images), images) for severity in range(1, 6)]
    if part is corruptions.Pixelate and shape != (3, 32, 32):
        # So few pixels that some severities have the same number of cells.
        assert distances == sorted(distances) and distances[0] < distances[-1]
    else:
        assert all(weak < strong for weak, strong in pairwise(distances)), distances
    assert distances[0] > 0


@pytest.mark.parametrize("part", ALL, ids=lambda part: part.__name__)
def test_severities_rank_on_larger_images_too(part: type[Corruption]) -> None:
    images = smooth(3, (3, 72, 80))
    distances = [distance(apply(part(severity), images), images) for severity in range(1, 6)]
    assert all(weak < strong for weak, strong in pairwise(distances)), distances


@pytest.mark.parametrize("part", ALL, ids=lambda part: part.__name__)
@pytest.mark.parametrize("shape", [(3, 32, 32), (5, 9, 13), (2, 1, 1)])
def test_an_image_gets_the_same_corruption_in_any_batch(part: type[Corruption], shape: tuple[int, int, int]) -> None:
    images = torch.rand(5, *shape, generator=torch.Generator().manual_seed(2))
    before = images.clone()
    corruption = part(4)
    made = apply(corruption, images)
    assert made.shape == images.shape and made.dtype == torch.float32
    assert made.isfinite().all() and float(made.min()) >= 0 and float(made.max()) <= 1
    assert torch.equal(images, before)
    assert torch.equal(apply(corruption, images), made)
    for positions in ([3], [4, 0]):
        assert torch.equal(apply(corruption, images[positions], indices=positions), made[positions])
    if shape == (3, 32, 32):
        assert torch.equal(apply(corruption, images, seed=1), made) == (not part.info.stochastic)


@pytest.mark.parametrize("part", ALL, ids=lambda part: part.__name__)
def test_black_and_white_images_stay_finite_and_in_range(part: type[Corruption]) -> None:
    images = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    made = apply(part(5), images)
    assert made.isfinite().all() and float(made.min()) >= 0 and float(made.max()) <= 1


@pytest.mark.parametrize("part", ALL, ids=lambda part: part.__name__)
def test_the_harness_has_nothing_to_mend(part: type[Corruption], digits: DigitsCase, linear: LinearCase) -> None:
    case = linear if part is corruptions.Saturate else digits
    made = perturb_batch(part(3), case.model, case.images, case.labels, case.indices, seed=0)
    assert made.flags == () and made.forwards == made.backwards == 0 and float(made.norms["l2"].mean()) > 0


AVERAGES = [
    *[part for part in ALL if part.info.family == "corruption-blur"],
    corruptions.Elastic,
    corruptions.Pixelate,
    corruptions.Contrast,
]


@pytest.mark.parametrize("part", AVERAGES, ids=lambda part: part.__name__)
def test_what_only_moves_or_averages_keeps_a_constant_image(part: type[Corruption]) -> None:
    for shape in ((1, 8, 8), (3, 21, 33)):
        images = torch.full((2, *shape), 0.37)
        assert torch.allclose(apply(part(5), images), images, atol=1e-5)


@pytest.mark.parametrize("severity", [0, 6, -1, 2.5, True, "3", None])
def test_a_wrong_severity_is_one_sentence(severity: object) -> None:
    with pytest.raises(UsageError) as raised:
        weather.Fog(severity)  # type: ignore[arg-type]
    assert str(raised.value) == f"severity = {severity!r}: give a whole number from 1 to 5."


def test_saturation_refuses_images_without_colour(digits: DigitsCase) -> None:
    with pytest.raises(UnavailableError, match="no colour"):
        perturb_batch(corruptions.Saturate(), digits.model, digits.images, digits.labels, digits.indices, seed=0)


def test_importing_them_imports_nothing_heavy() -> None:
    # Read, not run: a fresh interpreter would spend its seconds on torch.
    for module in (corruptions, blurs, weather, filtering, noise, spatial):
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
        assert not {name.split(".")[0] for name in names} & {"torchvision", "scipy", "PIL", "numpy"}


# Image operations against SciPy


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13), (2, 3, 5)])
@pytest.mark.parametrize("sigma", [0.4, 1.0, 3.3])
def test_gaussian_blur_is_scipys(shape: tuple[int, int, int], sigma: float) -> None:
    images = torch.rand(2, *shape)
    oracle = ndimage.gaussian_filter(images.double().numpy(), (0, 0, sigma, sigma), mode="mirror")
    assert np.allclose(gaussian_blur(images, sigma).numpy(), oracle, atol=1e-6)


@pytest.mark.parametrize("sides", [(3, 5), (7, 1), (15, 15)])
def test_convolution_is_scipys_also_with_kernels_larger_than_the_image(sides: tuple[int, int]) -> None:
    images, kernel = torch.rand(2, 3, 6, 4), torch.rand(sides, dtype=torch.float64)
    kernel /= kernel.sum()
    oracle = ndimage.correlate(images.double().numpy(), kernel.numpy()[None, None], mode="mirror")
    assert np.allclose(convolve(images, kernel).numpy(), oracle, atol=1e-5)


@pytest.mark.parametrize(("padding", "mode"), [("reflect", "mirror"), ("border", "nearest")])
def test_sampling_is_scipys(padding: Literal["reflect", "border"], mode: str) -> None:
    images = torch.rand(2, 3, 7, 9)
    generator = torch.Generator().manual_seed(5)
    rows = torch.rand(2, 7, 9, dtype=torch.float64, generator=generator) * 40 - 16
    columns = torch.rand(2, 7, 9, dtype=torch.float64, generator=generator) * 40 - 16
    made = sample(images, rows, columns, padding)
    for i in range(2):
        for c in range(3):
            where = np.stack([rows[i].numpy(), columns[i].numpy()])
            oracle = ndimage.map_coordinates(images[i, c].double().numpy(), where, order=1, mode=mode)
            assert np.allclose(made[i, c].numpy(), oracle, atol=1e-5)


def test_shifting_moves_down_and_right() -> None:
    image = torch.zeros(1, 9, 9)
    image[0, 4, 4] = 1
    assert shifted(image, 2, -3)[0, 6, 1] == 1


# Closed forms and other oracles


def test_noises_have_the_published_strength() -> None:
    images = torch.full((20, 3, 32, 32), 0.5)
    n = images.numel()
    for severity, std in enumerate((0.04, 0.06, 0.08, 0.09, 0.10), 1):
        noise = apply(corruptions.GaussianNoise(severity), images) - images
        assert float(noise.std()) == pytest.approx(std, rel=4 / (2 * n) ** 0.5)
        speckle = apply(corruptions.SpeckleNoise(severity), images) - images
        relative = (0.06, 0.10, 0.12, 0.16, 0.20)[severity - 1]
        assert float(speckle.std()) == pytest.approx(0.5 * relative, rel=4 / (2 * n) ** 0.5)
        shot = apply(corruptions.ShotNoise(severity), images) - images
        photons = (500, 250, 100, 75, 50)[severity - 1]
        assert float(shot.var()) == pytest.approx(0.5 / photons, rel=0.03)
        impulse = apply(corruptions.ImpulseNoise(severity), images)
        amount = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
        assert float((impulse != images).float().mean()) == pytest.approx(amount, abs=4 * (amount / n) ** 0.5)
        assert not torch.equal(impulse[:, 0], impulse[:, 1])


def colours(n: int = 8) -> Tensor:
    return torch.rand(n, 3, 5, 6, generator=torch.Generator().manual_seed(4))


def through_hsv(images: Tensor, change: Callable[[float, float, float], tuple[float, float, float]]) -> Tensor:
    made = torch.empty_like(images)
    for i, y, x in np.ndindex(len(images), *images.shape[2:]):
        made[i, :, y, x] = torch.tensor(
            colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*images[i, :, y, x].tolist())))
        )
    return made


@pytest.mark.parametrize(("severity", "add"), [(1, 0.05), (3, 0.15), (5, 0.3)])
def test_brightness_raises_the_value_in_hsv(severity: int, add: float) -> None:
    images = colours()
    images[0] = 0
    oracle = through_hsv(images, lambda h, s, v: (h, s, min(v + add, 1)))
    assert torch.allclose(apply(corruptions.Brightness(severity), images), oracle, atol=1e-6)
    grey = torch.rand(2, 1, 8, 8)
    assert torch.allclose(apply(corruptions.Brightness(severity), grey), (grey + add).clamp(max=1), atol=1e-6)


@pytest.mark.parametrize(("severity", "gain", "add"), [(1, 1.2, 0), (3, 1.5, 0), (5, 2.5, 0.2)])
def test_saturation_rises_in_hsv_and_grey_stays_grey(severity: int, gain: float, add: float) -> None:
    images = colours()
    oracle = through_hsv(images, lambda h, s, v: (h, min(s * gain + add, 1), v))
    assert torch.allclose(apply(corruptions.Saturate(severity), images), oracle, atol=1e-6)
    grey = torch.rand(2, 1, 8, 8).expand(2, 3, 8, 8)
    assert torch.equal(apply(corruptions.Saturate(severity), grey), grey)


def test_contrast_keeps_the_means_and_shrinks_the_deviations() -> None:
    images = torch.rand(4, 5, 9, 13)
    made = apply(corruptions.Contrast(5), images)
    assert torch.allclose(made.mean((2, 3)), images.mean((2, 3)), atol=1e-6)
    assert torch.allclose(made.std((2, 3)), 0.15 * images.std((2, 3)), atol=1e-6)


@pytest.mark.parametrize(("severity", "cells"), [(1, 30), (3, 27), (5, 20)])
def test_pixels_are_averaged_over_equal_cells(severity: int, cells: int) -> None:
    images = torch.rand(2, 3, 32, 32)
    # Each pixel cut into cells x cells equal parts: a cell is then a whole block of 32 x 32 of them.
    fine = images.double().numpy().repeat(cells, 2).repeat(cells, 3)
    means = fine.reshape(2, 3, cells, 32, cells, 32).mean((3, 5))
    parts = means.repeat(32, 2).repeat(32, 3)
    oracle = parts.reshape(2, 3, 32, cells, 32, cells).mean((3, 5))
    assert np.allclose(apply(corruptions.Pixelate(severity), images).numpy(), oracle, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("severity", "quality"), list(enumerate((80, 65, 58, 50, 40), start=1)))
def test_jpeg_is_a_file_and_back(channels: int, severity: int, quality: int) -> None:
    images = smooth(2, (channels, 24, 17))
    made = apply(corruptions.JPEG(severity), images)
    for image, result in zip(images, made, strict=True):
        file = io.BytesIO()
        pixels = (image.numpy() * 255).round().astype(np.uint8).transpose(1, 2, 0).squeeze()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        oracle = np.asarray(Image.open(file)).reshape(24, 17, channels).transpose(2, 0, 1) / 255
        assert np.allclose(result.numpy(), oracle, atol=1e-6)


def test_jpeg_takes_any_size_and_number_of_channels_and_warns_of_nothing() -> None:
    images = smooth(2, (5, 24, 17))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = apply(corruptions.JPEG(5), images)
        for c in range(5):
            assert torch.equal(apply(corruptions.JPEG(5), images[:, c : c + 1]), made[:, c : c + 1])
        for shape in ((1, 3, 1, 1), (2, 4, 9, 1), (1, 2, 40, 65)):
            assert apply(corruptions.JPEG(3), torch.rand(shape)).shape == shape
        assert corruptions.JPEG(3).corrupt(torch.rand(0, 3, 8, 8), Draws(0, [])).shape == (0, 3, 8, 8)


def test_blurs_widen_with_the_image() -> None:
    images = torch.rand(1, 1, 64, 96)
    oracle = ndimage.gaussian_filter(images.double().numpy(), (0, 0, 2.0, 2.0), mode="mirror")
    assert np.allclose(apply(blurs.GaussianBlur(5), images).numpy(), oracle, atol=1e-6)
    small = torch.rand(1, 1, 8, 8)
    oracle = ndimage.gaussian_filter(small.double().numpy(), (0, 0, 1.0, 1.0), mode="mirror")
    assert np.allclose(apply(blurs.GaussianBlur(5), small).numpy(), oracle, atol=1e-6)


def point(height: int = 31, width: int = 31) -> Tensor:
    image = torch.zeros(1, 1, height, width)
    image[0, 0, height // 2, width // 2] = 1
    return image


def test_defocus_of_a_point_is_a_disc() -> None:
    response = apply(blurs.DefocusBlur(4), point())[0, 0]
    cross = torch.zeros(31, 31)
    cross[15, 14:17] = cross[14:17, 15] = 0.2
    # Softening by a Gaussian of 0.2 pixels moves about exp(-12.5) of a weight.
    assert torch.allclose(response, cross, atol=2e-5)
    assert float(apply(blurs.DefocusBlur(5), point()).sum()) == pytest.approx(1, abs=1e-5)


def test_a_trail_is_half_a_gaussian_along_its_angle() -> None:
    along = trail(point(), 2.0, 6, torch.tensor([0.0]))[0, 0, 15]
    weights = torch.exp(-0.5 * (torch.arange(13) / 2.0) ** 2)
    assert torch.allclose(along[15:28], weights / weights.sum(), atol=1e-6) and not along[:15].any()
    down = trail(point(), 2.0, 6, torch.tensor([math.pi / 2]))[0, 0, :, 15]
    assert torch.allclose(down, along, atol=1e-6)


def test_motion_stays_within_45_degrees_of_the_horizontal() -> None:
    made = apply(blurs.MotionBlur(5), point().expand(200, -1, -1, -1))[:, 0].double()
    offsets = torch.arange(31, dtype=torch.float64) - 15
    down, right = (made.sum(2) * offsets).sum(1), (made.sum(1) * offsets).sum(1)
    angles = torch.atan2(down, right)
    assert float(angles.abs().max()) < math.pi / 4 + 0.1
    # Uniform over 90 degrees: a standard deviation of pi / 2 / sqrt(12), roughly, since trails are on whole pixels.
    assert float(angles.std()) == pytest.approx(math.pi / 2 / 12**0.5, rel=0.2)


def test_glass_blur_stays_within_its_reach() -> None:
    made = apply(blurs.GlassBlur(5), point().expand(100, -1, -1, -1))
    # Two pixels of displacement and one of each of the two blurs.
    assert made[..., 15, 15].std() > 0.1
    made[..., 11:20, 11:20] = 0
    assert not made.any()


@pytest.mark.parametrize("severity", [1, 5])
def test_zoom_blur_of_a_ramp_is_a_flatter_ramp(severity: int) -> None:
    images, steps = ramp(1, 12, 17), 5 * severity
    slope = (1 + sum(1 / (1 + k / 100) for k in range(steps + 1))) / (steps + 2)
    oracle = (images - 8 / 17) * slope + 8 / 17
    assert torch.allclose(apply(blurs.ZoomBlur(severity), images), oracle, atol=1e-6)


@pytest.mark.parametrize(("severity", "local", "affine"), [(1, 0.010, 0.02), (5, 0.035, 0.06)])
def test_elastic_moves_the_centre_as_far_as_it_says(severity: int, local: float, affine: float) -> None:
    images = ramp(600, 33, 33)
    # On a ramp the change of a value is the displacement; the centre never meets the border.
    moved = (apply(corruptions.Elastic(severity), images) - images)[:, 0, 16, 16] * 33
    # The mean of two corners, each uniform in +-affine, and the local field.
    expected = 33 * math.sqrt(local**2 + affine**2 / 6)
    assert float(moved.std()) == pytest.approx(expected, rel=4 / math.sqrt(1200))
    assert float(moved.mean()) == pytest.approx(0, abs=4 * expected / math.sqrt(600))


def test_a_plasma_fractal_fills_its_range_and_is_smoother_with_more_decay() -> None:
    images = torch.zeros(12, 3, 64, 64)
    roughness = []
    for decay in (1.5, 2.0, 3.0):
        field = plasma(images, decay, Draws(0, range(12)))
        assert field.shape == (12, 1, 64, 64)
        assert (field.amin((1, 2, 3)) == 0).all() and torch.allclose(field.amax((1, 2, 3)), torch.ones(12))
        roughness.append(float(field.diff(dim=3).abs().mean()))
    assert roughness[0] > 1.2 * roughness[1] > 1.2**2 * roughness[2]
    odd = plasma(torch.zeros(2, 1, 9, 13), 2.0, Draws(0, range(2)))
    assert odd.shape == (2, 1, 9, 13) and odd.isfinite().all()


def test_fog_raises_the_dark_and_keeps_the_brightest() -> None:
    images = smooth(16, (3, 32, 32))
    made = apply(weather.Fog(5), images)
    assert (made.amax((1, 2, 3)) <= images.amax((1, 2, 3)) + 1e-6).all()
    assert (made.amin((1, 2, 3)) >= 0).all() and (made.std((1, 2, 3)) > 0).all()
    # The same fractal in all channels: differences between channels shrink by m / (m + 1.5).
    brightest = images.amax((1, 2, 3))[:, None, None]
    factor = brightest / (brightest + 1.5)
    assert torch.allclose(made[:, 0] - made[:, 1], (images[:, 0] - images[:, 1]) * factor, atol=1e-6)


def test_frost_is_the_same_ice_at_all_severities_and_bluish() -> None:
    images = torch.full((6, 3, 32, 32), 0.2)
    ice = [
        (apply(weather.Frost(severity), images) - images) / amount
        for severity, amount in enumerate((0.2, 0.3, 0.4, 0.5, 0.6), 1)
    ]
    for other in ice[1:]:
        assert torch.allclose(other, ice[0], atol=1e-5)
    assert (ice[0][:, 2] > ice[0][:, 0]).all() and float(ice[0].std()) > 0.05


def test_snow_only_brightens_and_is_white() -> None:
    images = torch.zeros(40, 3, 32, 32)
    made = apply(weather.Snow(5), images)
    assert torch.equal(made[:, 0], made[:, 1])
    # Black becomes (1 - 0.8) 0.5 where no snow falls.
    assert float(made.min()) == pytest.approx(0.1, abs=1e-6) or float(made.min()) > 0.1
    weak = apply(weather.Snow(1), images)
    assert float(weak.min()) == pytest.approx(0.05 * 0.5, abs=1e-6) and float(weak.mean()) < float(made.mean())


@pytest.mark.parametrize(("severity", "covered"), [(1, 0.06), (5, 0.28)])
def test_drops_cover_their_share(severity: int, covered: float) -> None:
    # Away from the border, where mirrored noise varies more.
    drops = apply(weather.Spatter(severity), torch.zeros(400, 1, 32, 32))[..., 6:-6, 6:-6]
    white = 0.299 * 0.69 + 0.587 * 0.93 + 0.114 * 0.93
    # Softening keeps the mean; 400 images of some 40 independent patches each are 3 % of 0.06.
    assert float(drops.mean()) / (0.5 * white) == pytest.approx(covered, rel=0.1)


def test_smoothed_white_noise_has_the_deviation_that_levels_are_set_by() -> None:
    noise = torch.randn(200, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    inner = gaussian_blur(noise, 1.5)[..., 8:-8, 8:-8]
    assert float(inner.std()) == pytest.approx(float(gaussian_weights(1.5).square().sum()), rel=0.02)
