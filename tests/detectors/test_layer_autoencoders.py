"""The layer-wise autoencoders against scikit-learn: components, isolation forest, and classifiers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from aftershock.detectors.activations.layer_autoencoders import LayerAutoencoders
from aftershock.harness.core.errors import UsageError
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.svm import SVC
from support.activations import Sample, World, rows_apart


def components(world: World, train: Any, latent: int) -> list[tuple[np.ndarray, np.ndarray, PCA]]:
    """Mean, deviation and principal components of every layer of the training images."""
    fitted = []
    for tap in world.taps:
        x = train.before[tap.name].relu().double().numpy()
        mean, deviation = x.mean(0), x.std(0)
        count = min(latent, x.shape[1] // 4)
        fitted.append((mean, deviation, PCA(count, svd_solver="full").fit((x - mean) / deviation)))
    return fitted


def standardised(world: World, fitted: Any, sample: Sample) -> list[tuple[np.ndarray, PCA]]:
    layers = zip(world.taps, fitted, strict=True)
    return [((sample.before[t.name].relu().double().numpy() - m) / s, pca) for t, (m, s, pca) in layers]


def test_forest_on_components_is_scikit_learns(world: World) -> None:
    clean, other = world.clean(240, 1), world.perturbed(60, 2)
    detector = LayerAutoencoders(encoder="pca", latent=8, inputs="full", units=200, trees=30)
    found = detector.fit(world.traces(clean, detector.needs, fit=True)).score(world.traces(other, detector.needs))

    train_rows, rest_rows, draw = rows_apart(240, 60)
    train, rest = clean.take(train_rows), clean.take(rest_rows)
    fitted = components(world, train, 8)

    def features(sample: Sample) -> np.ndarray:
        columns = []
        for x, pca in standardised(world, fitted, sample):
            z = pca.transform(x)
            columns += [np.square(x - pca.inverse_transform(z)).mean(1), np.linalg.norm(z, axis=1)]
        return np.stack(columns, 1)

    right = (rest.labels == rest.logits.argmax(1)).numpy()
    seed = int(torch.randint(2**31, (), generator=draw))
    forest = IsolationForest(n_estimators=30, max_samples=int(right.sum()), random_state=seed).fit(
        features(rest)[right]
    )
    # Splits lie between float32 features: a value next to a threshold may fall on its other side.
    np.testing.assert_allclose(found.numpy(), -forest.score_samples(features(other)), atol=5e-3)
    assert np.corrcoef(found.numpy(), -forest.score_samples(features(other)))[0, 1] > 0.999


@pytest.mark.parametrize("method", ["svc", "logistic"])
def test_classifiers_on_components_are_scikit_learns(world: World, method: Any) -> None:
    clean, seen, other = world.clean(160, 1), world.perturbed(40, 2), world.perturbed(50, 3)
    detector = LayerAutoencoders(method, encoder="pca", latent=6, inputs="full", units=200, regularisation=0.5)
    assert detector.supervised and detector.surrogate_kind == "exact"
    detector.fit(world.traces(clean, detector.needs, fit=True), world.traces(seen, detector.needs, fit=True))
    found = detector.score(world.traces(other, detector.needs))

    fitted = components(world, clean.take(rows_apart(160, 40)[0]), 6)

    def codes(sample: Sample) -> np.ndarray:
        return np.concatenate([pca.transform(x) for x, pca in standardised(world, fitted, sample)], 1)

    # The clean side is what the coders were not fitted on.
    fresh = codes(clean.take(rows_apart(160, 40)[1]))
    mean, deviation = fresh.mean(0), fresh.std(0)
    rows = (np.concatenate([fresh, codes(seen)]) - mean) / deviation
    truth = [0] * 40 + [1] * 40
    model = SVC(C=2.0, class_weight="balanced") if method == "svc" else None
    model = model or LogisticRegression(C=2.0, class_weight="balanced", max_iter=1000)
    expected = model.fit(rows, truth).decision_function((codes(other) - mean) / deviation)
    # The sign of a component does not matter to either; solvers stop at a gradient of about 1e-3.
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("encoder", ["wae", "autoencoder", "pca"])
@pytest.mark.parametrize("inputs", ["full", "pooled"])
def test_planted_anomalies_score_1_and_clean_images_a_half(world: World, encoder: Any, inputs: Any) -> None:
    detector = LayerAutoencoders(encoder=encoder, inputs=inputs, units=40, latent=8, hidden=32, epochs=2)
    clean = world.clean(300, 1)
    detector.fit(world.traces(clean, detector.needs, fit=True))

    def loud(sample: Sample) -> Any:
        for tap in world.taps:
            sample = sample.changed(tap.name, lambda x: 6 * x.abs())
        return sample

    samples = world.clean(300, 2), world.clean(300, 3), loud(world.clean(300, 4))
    scores = [detector.score(world.traces(s, detector.needs)) for s in samples]
    assert roc_auc_score([0] * 300 + [1] * 300, torch.cat([scores[0], scores[2]])) == 1
    assert abs(roc_auc_score([0] * 300 + [1] * 300, torch.cat(scores[:2])) - 0.5) < 0.1


def test_autoencoders_leave_a_quarter_of_the_images_to_the_forest(world: World) -> None:
    """What the forest learned from is the held-out quarter: other images there change the judge, not the coders."""
    detector = LayerAutoencoders(inputs="full", units=40, latent=4, hidden=16, epochs=2, trees=5)
    clean, other = world.clean(80, 1), world.clean(80, 2)
    held = torch.zeros(80, 1, dtype=torch.bool)
    held[rows_apart(80, 20)[1]] = True
    before = {n: torch.where(held, other.before[n], x) for n, x in clean.before.items()}
    mixed = type(clean)(before, clean.logits, clean.labels)
    fitted = []
    for sample in (clean, mixed):
        detector.fit(world.traces(sample, detector.needs, fit=True))
        fitted.append(({**detector.coders[0]["model"]}, detector.judge["thresholds"]))
    assert all(torch.equal(fitted[0][0][n], fitted[1][0][n]) for n in fitted[0][0])
    assert not torch.equal(fitted[0][1], fitted[1][1])


def test_codes_are_no_larger_than_a_quarter_of_the_units_that_vary(world: World) -> None:
    clean = world.clean(100, 1).changed("dense", lambda x: torch.cat([x.new_full((len(x), 12), -1), x[:, 12:]], 1))
    detector = LayerAutoencoders(inputs="full", units=200, latent=20, hidden=16, epochs=1)
    detector.fit(world.traces(clean, detector.needs, fit=True))
    assert [c["latent"] for c in detector.coders] == [20, 18, 2]


def test_straight_through_is_the_score_and_temperature_softens(world: World) -> None:
    detector = LayerAutoencoders(inputs="full", units=40, latent=4, hidden=16, epochs=3)
    detector.fit(world.traces(world.clean(200, 1), detector.needs, fit=True))
    sample = world.perturbed(40, 2)
    expected = detector.score(world.traces(sample, detector.needs))
    live, leaves = world.live(sample, detector.needs)
    hard = detector.surrogate(replace(live, straight_through=True))
    torch.testing.assert_close(hard.double(), expected, rtol=1e-3, atol=1e-3)
    gradients = torch.autograd.grad(hard.sum(), leaves[:-1])
    assert all(bool(g.isfinite().all()) and bool(g.any()) for g in gradients)
    softened = [detector.surrogate(replace(live, temperature=t)).detach().double() for t in (0.01, 1, 9)]
    gaps = [float((values - expected).abs().mean()) for values in softened]
    assert gaps == sorted(gaps)


def test_a_supervised_method_without_perturbed_images_says_what_to_do(world: World) -> None:
    detector = LayerAutoencoders("svc")
    with pytest.raises(UsageError, match="fit_on"):
        detector.fit(world.traces(world.clean(30, 1), detector.needs, fit=True))


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "tree"}, {"encoder": "vae"}, {"inputs": "bits"}, {"units": 0}, {"latent": 0}, {"hidden": 0},
        {"epochs": 0}, {"penalty": 0.0}, {"trees": 0}, {"regularisation": 0.0}, {"temperature": 0.0}, {"layers": ""},
    ],
)  # fmt: skip
def test_wrong_parameters_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        LayerAutoencoders(**wrong)
