"""The code-shift detector against SciPy distances and plain counting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from aftershock.detectors.activations.codeshift import PARTS, CodeShift
from aftershock.harness.core.errors import UsageError
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score
from support.activations import Sample, World, rows_apart

TAPS = ("conv", "block.relu", "dense")


def pooled(sample: Sample, world: World, tap: str, statistic: str) -> np.ndarray:
    shape = next(t.shape for t in world.taps if t.name == tap)
    values = sample.before[tap].relu().numpy().astype(np.float64).reshape(len(sample.labels), shape[0], -1)
    if statistic == "std" and values.shape[2] == 1:
        return np.abs(values[:, :, 0])
    return np.asarray(getattr(values, statistic)(2))


def vectors(sample: Sample, world: World, tap: str, statistic: str) -> np.ndarray:
    found = [pooled(sample, world, tap, part) for part in statistic.split("+")]
    return np.concatenate(found, 1)


def expected_parts(world: World, detector: CodeShift, train: Any, other: Any) -> dict[str, np.ndarray]:
    """The components of each layer (n, layers) for ``other`` before scaling, from the prototypes alone."""
    right = (train.labels == train.logits.argmax(1)).numpy()
    labels, predictions = train.labels.numpy(), other.logits.argmax(1).numpy()
    parts = {
        name: np.zeros((len(predictions), len(TAPS))) for name in ("error", "sequence", "disagreement", "distance")
    }
    for layer, (fitted, tap) in enumerate(zip(detector.maps, TAPS, strict=True)):
        known, new = (vectors(sample, world, tap, detector.statistic) for sample in (train, other))
        mean, deviation = known.mean(0), known.std(0)
        prototypes = fitted["prototypes"].double().numpy()
        unit = cdist((known - mean) / deviation, prototypes).argmin(1)
        distances = cdist((new - mean) / deviation, prototypes)
        parts["error"][:, layer] = distances.min(1)
        members = {u: labels[right & (unit == u)] for u in range(len(prototypes))}
        occupied = [u for u in members if len(members[u])]
        for i, u in enumerate(distances.argmin(1)):
            own = right & (labels == predictions[i])
            if not own.any():
                own = right
            chance = ((unit[own] == u).sum() + detector.smoothing) / (own.sum() + detector.smoothing * len(prototypes))
            parts["sequence"][i, layer] = -np.log(chance)
            nearest = u if u in occupied else occupied[int(cdist(prototypes[u : u + 1], prototypes[occupied]).argmin())]
            majority = np.bincount(members[nearest]).argmax()
            parts["disagreement"][i, layer] = majority != predictions[i]
            if detector.encoder == "som":
                steps = [np.hypot(u // 5 - v // 5, u % 5 - v % 5) for v in unit[own]]
            else:
                steps = [np.linalg.norm(prototypes[u] - prototypes[v]) for v in unit[own]]
            parts["distance"][i, layer] = np.mean(steps)
    return parts


@pytest.mark.parametrize("encoder", ["som", "kmeans"])
@pytest.mark.parametrize(
    ("component", "statistic", "weighting"),
    [
        ("all", "mean", "equal"),
        ("all", "mean+std", "agreement"),
        ("error", "std", "equal"),
        ("sequence", "max", "equal"),
        ("disagreement", "mean", "agreement"),
        ("distance", "mean", "equal"),
    ],
)
def test_components_are_what_counting_gives(
    world: World, encoder: Any, component: Any, statistic: Any, weighting: Any
) -> None:
    clean, other = world.clean(160, 1), world.perturbed(40, 2)
    clean = clean.take(clean.labels != 3)
    detector = CodeShift(
        statistic=statistic, encoder=encoder, rows=3, columns=5, epochs=10, smoothing=0.5, component=component,
        weighting=weighting,
    )  # fmt: skip
    detector.fit(world.traces(clean, detector.needs, fit=True))
    train_rows, held_rows, _ = rows_apart(len(clean.labels), len(clean.labels) // 8)
    train, held_out = clean.take(train_rows), clean.take(held_rows)
    own = expected_parts(world, detector, train, held_out)
    parts = expected_parts(world, detector, train, other)
    weights = np.ones(3)
    if weighting == "agreement":
        weights = np.maximum(1 - own["disagreement"].mean(0) - 1 / 5, 0)
    expected = []
    for name in parts if component == "all" else [component]:
        if name in ("error", "distance"):
            mean, deviation = own[name].mean(0), own[name].std(0)
            own[name], parts[name] = (own[name] - mean) / deviation, (parts[name] - mean) / deviation
        before, after = own[name] @ weights / weights.sum(), parts[name] @ weights / weights.sum()
        expected.append((after - before.mean()) / before.std())
    found = detector.score(world.traces(other, detector.needs)).numpy()
    np.testing.assert_allclose(found, np.mean(expected, 0), rtol=1e-3, atol=1e-3)


def test_held_out_clean_images_set_the_scale(world: World) -> None:
    clean = world.clean(200, 1)
    for component in PARTS:
        detector = CodeShift(rows=4, columns=4, epochs=5, component=component)
        detector.fit(world.traces(clean, detector.needs, fit=True))
        scores = detector.score(world.traces(clean.take(rows_apart(200, 25)[1]), detector.needs))
        assert float(scores.mean()) == pytest.approx(0, abs=1e-6)
        assert float(scores.std(correction=0)) == pytest.approx(1, abs=1e-6)


def test_a_wide_layer_weighs_no_more_than_a_narrow_one(world: World) -> None:
    """Either layer's images, moved by the same number of its own standard deviations, score the same."""
    clean, held_out = world.clean(400, 1), world.clean(100, 2)
    detector = CodeShift(["conv", "dense"], rows=3, columns=3, component="error")
    detector.fit(world.traces(clean, detector.needs, fit=True))
    deviations = detector.layer_scales["error"][:, 1]
    scores = []
    for layer in (0, 1):
        parts = detector._parts_of(world.traces(held_out, detector.needs))
        parts["error"][:, layer] += 5 * deviations[layer]
        scores.append(detector._combine(parts))
    torch.testing.assert_close(*scores)


def test_layers_that_say_nothing_about_the_class_get_little_weight_by_agreement(world: World) -> None:
    clean = world.clean(400, 1)
    draw = torch.Generator().manual_seed(9)
    clean = clean.changed("conv", lambda x: torch.randn(x.shape, generator=draw))
    detector = CodeShift(rows=4, columns=4, weighting="agreement")
    detector.fit(world.traces(clean, detector.needs, fit=True))
    assert float(detector.weights.sum()) == pytest.approx(1)
    assert float(detector.weights[0]) < 0.15 < 0.4 < float(detector.weights[1:].min())


@pytest.mark.parametrize("encoder", ["som", "kmeans"])
def test_codes_far_on_the_map_are_found_and_others_are_not(world: World, encoder: Any) -> None:
    """Images of one class that are predicted as another lie elsewhere on the map: 1.0; clean against clean: 0.5."""
    detector = CodeShift("last:1", encoder=encoder, rows=5, columns=5, component="distance")

    def rows_apart(sample: Sample) -> Any:
        corners = 30 * torch.eye(5, 20)[sample.labels]
        return sample.changed("dense", lambda x: corners + 0.1 * x)

    detector.fit(world.traces(rows_apart(world.clean(500, 1, wrong=0)), detector.needs, fit=True))
    clean, again = (rows_apart(world.clean(200, seed, wrong=0)) for seed in (2, 3))
    turned = type(clean)(clean.before, clean.logits.roll(1, 1), clean.labels)
    scores = [detector.score(world.traces(s, detector.needs)) for s in (clean, again, turned)]
    assert roc_auc_score([0] * 200 + [1] * 200, torch.cat([scores[0], scores[2]])) == 1
    assert abs(roc_auc_score([0] * 200 + [1] * 200, torch.cat(scores[:2])) - 0.5) < 0.1


@pytest.mark.parametrize("encoder", ["som", "kmeans"])
def test_cold_and_straight_through_surrogates_are_the_score(world: World, encoder: Any) -> None:
    detector = CodeShift(encoder=encoder, rows=4, columns=4, statistic="mean+std")
    detector.fit(world.traces(world.clean(200, 1), detector.needs, fit=True))
    sample = world.perturbed(40, 2)
    expected = detector.score(world.traces(sample, detector.needs))
    live, leaves = world.live(sample, detector.needs)
    hard = detector.surrogate(replace(live, straight_through=True))
    torch.testing.assert_close(hard.double(), expected, rtol=1e-4, atol=1e-4)
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(hard.sum(), leaves[:-1]))
    cold = detector.surrogate(replace(live, temperature=1e-4)).double()
    assert float(((cold - expected).abs() < 1e-2).double().mean()) > 0.9
    assert not torch.allclose(detector.surrogate(live).double(), expected, atol=1e-2)


def test_images_of_one_class_predicted_as_another_contradict_their_codes(world: World) -> None:
    detector = CodeShift(rows=4, columns=4, epochs=10, component="disagreement")
    detector.fit(world.traces(world.clean(400, 1), detector.needs, fit=True))
    clean = world.clean(100, 2, wrong=0)
    turned = type(clean)(clean.before, clean.logits.roll(1, 1), clean.labels)
    scores = [detector.score(world.traces(s, detector.needs)) for s in (clean, turned)]
    assert float((scores[1] > scores[0]).double().mean()) > 0.95


def test_statistic_and_layers_say_what_is_read(world: World) -> None:
    detector = CodeShift("first:1", statistic="max", rows=2, columns=2, epochs=2)
    (need,) = detector.needs
    assert (need.representation, need.statistic, need.taps) == ("pooled", "max", "first:1")
    detector.fit(world.traces(world.clean(50, 1), detector.needs, fit=True))
    assert [m["prototypes"].shape for m in detector.maps] == [torch.Size([4, 6])]


def test_an_unknown_layer_is_named(world: World) -> None:
    detector = CodeShift(["conv", "nope"])
    traces = world.traces(world.clean(5, 1), CodeShift().needs, fit=True)
    with pytest.raises(UsageError, match="nope"):
        detector.fit(type(traces)(traces.logits_rows, traces.taps, traces.codes, detector.needs, {}, {}, traces.labels))


def test_two_statistics_are_two_needs() -> None:
    assert [n.code for n in CodeShift(statistic="mean+std").needs] == ["pooled:mean", "pooled:std"]
    assert [n.code for n in CodeShift(statistic="max").needs] == ["pooled:max"]
