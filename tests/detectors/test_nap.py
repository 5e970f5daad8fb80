"""Neuron activation patterns against plain loops and planted cases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from aftershock.detectors.bits.nap import ActivationPatterns
from aftershock.harness.core.errors import UsageError
from aftershock.harness.tracing.traces import pool
from sklearn.metrics import roc_auc_score
from support.activations import Sample, World

TAPS = ("conv", "block.relu", "dense")


def pooled(sample: Sample, world: World, tap: str, statistic: Any) -> np.ndarray:
    info = next(t for t in world.taps if t.name == tap)
    return np.asarray(pool(sample.before[tap].relu().unflatten(1, info.shape), statistic).numpy())


def bits(values: np.ndarray, quantile: float) -> np.ndarray:
    return np.asarray(values > np.quantile(values, quantile, axis=1, keepdims=True).astype(np.float32))


def by_loops(world: World, clean: Any, tested: Any, statistic: str, quantile: float, level: float) -> np.ndarray:
    """Columns: the mean of scaled distances, the votes; (n, 2)."""
    labels, said = clean.labels.numpy(), clean.logits.argmax(1).numpy()
    right = labels == said
    sums, votes = np.zeros(len(tested.labels)), np.zeros(len(tested.labels))
    for tap in TAPS:
        known = bits(pooled(clean, world, tap, statistic), quantile)[right]
        rows = bits(pooled(tested, world, tap, statistic), quantile)
        owners = labels[right]
        others = []
        for i in range(len(known)):
            mates = np.flatnonzero((owners == owners[i]) & (np.arange(len(known)) != i))
            if len(mates):
                others.append((known[mates] != known[i]).mean(1).min())
        mean, deviation = np.mean(others), np.std(others)
        threshold = np.quantile(others, level, method="inverted_cdf")
        for i, predicted in enumerate(tested.logits.argmax(1).tolist()):
            own = known[owners == predicted] if (owners == predicted).any() else known
            distance = (own != rows[i]).mean(1).min()
            sums[i] += (distance - mean) / deviation / len(TAPS)
            votes[i] += distance > threshold + 1e-9
    return np.stack([sums, votes], 1)


@pytest.mark.parametrize(("statistic", "quantile"), [("mean", 0.5), ("max", 0.3), ("mean", 0.81)])
def test_distances_and_votes_are_those_of_plain_loops(world: World, statistic: Any, quantile: float) -> None:
    clean, tested = world.clean(130, 1), world.perturbed(40, 2)
    clean = clean.take(clean.labels != 3)
    expected = by_loops(world, clean, tested, statistic, quantile, 0.9)
    found = {}
    for combine in ("sum", "vote"):
        detector = ActivationPatterns("all", statistic, quantile, combine, level=0.9)
        detector.fit(world.traces(clean, detector.needs, fit=True))
        found[combine] = detector.score(world.traces(tested, detector.needs)).numpy()
    np.testing.assert_allclose(found["sum"], expected[:, 0], atol=1e-5)
    np.testing.assert_array_equal(np.floor(found["vote"]), expected[:, 1])
    # Equal votes are ordered by the sum.
    for count in np.unique(expected[:, 1]):
        same = expected[:, 1] == count
        order = np.argsort(found["sum"][same], kind="stable")
        assert bool((np.diff(found["vote"][same][order]) >= 0).all())


def test_patterns_are_unique_and_limited(world: World) -> None:
    clean = world.clean(300, 1)
    twice = replace(
        clean,
        before={k: torch.cat([v, v]) for k, v in clean.before.items()},
        logits=torch.cat([clean.logits] * 2),
        labels=torch.cat([clean.labels] * 2),
    )
    kept = {}
    for name, sample in (("once", clean), ("twice", twice)):
        detector = ActivationPatterns("all")
        kept[name] = detector.fit(world.traces(sample, detector.needs, fit=True)).fitted
    for index in "012":
        assert torch.equal(kept["once"][index]["packed"], kept["twice"][index]["packed"])
    limited = ActivationPatterns("all", patterns=4)
    limited.fit(world.traces(clean, limited.needs, fit=True))
    assert torch.bincount(limited.fitted["2"]["groups"]).tolist() == [4] * 5


@pytest.mark.parametrize("combine", ["sum", "vote"])
def test_unseen_patterns_score_one_and_seen_ones_a_half(world: World, combine: Any) -> None:
    """Clean images all have one half of the maps of the last tap on, the planted ones the other half."""

    def one_half(on: slice) -> Any:
        def change(x: torch.Tensor) -> torch.Tensor:
            changed = -x.abs()
            changed[:, on] = x[:, on].abs() + 0.1
            return changed

        return change

    first, second = one_half(slice(0, 10)), one_half(slice(10, 20))
    detector = ActivationPatterns("dense", combine=combine)
    detector.fit(world.traces(world.clean(100, 1).changed("dense", first), detector.needs, fit=True))
    clean, again, planted = (
        detector.score(world.traces(world.clean(80, seed).changed("dense", change), detector.needs))
        for seed, change in ((2, first), (3, first), (4, second))
    )
    truth = [0] * 80 + [1] * 80
    assert roc_auc_score(truth, torch.cat([clean, planted])) == 1.0
    assert roc_auc_score(truth, torch.cat([clean, again])) == 0.5


def test_the_scale_of_an_image_does_not_matter(world: World) -> None:
    """The threshold is the image's own quantile."""
    detector = ActivationPatterns("all")
    detector.fit(world.traces(world.clean(100, 1), detector.needs, fit=True))
    sample = world.clean(50, 2)
    scaled = replace(sample, before={k: 8 * v for k, v in sample.before.items()})
    scores = [detector.score(world.traces(s, detector.needs)) for s in (sample, scaled)]
    assert torch.equal(*scores)


def test_straight_through_gives_the_score_forwards(world: World) -> None:
    sample = world.perturbed(40, 3)
    for combine in ("sum", "vote"):
        detector = ActivationPatterns("all", combine=combine)
        detector.fit(world.traces(world.clean(200, 1), detector.needs, fit=True))
        live, leaves = world.live(sample, detector.needs)
        found = detector.surrogate(replace(live, straight_through=True))
        expected = detector.score(world.traces(sample, detector.needs))
        torch.testing.assert_close(found.detach().double(), expected, rtol=1e-4, atol=1e-4)
        gradients = torch.autograd.grad(found.sum(), leaves, allow_unused=True)
        assert any(g is not None and bool((g != 0).any()) for g in gradients)


@pytest.mark.parametrize(
    "parameters",
    [
        {"statistic": "std"},
        {"quantile": 0.0},
        {"quantile": True},
        {"combine": "any"},
        {"level": 1.0},
        {"patterns": -1},
        {"temperature": 0.0},
        {"layers": ""},
    ],
    ids=str,
)
def test_wrong_parameters_are_named(parameters: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(parameters))):
        ActivationPatterns(**parameters)
