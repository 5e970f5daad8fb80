"""What is held out is never a copy of what was learned from, and no regression learns to spot its own originals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from aftershock.detectors.activations.kde import KernelDensity
from aftershock.detectors.activations.knn import Neighbours
from aftershock.detectors.activations.lid import Lid
from aftershock.detectors.base.splits import exclude_training_sources, held_apart, split_rows
from aftershock.harness.tracing.traces import Need
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from support.activations import World


@given(sources=st.lists(st.integers(0, 9), min_size=1, max_size=40), count=st.integers(1, 40), seed=st.integers(0, 5))
def test_rows_of_one_image_are_never_parted(sources: list[int], count: int, seed: int) -> None:
    known = torch.tensor(sources)
    drawn, others = split_rows(torch.arange(len(known)), count, torch.Generator().manual_seed(seed), known)
    everything = list(range(len(known)))
    if torch.equal(drawn, others):  # only where nothing can be left for the other part
        assert drawn.tolist() == everything and (len(set(sources)) == 1 or count >= len(sources))
    else:
        assert sorted([*drawn.tolist(), *others.tolist()]) == everything
        assert set(known[drawn].tolist()).isdisjoint(known[others].tolist())


def test_noise_negatives_stay_with_their_originals(world: World) -> None:
    traces = world.traces(world.clean(80, 2), (Need("pooled"),), fit=True)
    # The last 40 rows are noisy copies of the first 40.
    traces = replace(traces, source_rows=torch.arange(40).repeat(2))
    train, held_out = held_apart(traces, 16)
    assert len(train) == 64 and len(held_out) == 16
    assert train.sources is not None and held_out.sources is not None
    assert set(train.sources.tolist()).isdisjoint(held_out.sources.tolist())


def test_strangers_are_the_rows_whose_originals_are_not_kept(world: World) -> None:
    clean = replace(world.traces(world.clean(6, 1), (), fit=True), source_rows=torch.tensor([4, 7, 9, 11, 12, 30]))
    made = replace(world.traces(world.perturbed(4, 2), ()), source_rows=torch.tensor([7, 9, 30, 4]))
    left = exclude_training_sources(made, clean[:2])
    assert left.sources is not None and left.sources.tolist() == [9, 30] and torch.equal(left.logits, made.logits[1:3])
    # Where every original is kept, or nobody knows, all are better than none.
    assert len(exclude_training_sources(made, clean)) == 4
    assert len(exclude_training_sources(replace(made, source_rows=None), clean[:1])) == 4


@pytest.mark.parametrize(
    "detector",
    [
        Neighbours(layers="all", neighbours=1, combination="logistic"),
        Lid(neighbours=5, combination="logistic"),
        KernelDensity(bandwidth=0.3, combination="logistic"),
    ],
    ids=["knn", "lid", "kde"],
)
def test_closeness_to_its_own_original_is_no_sign_of_an_attack(world: World, detector: Any) -> None:
    """Planted: the perturbed images are the clean ones; only a detector that keeps the originals sees a difference."""
    sample, n = world.clean(300, 3, wrong=0), 300
    clean = replace(world.traces(sample, detector.needs, fit=True), source_rows=torch.arange(n))
    made = world.traces(sample, detector.needs)
    fresh, others = (world.traces(world.clean(200, seed, wrong=0), detector.needs) for seed in (4, 5))

    def misled(perturbed: Any) -> float:
        """How well the copies are told from fresh clean images: by nothing but their originals."""
        detector.fit(replace(clean, random=torch.Generator().manual_seed(0)), perturbed)
        scores = torch.cat([detector.score(fresh), detector.score(made)])
        return float(roc_auc_score([0] * 200 + [1] * n, scores))

    informed = misled(replace(made, source_rows=torch.arange(n)))
    assert misled(made) > informed + 0.15
    # Two fresh sets are told apart by chance only, whatever was learned.
    scores = torch.cat([detector.score(fresh), detector.score(others)])
    assert abs(float(roc_auc_score([0] * 200 + [1] * 200, scores)) - 0.5) < 0.12
