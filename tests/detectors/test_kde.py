"""Kernel density and dropout uncertainty against scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from aftershock.detectors.activations.kde import KernelDensity
from aftershock.harness.core.errors import UsageError
from aftershock.harness.tracing.traces import Traces
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, LeaveOneOut
from sklearn.neighbors import KernelDensity as Reference
from support.activations import World


def with_passes(traces: Traces, detector: KernelDensity, spread: float, seed: int) -> Traces:
    """Adds dropout views whose logits vary by ``spread``."""
    draw = torch.Generator().manual_seed(seed)
    views = {
        view.name: replace(
            traces, logits_rows=traces.logits + spread * torch.randn(traces.logits.shape, generator=draw)
        )
        for view in detector.views
    }
    return replace(traces, view_traces=views)


@pytest.mark.parametrize("bandwidth", [0.0, 0.7])
def test_density_is_that_of_scikit_learn_given_the_predicted_class(world: World, bandwidth: float) -> None:
    detector = KernelDensity(bandwidth=bandwidth)
    detector.fit(world.traces(world.clean(300, 1), detector.needs, fit=True))
    assert bandwidth == 0 or detector.width == bandwidth
    test = world.traces(world.perturbed(60, 2), detector.needs)
    images, classes = detector.images.double().numpy(), detector.classes.numpy()
    d, constant = images.shape[1], 0.5 * np.log(2 * np.pi)
    expected = []
    for row, c in zip(test.pooled("dense").double().numpy(), test.predictions.tolist(), strict=True):
        fitted = Reference(bandwidth=detector.width).fit(images[classes == c])
        expected.append(-fitted.score_samples(row[None])[0] - d * (np.log(detector.width) + constant))
    scores = detector.score(test) * detector.joined["scale"] + detector.joined["centre"]
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5, atol=1e-4)


def test_bandwidth_has_the_highest_leave_one_out_likelihood(world: World) -> None:
    detector = KernelDensity(reference=60)
    sample = world.clean(300, 1, wrong=0)
    sample = sample.take(sample.labels == 2)
    detector.fit(world.traces(sample, detector.needs, fit=True))
    widths = [detector.width * 2 ** (i / 2) for i in range(-4, 5)]
    search = GridSearchCV(Reference(), {"bandwidth": widths}, cv=LeaveOneOut()).fit(detector.images.double().numpy())
    assert search.best_params_["bandwidth"] == pytest.approx(detector.width)


def test_a_class_without_fit_images_takes_all(world: World) -> None:
    detector = KernelDensity()
    sample = world.clean(200, 1, wrong=0)
    detector.fit(world.traces(sample.take(sample.labels != 4), detector.needs, fit=True))
    unseen = world.traces(sample.take(sample.labels == 4), detector.needs)
    assert bool(detector.score(unseen).isfinite().all())


def test_dropout_spread_is_the_variance_of_the_softmax_and_counts(world: World) -> None:
    detector = KernelDensity(dropout_passes=6, combination="logistic")
    assert len({view.name for view in detector.views}) == 6 and all(view.dropout for view in detector.views)
    # Clean samples on both sides: only the spread tells them apart, a planted case.
    steady, shaky, steady_test, shaky_test = (
        with_passes(world.traces(world.clean(150, seed), detector.needs, fit=True), detector, spread, seed)
        for seed, spread in ((1, 0.3), (2, 3.0), (3, 0.3), (4, 3.0))
    )
    detector.fit(steady, shaky)
    scores = torch.cat([detector.score(steady_test), detector.score(shaky_test)])
    assert roc_auc_score([0] * 150 + [1] * 150, scores) > 0.95
    stacked = torch.stack([steady.view(v.name).logits.double().softmax(1) for v in detector.views]).numpy()
    expected = ((stacked**2).mean(0) - stacked.mean(0) ** 2).sum(1)
    np.testing.assert_allclose(detector._components(steady)[:, 1].numpy(), expected, rtol=1e-6, atol=1e-12)
    assert detector.surrogate_kind == "relaxed" and KernelDensity().surrogate_kind == "exact"
    live, leaves = world.live(world.clean(20, 5), detector.needs)
    (gradient,) = torch.autograd.grad(detector.surrogate(live).sum(), leaves[-2])
    assert bool(gradient.isfinite().all())


def test_a_model_without_dropout_is_pointed_out_and_the_density_alone_counts(world: World) -> None:
    plain, passes = KernelDensity(combination="max"), KernelDensity(dropout_passes=2, combination="max")
    clean = world.traces(world.clean(200, 1), plain.needs, fit=True)
    plain.fit(clean)
    with pytest.warns(RuntimeWarning, match="dropout"):
        passes.fit(with_passes(world.traces(world.clean(200, 1), plain.needs, fit=True), passes, 0.0, 0))
    test = world.traces(world.perturbed(30, 2), plain.needs)
    expected = plain.score(test).clamp(min=0)
    torch.testing.assert_close(passes.score(with_passes(test, passes, 0.0, 0)), expected)


def test_wrong_parameters(world: World) -> None:
    for parameters, word in (
        ({"bandwidth": -1.0}, "bandwidth"),
        ({"dropout_passes": 1}, "dropout_passes"),
        ({"combination": "sum"}, "combination"),
        ({"reference": 0}, "reference"),
    ):
        with pytest.raises(UsageError, match=word):
            KernelDensity(**parameters)
    detector = KernelDensity(combination="logistic")
    with pytest.raises(UsageError, match="fit_on"):
        detector.fit(world.traces(world.clean(20, 1), detector.needs, fit=True))
