from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from aftershock.attacks.base.perturbation import norms
from aftershock.attacks.native.pgd import PGD
from aftershock.attacks.native.square import (
    Square,
    propose_l2,
    propose_linf,
    search,
    square_share,
    start_l2,
    start_linf,
)
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.seeds import Draws
from support.attack_cases import DigitsCase, LinearCase, Rounded, run
from torch import Tensor


def grey(n: int, channels: int = 3, side: int = 10) -> Tensor:
    random = torch.Generator().manual_seed(5)
    return torch.rand(n, channels, side, side, generator=random) * 0.2 + 0.4


def test_the_share_is_halved_as_in_the_paper() -> None:
    # Of 10,000 queries after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000; other numbers in proportion.
    assert square_share(0, 10_000, 0.8) == square_share(10, 10_000, 0.8) == 0.8
    assert square_share(11, 10_000, 0.8) == 0.4 and square_share(9_999, 10_000, 0.8) == 0.8 / 2**9
    assert square_share(50, 1_000, 0.8) == 0.8 / 2**3 and square_share(51, 1_000, 0.8) == 0.8 / 2**4
    shares = [square_share(step, 5_000, 0.8) for step in range(5_000)]
    assert shares == sorted(shares, reverse=True) and len(set(shares)) == 10


def test_the_start_is_stripes_at_the_edge_of_the_budget() -> None:
    clean = grey(200)
    delta = start_linf(clean, 0.1, Draws(0, range(200))) - clean
    assert torch.allclose(delta.abs(), torch.tensor(0.1), atol=1e-6)
    assert torch.allclose(delta, delta[:, :, :1].expand_as(delta), atol=1e-6)
    # 6000 fair coins: four standard deviations are 155.
    assert abs(int((delta[:, :, 0] > 0).sum()) - 3000) < 155


@pytest.mark.parametrize("channels", [1, 3])
def test_an_linf_proposal_changes_one_square(channels: int) -> None:
    clean, draws = grey(400, channels), Draws(0, range(400))
    current = start_linf(clean, 0.1, draws)
    # 9 of 100 pixels.
    made = propose_linf(current, clean, 0.1, 0.09, draws)
    changed = (made != current).any(1)
    rows, columns = changed.any(2), changed.any(1)
    assert (rows.sum(1) <= 3).all() and (columns.sum(1) <= 3).all() and changed.flatten(1).any(1).all()
    assert torch.allclose((made - clean).abs(), torch.tensor(0.1), atol=1e-6)
    # On images at neither edge of the budget all of the square changes: where it lies is seen.
    whole = (propose_linf(clean, clean, 0.1, 0.09, draws) != clean).all(1)
    assert (whole.flatten(1).sum(1) == 9).all()
    tops = whole.any(2).int().argmax(1)
    counts = torch.bincount(tops, minlength=8)
    # 400 squares on 8 equally likely rows: 50 each, four standard deviations are 26.
    assert len(counts) == 8 and ((counts - 50).abs() < 27).all()
    signs = (propose_linf(clean, clean, 0.1, 1.0, draws) - clean).sign()
    assert torch.equal(signs, signs[:, :, :1, :1].expand_as(signs)) and abs(float(signs.mean())) < 0.15


def test_an_l2_start_and_proposals_use_the_whole_budget() -> None:
    clean, draws = grey(100), Draws(0, range(100))
    current = start_l2(clean, 0.5, draws)
    for share in (0.8, 0.2, 0.05, 0.01):
        assert torch.allclose(norms(current - clean)["l2"], torch.tensor(0.5), rtol=1e-4)
        made = propose_l2(current, clean, 0.5, share, draws)
        assert (made != current).flatten(1).any(1).all()
        current = made
    # A proposal of two windows of 3 x 3: outside them it only stretches what was there.
    current = start_l2(clean, 0.5, draws)
    made = propose_l2(current, clean, 0.5, 0.09, draws)
    before, after = (current - clean).flatten(1), (made - clean).flatten(1)
    scale = (after / before).nanmedian(1, keepdim=True).values
    kept = ((after - scale * before).abs() < 1e-5).view(100, 3, 100).all(1)
    assert (kept.sum(1) >= 100 - 2 * 9).all() and kept.sum(1).min() < 90


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 5), (1, 4, 4), (2, 28, 13)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_small_and_oblong_images(shape: tuple[int, int, int], norm: Literal["linf", "l2"]) -> None:
    clean = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    made, values = search(lambda images, rows: 1 + images.flatten(1).mean(1), clean, 0.2, norm, 40, Draws(0, range(3)))
    assert made.shape == clean.shape and made.min() >= 0 and made.max() <= 1
    assert (norms(made - clean)[norm] <= 0.2 + 1e-6).all() and values.isfinite().all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_any_objective_can_be_searched_and_those_done_are_not_asked_again(norm: Literal["linf", "l2"]) -> None:
    clean, asked = grey(30), torch.zeros(30, dtype=torch.int64)
    goals = torch.linspace(0.001, 0.3, 30) if norm == "linf" else torch.linspace(0.02, 2.0, 30)

    def objective(images: Tensor, rows: Tensor) -> Tensor:
        asked[rows] += 1
        assert not images.requires_grad
        rise = (images - clean[rows])[:, 0].flatten(1)
        return goals[rows] - (rise.mean(1) if norm == "linf" else rise.sum(1))

    eps = {"linf": 0.1, "l2": 0.2}[norm]
    made, values = search(objective, clean, eps, norm, 200, Draws(0, range(30)))
    seen = asked.clone()
    again = objective(made, torch.arange(30))
    assert torch.allclose(values, again, atol=1e-6)
    # The best are eps everywhere, in L2 sum |x| <= 10 eps for the 100 pixels of one channel: beyond, none.
    best = {"linf": 0.1, "l2": 10 * 0.2}[norm]
    done = values <= 0
    assert not done[goals > best].any() and 3 < done.sum() < 28
    if norm == "linf":
        assert done[goals < 0.9 * best].all()
    assert (seen[~done] == 200).all() and (seen[done] < 200).all()
    with pytest.raises(ValueError, match="l1"):
        search(objective, clean, eps, "l1", 3, Draws(0, range(30)))  # type: ignore[arg-type]


def test_an_objective_without_a_value_is_never_done() -> None:
    clean = grey(4)
    made, values = search(
        lambda images, rows: torch.full((len(rows),), float("nan")), clean, 0.1, "linf", 5, Draws(0, range(4))
    )
    assert values.isposinf().all() and (norms(made - clean)["linf"] <= 0.1 + 1e-6).all()


def test_on_a_linear_model_it_succeeds_exactly_below_the_dual_norm(linear: LinearCase) -> None:
    distance = linear.margins / linear.model.weight.detach().abs().sum()
    made = run(linear, Square(0.02, queries=600))
    fooled, clear = distance < 0.02, (distance - 0.02).abs() > 1e-4
    assert 30 < fooled.sum() < 170 and clear.sum() > 190 and made.flags == () and made.backwards == 0
    assert torch.equal(made.success[clear], fooled[clear])


def test_in_l2_it_never_passes_the_bound_of_a_linear_model_and_comes_near(linear: LinearCase) -> None:
    distance = linear.margins / torch.linalg.vector_norm(linear.model.weight.detach())
    made = run(linear, Square(0.1, "l2", queries=600))
    assert not made.success[distance > 0.1001].any() and made.flags == ()
    # Windows of 3 x 3 on images of 4 x 4 cannot follow single elements.
    assert made.success[distance < 0.04].all() and (distance < 0.04).sum() > 30


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.08), ("l2", 0.6)])
def test_masked_gradients_stop_pgd_and_not_square(digits: DigitsCase, norm: Literal["linf", "l2"], eps: float) -> None:
    masked = Rounded(digits.model)
    assert run(digits, PGD(eps, norm=norm)).success.float().mean() > 0.6
    pgd = run(digits, PGD(eps, norm=norm, steps=20, restarts=3), masked)
    square = run(digits, Square(eps, norm, queries=400), masked)
    assert "zero-gradient" in pgd.flags and pgd.success.float().mean() < 0.15
    assert square.success.float().mean() > 0.5 and square.flags == ()


@pytest.mark.torchattacks
def test_it_is_as_strong_as_another_implementation(digits: DigitsCase) -> None:
    import torchattacks

    cases: tuple[tuple[Literal["linf", "l2"], float], ...] = (("linf", 0.06), ("l2", 0.5))
    for norm, eps in cases:
        ours = run(digits, Square(eps, norm, queries=300))
        with torch.random.fork_rng(devices=[]):
            attack = torchattacks.Square(
                digits.model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, n_queries=300, loss="margin", seed=0
            )
            theirs = attack(digits.images, digits.labels).detach()
        with torch.no_grad():
            fooled = digits.model(theirs).argmax(1) != digits.labels
        # Two random searches of the same length: five images of 80 is more than they differ by from seed to seed.
        assert 15 < fooled.sum() < 75 and int(ours.success.sum()) >= int(fooled.sum()) - 5


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_batch_and_the_run_change_nothing_and_the_seed_does(
    digits: DigitsCase, norm: Literal["linf", "l2"]
) -> None:
    attack = Square({"linf": 0.05, "l2": 0.5}[norm], norm, queries=60)
    whole, again, parts = run(digits, attack), run(digits, attack), run(digits, attack, batch_size=7)
    assert torch.equal(whole.images, again.images) and 0 < whole.success.sum() < 80
    # Rounding may turn a comparison of two nearly equal proposals, but hardly ever.
    assert (whole.success == parts.success).float().mean() > 0.97
    assert ((whole.images - parts.images).abs() > 1e-4).float().mean() < 0.05
    assert not torch.equal(whole.images, run(digits, attack, seed=1).images)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_budget_of_nothing_fools_nothing_and_is_paid_in_full(linear: LinearCase, norm: Literal["linf", "l2"]) -> None:
    made = run(linear, Square(0.0, norm, queries=9))
    assert torch.equal(made.images, linear.images) and not made.success.any()
    assert (made.forwards, made.backwards) == (9, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Square(-0.1), "eps = -0.1"),
        (lambda: Square(8.0), "8/255"),
        (lambda: Square(0.1, "l1"), "linf or l2"),  # type: ignore[arg-type]
        (lambda: Square(0.1, queries=0), "queries = 0"),
        (lambda: Square(0.1, p=0.0), "p = 0.0"),
        (lambda: Square(0.1, p=1.2), "at most 1"),
    ],
)
def test_wrong_parameters_are_one_sentence(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
