"""Draws depend on what they are named for and on nothing else."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from aftershock.harness.core.seeds import Draws, DrawsAhead, derive_seed, forked_rng, generator
from hypothesis import given
from hypothesis import strategies as st
from support.generators import generator_states

IMAGES = torch.zeros(6, 2, 5, 5)


def test_derived_seeds_are_stable() -> None:
    # sha256 of the joined text: these numbers may never change, or every stored result would.
    import hashlib

    assert derive_seed(0) == int.from_bytes(hashlib.sha256(b"0").digest()[:8], "big") >> 1
    joined = hashlib.sha256(b"3\x1fdetector\x1f7").digest()
    assert derive_seed(3, "detector", 7) == int.from_bytes(joined[:8], "big") >> 1


@given(st.integers(0, 2**40), st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=4))
def test_derived_seeds_fit_every_generator(seed: int, axes: list[str]) -> None:
    derived = derive_seed(seed, *axes)
    assert 0 <= derived < 2**63
    torch.Generator().manual_seed(derived)


def test_derived_seeds_differ_by_every_axis() -> None:
    made: list[tuple[Any, ...]] = [
        (0,),
        (1,),
        (0, "a"),
        (0, "b"),
        (0, "a", "b"),
        (0, "b", "a"),
        (0, "ab"),
        (0, "", "ab"),
        (0, "a", 1),
        (0, "a1"),
    ]
    assert len({derive_seed(*axes) for axes in made}) == len(made)


@pytest.mark.parametrize("kind", ["normal", "uniform", "signs"])
def test_an_image_draws_the_same_whatever_else_is_in_the_batch(kind: str) -> None:
    whole = getattr(Draws(5, range(6)), kind)(IMAGES)
    for index in (0, 3, 5):
        alone = getattr(Draws(5, [index]), kind)(IMAGES[:1])
        assert torch.equal(alone[0], whole[index])
    shuffled = getattr(Draws(5, [4, 2, 0]), kind)(IMAGES[:3])
    assert torch.equal(shuffled, whole[[4, 2, 0]])
    assert not torch.equal(getattr(Draws(6, range(6)), kind)(IMAGES), whole)


def test_taken_draws_go_on_where_the_whole_stands() -> None:
    whole, other = Draws(1, [7, 8, 9]), Draws(1, [7, 8, 9])
    first = whole.uniform(IMAGES[:3])
    assert torch.equal(first, other.uniform(IMAGES[:3]))
    rest = whole.uniform(IMAGES[:3])
    part = other.take([2, 0])
    assert part.indices == (9, 7)
    assert torch.equal(part.uniform(IMAGES[:2]), rest[[2, 0]])


def test_draws_have_the_distributions_they_promise() -> None:
    draws = Draws(0, range(20))
    images = torch.zeros(20, 1, 50, 50, dtype=torch.float64)
    normal, uniform, signs = draws.normal(images), draws.uniform(images), draws.signs(images)
    # 50 000 numbers: four standard errors.
    assert normal.dtype == torch.float64
    assert abs(float(normal.mean())) < 4 / 50_000**0.5
    assert abs(float(normal.std()) - 1) < 4 / (2 * 50_000) ** 0.5
    assert float(uniform.min()) >= 0
    assert float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < 4 * (1 / 12 / 50_000) ** 0.5
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 4 / 50_000**0.5


def test_draws_for_another_number_of_images_are_refused() -> None:
    with pytest.raises(ValueError, match="4 images but draws for 3"):
        Draws(0, range(3)).normal(IMAGES[:4])
    assert Draws(0, []).normal(IMAGES[:0]).shape == (0, 2, 5, 5)


@pytest.mark.parametrize("raises", [False, True])
def test_forked_rng_puts_everything_back(raises: bool) -> None:
    torch.rand(1), np.random.rand(), random.random()
    before = generator_states()
    seen = []
    for _ in range(2):
        try:
            with forked_rng(123):
                seen.append((float(torch.rand(1)), float(np.random.rand()), random.random()))
                torch.manual_seed(0)
                np.random.seed(0)
                random.seed(0)
                if raises:
                    raise RuntimeError
        except RuntimeError:
            pass
        assert generator_states() == before
    assert seen[0] == seen[1]


def test_forked_rng_nests() -> None:
    with forked_rng(1):
        first = torch.rand(1)
        with forked_rng(2):
            torch.rand(5)
        second = torch.rand(1)
    with forked_rng(1):
        assert torch.equal(torch.rand(1), first)
        assert torch.equal(torch.rand(1), second)


def test_a_generator_is_of_its_seed() -> None:
    assert generator(3, "x").initial_seed() == derive_seed(3, "x")


def test_numbers_drawn_ahead_are_those_of_single_draws_and_leave_the_generators_alike() -> None:
    like = torch.empty(4, 5)
    single, ahead = Draws(7, range(4)), Draws(7, range(4))
    block = DrawsAhead(ahead, steps=8)
    for _ in range(11):
        torch.testing.assert_close(block.uniform(like), single.uniform(like), rtol=0, atol=0)
    # Two images leave after eleven draws, the others go on over the end of a block.
    block.keep([1, 3])
    rest = single.take([1, 3])
    for _ in range(7):
        torch.testing.assert_close(block.uniform(like[:2]), rest.uniform(like[:2]), rtol=0, atol=0)
    block.settle()
    torch.testing.assert_close(ahead.normal(like), single.normal(like), rtol=0, atol=0)
