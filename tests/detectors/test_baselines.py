"""The baselines against SciPy and a covariance in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from aftershock.detectors.activations.mahalanobis import Mahalanobis, means_and_precision
from aftershock.detectors.logits.baselines import Energy, MaxSoftmax
from aftershock.harness.core.errors import UsageError
from aftershock.harness.tracing.traces import LiveTrace, Traces
from scipy.special import logsumexp, softmax
from support.activations import Sample, World


@pytest.mark.parametrize("temperature", [0.5, 1.0, 10.0])
def test_maximum_softmax_and_energy_are_their_formulas(world: World, temperature: float) -> None:
    sample = world.clean(50, 1)
    logits = sample.logits.double().numpy()
    traces = world.traces(sample, ())
    found = MaxSoftmax(temperature).fit(traces).score(traces).numpy()
    np.testing.assert_allclose(found, -softmax(logits / temperature, axis=1).max(1), rtol=1e-12)
    found = Energy(temperature).fit(traces).score(traces).numpy()
    np.testing.assert_allclose(found, -temperature * logsumexp(logits / temperature, axis=1), rtol=1e-12)


def test_maximum_softmax_tells_confident_images_apart() -> None:
    """In float32 both would score −1."""
    logits = torch.tensor([[20.0, 0.0], [25.0, 0.0]])
    scores = MaxSoftmax().score(Traces(logits, ()))
    assert float(scores[0]) > float(scores[1])


def test_the_gradient_of_maximum_softmax_does_not_vanish_at_high_confidence() -> None:
    logits = torch.tensor([[60.0, 0.0, -5.0], [1.0, 2.0, 3.0]], dtype=torch.float64, requires_grad=True)
    live = LiveTrace(torch.zeros(2, 1, 1, 1), logits, (), {}, {})
    (gradient,) = torch.autograd.grad(MaxSoftmax().surrogate(live).sum(), logits)
    # d(−p)/dz of the largest logit is −p (1 − p), with 1 − p ≈ exp(−60) for the first image.
    assert float(gradient[0, 0]) == pytest.approx(-np.exp(-60), rel=1e-6)
    p = softmax([1.0, 2.0, 3.0])
    np.testing.assert_allclose(gradient[1].numpy(), [p[2] * p[0], p[2] * p[1], -p[2] * (1 - p[2])], rtol=1e-9)


def mahalanobis(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Half the squared distance to the nearest class mean, with the pseudo-inverse of the scatter within classes."""
    classes = np.unique(labels)
    means = np.stack([train[labels == c].mean(0) for c in classes])
    residuals = train - means[np.searchsorted(classes, labels)]
    precision = np.linalg.pinv(residuals.T @ residuals, rcond=1e-9, hermitian=True)
    offsets = test[:, None] - means
    return np.einsum("ncd,de,nce->nc", offsets, precision, offsets).min(1) / 2


def test_means_and_precision_equal_those_of_pytorch_ood(pytorch_ood: Any) -> None:
    """To the last bit, also where a class is missing and where a row belongs to no class."""
    draw = torch.Generator().manual_seed(3)
    features, groups = torch.randn(200, 9, generator=draw), torch.randint(4, (200,), generator=draw)
    features += groups.unsqueeze(1)
    groups[groups == 1] = -1
    inside = groups >= 0
    contiguous = torch.tensor([0, -1, 1, 2])[groups[inside]]
    reference = pytorch_ood.Mahalanobis(None).fit_features(features[inside], contiguous)
    means, precision = means_and_precision(features, groups)
    assert torch.equal(means, reference.mu) and torch.equal(precision, reference.precision)


def pooled(world: World, sample: Sample, tap: str) -> np.ndarray:
    shape = next(t.shape for t in world.taps if t.name == tap)
    values = sample.before[tap].relu().double().numpy()
    return values.reshape(len(values), shape[0], -1).mean(2)


@pytest.mark.parametrize("layers", ["last:1", "all"])
@pytest.mark.parametrize("dead", [0, 5])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_mahalanobis_is_its_formula(world: World, layers: str, dead: int, scale: float) -> None:
    """Also with dead channels and for features whose scale makes pytorch-ood's fixed ridge matter."""

    def change(x: Any) -> Any:
        return scale * torch.cat([x.new_full((len(x), dead), -1), x[:, dead:]], 1)

    clean, other = (s.changed("dense", change) for s in (world.clean(300, 1), world.perturbed(60, 2)))
    clean = clean.take(clean.labels != 1)
    detector = Mahalanobis(layers)
    found = detector.fit(world.traces(clean, detector.needs, fit=True)).score(world.traces(other, detector.needs))
    right = (clean.labels == clean.logits.argmax(1)).numpy()
    labels = clean.labels.numpy()[right]
    expected = []
    for tap in [t.name for t in world.taps][-1 if layers == "last:1" else 0 :]:
        train, test = pooled(world, clean, tap), pooled(world, other, tap)
        own, theirs = (mahalanobis(train[right], labels, x) for x in (train, test))
        expected.append((theirs - own.mean()) / own.std())
    np.testing.assert_allclose(found.numpy(), np.mean(expected, axis=0), rtol=2e-3, atol=2e-3)


def test_mahalanobis_does_not_depend_on_linear_maps_of_the_features(world: World) -> None:
    mixing = torch.randn(20, 20, generator=torch.Generator().manual_seed(3)) + 3 * torch.eye(20)
    scores = []
    for change in (lambda x: x.relu() + 50, lambda x: x.relu() @ mixing + 500):
        detector = Mahalanobis()
        clean, other = (s.changed("dense", change) for s in (world.clean(300, 1), world.perturbed(60, 2)))
        # The shift keeps every unit positive, so that ReLU changes nothing.
        assert all(float(s.before["dense"].min()) > 0 for s in (clean, other))
        detector.fit(world.traces(clean, detector.needs, fit=True))
        scores.append(detector.score(world.traces(other, detector.needs)))
    torch.testing.assert_close(*scores, rtol=5e-3, atol=5e-3)


def test_mahalanobis_refuses_maps_that_never_vary(world: World) -> None:
    sample = world.clean(30, 1).changed("dense", lambda x: torch.zeros_like(x))
    detector = Mahalanobis()
    with pytest.raises(UsageError, match="dense"):
        detector.fit(world.traces(sample, detector.needs, fit=True))
