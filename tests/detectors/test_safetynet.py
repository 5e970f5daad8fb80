"""The support vector machine on quantised activations, against scikit-learn's own decision function."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from aftershock.detectors.activations.safetynet import SafetyNet
from aftershock.harness.core.errors import UsageError
from aftershock.harness.tracing.traces import Traces
from sklearn.metrics import roc_auc_score
from sklearn.svm import SVC
from support.activations import World


def read(traces: Traces, representation: str) -> np.ndarray:
    reader = traces.pooled if representation == "pooled" else traces.full
    return np.concatenate([reader(tap).numpy() for tap in traces.tap_names()], 1)


def quantised(values: np.ndarray, clean: np.ndarray, levels: int) -> np.ndarray:
    codes = (values > 0).astype(float)
    for j in range(values.shape[1]):
        on = clean[clean[:, j] > 0, j]
        for step in range(1, levels - 1):
            if len(on):
                codes[:, j] += values[:, j] > np.quantile(on, step / (levels - 1), method="inverted_cdf")
    return codes


@pytest.mark.parametrize(("representation", "levels"), [("full", 2), ("full", 5), ("pooled", 4)])
def test_is_scikit_learns_decision_function(world: World, representation: Any, levels: int) -> None:
    detector = SafetyNet("all", representation, units=40, levels=levels, regularisation=2.0)
    clean, perturbed, tested = (
        world.traces(s, detector.needs, fit=True)
        for s in (world.clean(150, 1), world.perturbed(80, 2), world.clean(60, 3))
    )
    detector.fit(clean, perturbed)
    right = (clean.labels == clean.predictions).numpy()
    normal = read(clean, representation)[right]
    parts = [quantised(x, normal, levels) for x in (normal, read(perturbed, representation))]
    # scikit-learn's gamma="scale" is 1 / (units * variance of all codes).
    oracle = SVC(C=2.0, kernel="rbf", gamma="scale", class_weight="balanced").fit(
        np.concatenate(parts), [0] * len(parts[0]) + [1] * len(parts[1])
    )
    expected = oracle.decision_function(quantised(read(tested, representation), normal, levels))
    np.testing.assert_allclose(detector.score(tested).numpy(), expected, atol=1e-5)


def test_codes_that_tell_score_one_and_the_same_codes_a_half(world: World) -> None:
    """Clean activations of one tap are small where they are on, planted ones large; bits are the same."""

    def size(low: float) -> Any:
        return lambda x: torch.where(x > 0, low + 0.01 * x, x)

    detector = SafetyNet("conv", levels=4)
    samples = [world.clean(150, seed).changed("conv", size(1)) for seed in (1, 2, 3)]
    planted = [world.clean(150, seed).changed("conv", size(3)) for seed in (4, 5)]
    clean, held_out, again = (world.traces(s, detector.needs, fit=True) for s in samples)
    attacked = [world.traces(s, detector.needs) for s in planted]
    detector.fit(clean, attacked[0])
    scores = [detector.score(t) for t in (held_out, attacked[1], again)]
    truth = [0] * 150 + [1] * 150
    assert roc_auc_score(truth, torch.cat(scores[:2])) == 1.0
    # 150 against 150 without a difference: the standard error of the AUROC is 0.033.
    assert abs(roc_auc_score(truth, torch.cat([scores[0], scores[2]])) - 0.5) < 0.13
    bits = SafetyNet("conv", levels=2).fit(clean, attacked[0])
    assert abs(roc_auc_score(truth, torch.cat([bits.score(held_out), bits.score(attacked[1])])) - 0.5) < 0.13


def test_constant_codes_give_one_score_to_all(world: World) -> None:
    detector = SafetyNet("dense")
    traces = world.traces(world.clean(30, 1).changed("dense", lambda x: -x.abs() - 1), detector.needs, fit=True)
    scores = detector.fit(traces, traces).score(traces)
    assert bool(scores.isfinite().all()) and float(scores.std()) == 0


def test_a_seeded_draw_of_images_is_used(world: World) -> None:
    def fit(seed: int) -> SafetyNet:
        detector = SafetyNet("all", units=20, images=30)
        clean = world.traces(world.clean(200, 1), detector.needs, fit=True, seed=seed)
        return detector.fit(clean, world.traces(world.perturbed(200, 2), detector.needs))

    first, same, other = fit(0), fit(0), fit(1)
    assert len(first.fitted["vectors"]) <= 60
    assert torch.equal(first.fitted["thresholds"], same.fitted["thresholds"])
    assert not torch.equal(first.fitted["thresholds"], other.fitted["thresholds"])


def test_straight_through_gives_the_score_forwards(world: World) -> None:
    detector = SafetyNet("all", units=40)
    clean = world.traces(world.clean(150, 1), detector.needs, fit=True)
    detector.fit(clean, world.traces(world.perturbed(100, 2), detector.needs))
    sample = world.perturbed(40, 3)
    live, leaves = world.live(sample, detector.needs)
    found = detector.surrogate(replace(live, straight_through=True))
    torch.testing.assert_close(
        found.detach().double(), detector.score(world.traces(sample, detector.needs)), rtol=1e-4, atol=1e-4
    )
    gradients = torch.autograd.grad(found.sum(), leaves, allow_unused=True)
    assert any(g is not None and bool((g != 0).any()) for g in gradients)


def test_perturbed_images_are_required(world: World) -> None:
    detector = SafetyNet("all")
    traces = world.traces(world.clean(10, 1), detector.needs, fit=True)
    for perturbed in (None, traces[:0]):
        with pytest.raises(UsageError, match="fit_on"):
            detector.fit(traces, perturbed)


@pytest.mark.parametrize(
    "parameters",
    [
        {"representation": "bits"},
        {"units": 0},
        {"levels": 1},
        {"regularisation": 0.0},
        {"images": -1},
        {"temperature": 0.0},
        {"layers": []},
    ],
    ids=str,
)
def test_wrong_parameters_are_named(parameters: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(parameters))):
        SafetyNet(**parameters)
