"""The latent detector against scikit-learn's principal components and shrunk covariance."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from aftershock.detectors.activations.latent import Latent
from aftershock.harness.core.errors import UsageError
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from support.activations import Sample, World, rows_apart


def activations(world: World, sample: Sample) -> list[np.ndarray]:
    return [sample.before[tap.name].relu().double().numpy() for tap in world.taps]


@pytest.mark.parametrize("component", ["all", "reconstruction", "distance", "neighbours", "fringe"])
def test_pca_is_scikit_learns(world: World, component: Any) -> None:
    clean, other = world.clean(240, 1), world.perturbed(50, 2)
    clean = clean.take(clean.labels != 3)
    detector = Latent("pca", latent=4, units=200, component=component)
    found = detector.fit(world.traces(clean, detector.needs, fit=True)).score(world.traces(other, detector.needs))

    train_rows, held_rows, _ = rows_apart(len(clean.labels), len(clean.labels) // 8)
    clean, cut = clean.take(torch.cat([train_rows, held_rows])), len(train_rows)
    prepared = []
    for train, test in zip(activations(world, clean), activations(world, other), strict=True):
        mean, deviation = train[:cut].mean(0), train[:cut].std(0)
        width = train.shape[1]
        prepared.append([(x - mean) / deviation / np.sqrt(width) for x in (train, test)])
    train, test = (np.concatenate(x, 1) for x in zip(*prepared, strict=True))
    pca = PCA(4, svd_solver="full").fit(train[:cut])
    labels = clean.labels.numpy()[:cut]
    right = labels == clean.logits.argmax(1).numpy()[:cut]
    codes = pca.transform(train[:cut])
    means = {c: codes[right & (labels == c)].mean(0) for c in np.unique(labels)}
    means[3] = codes[right].mean(0)
    within = LedoitWolf(assume_centered=True).fit(
        np.stack([z - means[c] for z, c in zip(codes[right], labels[right], strict=True)])
    )

    known = codes[right]
    width = len(known) ** (-1 / (4 + 4))

    def parts(x: np.ndarray, predictions: np.ndarray) -> dict[str, np.ndarray]:
        z = pca.transform(x)
        offset = z - np.stack([means[c] for c in predictions])
        apart = cdist(z, known, "mahalanobis", VI=within.precision_)
        kernels = np.exp(-apart * apart / (2 * width * width))
        own = labels[right] == predictions[:, None]
        own |= ~own.any(1, keepdims=True)
        odds = np.where(labels[right] == predictions[:, None], 0, kernels).sum(1) / np.where(own, kernels, 0).sum(1)
        nearest = np.sort(np.where(own, apart, np.inf), 1)[:, :10]
        return {
            "neighbours": nearest.mean(1),
            "fringe": np.log(odds),
            "reconstruction": np.sqrt(np.square(x - pca.inverse_transform(z)).mean(1)),
            "distance": np.sqrt(np.einsum("nd,de,ne->n", offset, within.precision_, offset)),
        }

    held_out = parts(train[cut:], clean.logits.argmax(1).numpy()[cut:])
    own = parts(test, other.logits.argmax(1).numpy())
    chosen = list(own) if component == "all" else [component]
    expected = np.mean([(own[n] - held_out[n].mean()) / held_out[n].std() for n in chosen], axis=0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-3, atol=2e-3)


def test_a_wide_layer_weighs_no_more_than_a_narrow_one(world: World) -> None:
    detector = Latent("pca", latent=4, units=200)
    clean = world.clean(200, 1)
    # Half of the narrow layer is dead: only units that vary count.
    clean = clean.changed("dense", lambda x: torch.cat([x.new_full((len(x), 10), -1), x[:, 10:]], 1))
    traces = world.traces(clean, detector.needs, fit=True)
    detector.fit(traces)
    raw = torch.cat([traces.full(tap.name) for tap in world.taps], 1)
    inputs = ((raw - detector.inputs["mean"]) * detector.inputs["scale"])[rows_apart(200, 25)[0]]
    energies = [float(part.square().sum(1).mean()) for part in inputs.split([96, 72, 20], 1)]
    assert energies == pytest.approx([energies[0]] * 3, rel=1e-4)
    assert float(inputs[:, 168:178].abs().max()) == 0


def test_the_autoencoder_learns_a_curve_that_principal_components_cannot(world: World) -> None:
    """Images on an arc, against images inside and outside of it; a code of one number can follow the arc only."""

    def arc(n: int, seed: int, off: float) -> Any:
        sample = world.clean(n, seed)
        draw = torch.Generator().manual_seed(seed)
        angle = 3 * torch.rand(n, 1, generator=draw)
        radius = 1 + off * torch.randint(0, 2, (n, 1), generator=draw).mul(2).sub(1)
        before = {}
        for tap in world.taps:
            directions = torch.randn(2, tap.units, generator=torch.Generator().manual_seed(tap.units))
            before[tap.name] = 9 + radius * torch.cat([angle.sin(), angle.cos()], 1) @ directions
        return type(sample)(before, sample.logits, sample.labels)

    clean, held_out, off = arc(600, 1, 0), arc(200, 2, 0), arc(200, 3, 0.5)
    separated = {}
    encoders: tuple[Literal["autoencoder", "pca"], ...] = ("autoencoder", "pca")
    for encoder in encoders:
        detector = Latent(encoder, latent=1, hidden=(64, 32), epochs=40, component="reconstruction")
        detector.fit(world.traces(clean, detector.needs, fit=True))
        a, b = (detector.score(world.traces(s, detector.needs)) for s in (held_out, off))
        separated[encoder] = float((b.unsqueeze(1) > a).double().mean())
    assert separated["autoencoder"] > 0.9
    assert separated["autoencoder"] > separated["pca"] + 0.2


def test_the_seed_moves_the_autoencoder(world: World) -> None:
    clean, other = world.clean(100, 1), world.perturbed(30, 2)
    scores = []
    for seed in (0, 1, 0):
        detector = Latent("autoencoder", latent=3, hidden=(16,), epochs=3)
        detector.fit(world.traces(clean, detector.needs, fit=True, seed=seed))
        scores.append(detector.score(world.traces(other, detector.needs)))
    assert torch.equal(scores[0], scores[2]) and not torch.equal(scores[0], scores[1])


def test_units_limits_what_is_read_of_each_layer(world: World) -> None:
    detector = Latent("pca", latent=2, units=30)
    assert [n.units for n in detector.needs] == [30]
    detector.fit(world.traces(world.clean(60, 1), detector.needs, fit=True))
    assert detector.inputs["mean"].shape == (30 + 30 + 20,)


def test_activations_that_never_vary_are_refused(world: World) -> None:
    detector = Latent("pca", ["dense"])
    sample = world.clean(60, 1).changed("dense", lambda x: torch.full_like(x, 2.0))
    with pytest.raises(UsageError, match="no unit whose activation varies"):
        detector.fit(world.traces(sample, detector.needs, fit=True))


def test_a_class_with_fewer_images_than_neighbours_has_those_that_there_are(world: World) -> None:
    clean = world.clean(200, 1, wrong=0)
    rare = (clean.labels == 4).nonzero()[:3, 0]
    clean = clean.take(torch.cat([(clean.labels != 4).nonzero()[:, 0], rare]).sort().values)
    scores = []
    for neighbours in (3, 50):
        detector = Latent("pca", latent=4, units=200, neighbours=neighbours)
        detector.fit(world.traces(clean, detector.needs, fit=True))
        model = detector._model(torch.device("cpu"))
        sample = world.clean(60, 2)
        sample = sample.take(sample.logits.argmax(1) == 4)
        traces = world.traces(sample, detector.needs)
        inputs = torch.cat([traces.full(tap.name) for tap in world.taps], 1)
        scores.append(model.parts(inputs, traces.predictions)["neighbours"])
    torch.testing.assert_close(*scores)


@pytest.mark.parametrize("component", ["distance", "neighbours", "fringe"])
def test_codes_of_one_class_that_are_predicted_as_another_are_found(world: World, component: Any) -> None:
    """Planted: 1.0 for images of another class than the predicted one, 0.5 for clean images against clean ones."""

    def rows_apart(sample: Sample) -> Any:
        corners = 12 * torch.eye(5, 20)[sample.labels]
        return sample.changed("dense", lambda x: corners + 0.3 * x)

    detector = Latent("pca", ["dense"], latent=4, component=component)
    detector.fit(world.traces(rows_apart(world.clean(400, 1, wrong=0)), detector.needs, fit=True))
    clean, again = (rows_apart(world.clean(200, seed, wrong=0)) for seed in (2, 3))
    turned = type(clean)(clean.before, clean.logits.roll(1, 1), clean.labels)
    scores = [detector.score(world.traces(s, detector.needs)) for s in (clean, again, turned)]
    assert roc_auc_score([0] * 200 + [1] * 200, torch.cat([scores[0], scores[2]])) == 1
    assert abs(roc_auc_score([0] * 200 + [1] * 200, torch.cat(scores[:2])) - 0.5) < 0.1


def test_fringe_is_finite_where_all_fit_images_have_one_class(world: World) -> None:
    clean = world.clean(200, 1, wrong=0)
    clean = clean.take(clean.labels == 2)
    detector = Latent("pca", latent=3, component="fringe")
    detector.fit(world.traces(clean, detector.needs, fit=True))
    live, leaves = world.live(world.perturbed(20, 2), detector.needs)
    stand_in = detector.surrogate(live)
    assert bool(stand_in.isfinite().all())
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(stand_in.sum(), leaves[:-1]))


def test_positions_have_as_many_axes_as_there_are_components(world: World) -> None:
    """Fewer images than components are asked for: the map has fewer axes, for images and landmarks alike."""
    detector = Latent("pca", latent=16, units=200)
    detector.fit(world.traces(world.clean(9, 1, wrong=0), detector.needs, fit=True))
    points, classes = detector.landmarks()
    found = detector.positions(world.traces(world.clean(5, 2), detector.needs))
    assert found.shape == (5, points.shape[1]) and points.shape[1] < 16 and len(points) == len(classes)
    assert detector.positions(world.traces(world.clean(5, 2), detector.needs)[:0]).shape == (0, points.shape[1])
