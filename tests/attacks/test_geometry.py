from __future__ import annotations

import numpy as np
import pytest
import torch
from aftershock.attacks.base.geometry import (
    ascent,
    project,
    project_l1_in_range,
    random_in_ball,
    step_within,
    to_hyperplane,
)
from aftershock.attacks.base.perturbation import Norm, norms
from aftershock.harness.core.seeds import Draws
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, brentq, minimize
from scipy.stats import kstest
from torch import Tensor


def pair(seed: int, n: int = 6, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    clean = torch.rand(n, 2, 3, 3, generator=random)
    return clean, clean + scale * torch.randn(n, 2, 3, 3, generator=random)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), eps=st.floats(0, 3), norm=st.sampled_from(["linf", "l2", "l1"]))
def test_projection_is_the_nearest_point_of_the_ball(seed: int, eps: float, norm: Norm) -> None:
    clean, images = pair(seed)
    projected = project(images, clean, eps, norm)
    assert (norms(projected - clean)[norm] <= eps * (1 + 1e-6) + 1e-6).all()
    # A point p of a convex set is nearest to x exactly where <x - p, y - p> <= 0 for every y of the set: try points
    # on the boundary, the vertices of the L1 ball among them.
    random = torch.Generator().manual_seed(seed + 1)
    for _ in range(20):
        direction = torch.randn(clean.shape, generator=random)
        vertex = torch.zeros(6, 18).scatter_(1, direction.flatten(1).abs().argmax(1, keepdim=True), 1.0).view_as(clean)
        for boundary in (direction, -direction, vertex, -vertex, direction.sign()):
            length = norms(boundary)[norm].view(-1, 1, 1, 1)
            inside = clean + eps * boundary / length
            product = ((images - projected) * (inside - projected)).flatten(1).sum(1)
            # The float32 ball ends a millionth inside the true one.
            assert (product <= 1e-4).all()


def in_l1_and_range(image: np.ndarray, clean: np.ndarray, eps: float) -> np.ndarray:
    """The same projection from its dual: the multiplier of the budget by root finding, the rest in closed form."""

    def at(multiplier: float) -> np.ndarray:
        # The best element by itself: shrunk towards clean by the multiplier, then cut off at the range.
        delta = image - clean
        return np.clip(clean + np.sign(delta) * np.maximum(np.abs(delta) - multiplier, 0), 0, 1)

    def excess(multiplier: float) -> float:
        return float(np.abs(at(multiplier) - clean).sum() - eps)

    if excess(0) <= 0:
        return at(0)
    return at(brentq(excess, 0, np.abs(image - clean).max() + 1, xtol=1e-13))


def wild(seed: int, n: int, scale: float, saturated: float) -> tuple[Tensor, Tensor]:
    """Images with many elements at the ends of the range, and others far outside it."""
    clean, images = pair(seed, n, scale)
    random = torch.Generator().manual_seed(seed + 1)
    ends = torch.rand(clean.shape, generator=random)
    return torch.where(ends < saturated, clean.round(), clean), images


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10_000), eps=st.floats(0, 12), scale=st.floats(0.01, 4), saturated=st.sampled_from([0, 0.5, 1])
)
def test_projection_onto_ball_and_range_is_that_of_the_dual(
    seed: int, eps: float, scale: float, saturated: float
) -> None:
    clean, images = wild(seed, 4, scale, saturated)
    made = project_l1_in_range(images, clean, eps)
    assert made.min() >= 0 and made.max() <= 1
    assert (norms(made - clean)["l1"] <= eps * (1 + 1e-6) + 1e-6).all()
    for image, start, result in zip(images.double().numpy(), clean.double().numpy(), made.numpy(), strict=True):
        # The float32 ball ends a millionth inside the true one, besides roundings of values below 20.
        assert np.abs(result - in_l1_and_range(image, start, eps)).max() < 2e-5


@pytest.mark.parametrize(("seed", "eps"), [(0, 0.3), (1, 1.0), (2, 2.5), (3, 6.0)])
def test_a_generic_solver_finds_the_same_nearest_point(seed: int, eps: float) -> None:
    clean, images = wild(seed, 1, 1.0, 0.3)
    start, image = clean.double().flatten().numpy(), images.double().flatten().numpy()

    # Up and down moves as separate variables make the L1 norm linear.
    def point(moves: np.ndarray) -> np.ndarray:
        return start + moves[:18] - moves[18:]

    found = minimize(
        lambda m: ((point(m) - image) ** 2).sum(),
        np.zeros(36),
        jac=lambda m: np.concatenate([2 * (point(m) - image), -2 * (point(m) - image)]),
        bounds=Bounds(0, np.concatenate([1 - start, start])),
        constraints={"type": "ineq", "fun": lambda m: eps - m.sum(), "jac": lambda m: -np.ones(36)},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    made = project_l1_in_range(images, clean, eps).flatten().numpy()
    assert found.success and np.abs(made - point(found.x)).max() < 1e-4
    assert np.square(made - image).sum() <= found.fun + 1e-4


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), eps=st.floats(0.05, 8), scale=st.floats(0.1, 3))
def test_projection_onto_ball_and_range_is_repeatable_per_image_and_nearer_than_one_after_the_other(
    seed: int, eps: float, scale: float
) -> None:
    clean, images = wild(seed, 5, scale, 0.4)
    made = project_l1_in_range(images, clean, eps)
    assert torch.equal(project_l1_in_range(made, clean, eps), made)
    for row in range(5):
        assert torch.equal(project_l1_in_range(images[row : row + 1], clean[row : row + 1], eps)[0], made[row])
    after = project(images.clamp(0, 1), clean, eps, "l1")
    far, near = (torch.linalg.vector_norm((images - m).flatten(1), dim=1) for m in (after, made))
    assert (near <= far + 1e-4).all()


def test_the_range_is_no_part_of_what_a_planted_step_loses() -> None:
    # From 0.9 by +5: the first element gives up 4.9 of its length for nothing, so all of its 0.1 is used; clipping
    # first makes both elements shrink alike.
    clean = torch.tensor([0.9, 0.2]).view(1, 1, 1, 2)
    images = clean + torch.tensor([5.0, 0.6]).view(1, 1, 1, 2)
    made = project_l1_in_range(images, clean, 0.5)
    assert torch.allclose(made.flatten(), torch.tensor([1.0, 0.6]), atol=1e-6)
    assert torch.allclose(project(images.clamp(0, 1), clean, 0.5, "l1").flatten(), torch.tensor([0.9, 0.7]), atol=1e-6)


def test_an_l1_ball_without_content_and_images_without_elements() -> None:
    clean, images = pair(0)
    assert torch.equal(project_l1_in_range(images, clean, 0.0), clean)
    assert project_l1_in_range(images[:0], clean[:0], 1.0).shape == (0, 2, 3, 3)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_images_inside_their_ball_stay_bit_for_bit(norm: Norm) -> None:
    clean, images = pair(0, scale=0.01)
    assert torch.equal(project(images, clean, 5.0, norm), images)


def test_linf_projection_is_contained_to_one_rounding() -> None:
    random = torch.Generator().manual_seed(0)
    clean = torch.rand(50, 3, 16, 16, generator=random)
    moved = project(clean + torch.randn(clean.shape, generator=random), clean, 8 / 255, "linf")
    assert float((moved.double() - clean.double()).abs().max()) <= 8 / 255 + 1e-7


def test_l0_has_no_projection() -> None:
    clean, images = pair(0)
    with pytest.raises(ValueError, match="l0"):
        project(images, clean, 1.0, "l0")


def test_ascent_has_norm_one_and_survives_tiny_gradients() -> None:
    gradient = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(norms(ascent(gradient * 1e-30, "l2"))["l2"], torch.ones(4), atol=1e-6)
    assert torch.allclose(ascent(gradient * 1e-30, "l2"), ascent(gradient, "l2"), atol=1e-6)
    assert torch.equal(ascent(gradient * 1e-30, "linf"), gradient.sign())
    assert torch.equal(ascent(torch.zeros(2, 1, 3, 3), "l2"), torch.zeros(2, 1, 3, 3))


def test_l1_ascent_moves_a_share_of_the_coordinates_evenly() -> None:
    gradient = torch.tensor([[3.0, -5.0, 0.5, 4.0], [0.0, 0.0, -1e-30, 0.0], [0.0, 0.0, 0.0, 0.0]]).view(3, 1, 2, 2)
    half = ascent(gradient, "l1", 0.5).flatten(1)
    assert half.tolist() == [[0.0, -0.5, 0.0, 0.5], [0.0, 0.0, -1.0, 0.0], [0.0] * 4]
    # A share of its own for each image.
    own = ascent(gradient, "l1", torch.tensor([0.75, 0.0, 1.0])).flatten(1)
    assert torch.allclose(own[0], torch.tensor([1.0, -1.0, 0.0, 1.0]) / 3) and own[1:].tolist() == half[1:].tolist()
    # Without a share the steepest of all: a vertex of the L1 ball.
    assert ascent(gradient, "l1").flatten(1).tolist()[0] == [0.0, -1.0, 0.0, 0.0]
    # No direction of L1 norm 1 rises faster.
    random = torch.Generator().manual_seed(1)
    tried = torch.randn(500, 4, generator=random)
    rise = tried / tried.abs().sum(1, keepdim=True) @ gradient[0].flatten()
    assert float(rise.max()) <= float((ascent(gradient, "l1")[0] * gradient[0]).sum()) == 5.0
    with pytest.raises(ValueError, match="l0"):
        ascent(gradient, "l0")


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_steps_stay_in_the_ball_and_in_range(norm: Norm) -> None:
    clean, images = pair(3, scale=3.0)
    moved = step_within(clean, images - clean, clean, 0.7, norm)
    assert moved.min() >= 0 and moved.max() <= 1 and (norms(moved - clean)[norm] <= 0.7 + 1e-6).all()


def test_an_l1_step_spends_its_budget_inside_the_range() -> None:
    # The first element is 0.1 short of 1: projecting before clipping would leave 0.9 of the budget there.
    clean = torch.tensor([0.9, 0.2]).view(1, 1, 1, 2)
    moved = step_within(clean, torch.tensor([5.0, 0.3]).view(1, 1, 1, 2), clean, 1.0, "l1")
    assert torch.allclose(moved.flatten(), torch.tensor([1.0, 0.5]))


def test_random_starts_in_l1_are_uniform_in_the_ball() -> None:
    clean = torch.zeros(800, 1, 2, 2)
    made = random_in_ball(clean, 0.5, "l1", Draws(0, range(800))).flatten(1)
    length = made.abs().sum(1)
    # In four dimensions (r / eps) ** 4 is uniform, and the share of one element follows Beta(1, 3).
    assert kstest((length / 0.5).pow(4).numpy(), "uniform").pvalue > 0.01
    for element in range(4):
        share = (made[:, element].abs() / length).numpy()
        assert kstest(share, "beta", args=(1, 3)).pvalue > 0.002
        # 800 fair coins: three standard deviations are 42.
        assert abs(int((made[:, element] > 0).sum()) - 400) < 43
    with pytest.raises(ValueError, match="l0"):
        random_in_ball(clean, 0.5, "l0", Draws(0, range(800)))


def test_random_starts_are_uniform_in_the_ball() -> None:
    clean = torch.zeros(800, 1, 2, 2)
    l2 = norms(random_in_ball(clean, 0.5, "l2", Draws(0, range(800))))["l2"]
    # Uniform in four dimensions: (r / eps) ** 4 is uniform on [0, 1].
    assert kstest((l2 / 0.5).pow(4).numpy(), "uniform").pvalue > 0.01
    linf = random_in_ball(clean, 0.5, "linf", Draws(0, range(800)))
    assert kstest(linf.flatten().numpy(), "uniform", args=(-0.5, 1.0)).pvalue > 0.01


def onto_hyperplane(point: np.ndarray, normal: np.ndarray, offset: float, norm: Norm) -> np.ndarray:
    """The same move from its dual: its size by root finding, each element in closed form."""
    gap = offset - normal @ point
    direction = np.sign(normal * gap)
    room = np.where(direction > 0, 1 - point, point) * np.abs(direction)
    pace = np.ones_like(normal) if norm == "linf" else np.abs(normal)

    def missing(size: float) -> float:
        return float(abs(gap) - np.abs(normal) @ np.minimum(size * pace, room))

    far = float(np.abs(normal) @ room) <= abs(gap)
    return direction * (room if far else np.minimum(brentq(missing, 0, 1e9, xtol=1e-12) * pace, room))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), far=st.sampled_from([0.01, 0.3, 1.0, 30.0]), norm=st.sampled_from(["linf", "l2"]))
def test_a_move_onto_a_hyperplane_is_the_shortest_within_the_range(seed: int, far: float, norm: Norm) -> None:
    random = torch.Generator().manual_seed(seed)
    points = torch.rand(2, 4, 9, generator=random)
    # Images have elements at the ends of the range, gradients have elements that are 0.
    points[:, :, :2] = points[:, :, :2].round()
    normal = torch.randn(4, 9, generator=random) * (torch.rand(4, 9, generator=random) < 0.8)
    offset = (normal * points[0]).sum(1) + far * torch.randn(4, generator=random)
    moves = to_hyperplane(points, normal, offset, norm)
    assert (points + moves).min() >= -1e-6 and (points + moves).max() <= 1 + 1e-6
    for k, row in np.ndindex(2, 4):
        weight, target = normal[row].double().numpy(), float(offset[row])
        expected = onto_hyperplane(points[k, row].double().numpy(), weight, target, norm)
        assert np.allclose(moves[k, row], expected, atol=1e-4)


def test_there_is_no_shortest_move_in_another_norm() -> None:
    with pytest.raises(ValueError, match="'l1'"):
        to_hyperplane(torch.rand(1, 2, 3), torch.rand(2, 3), torch.rand(2), "l1")
