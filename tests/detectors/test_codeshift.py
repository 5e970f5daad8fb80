"""The code-shift detector against SciPy distances and plain counting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from aftershock.detectors.codeshift import CodeShift
from aftershock.harness.errors import UsageError
from scipy.spatial.distance import cdist

TAPS = ("conv", "block.relu", "dense")


def pooled(sample: Any, world: Any, tap: str) -> np.ndarray:
    shape = next(t.shape for t in world.taps if t.name == tap)
    values = sample.before[tap].relu().numpy().astype(np.float64).reshape(len(sample.labels), shape[0], -1)
    return values.mean(2)


def expected_parts(world: Any, detector: CodeShift, clean: Any, other: Any) -> dict[str, np.ndarray]:
    """The components for ``other`` before scaling, from the prototypes alone."""
    right = (clean.labels == clean.logits.argmax(1)).numpy()
    labels, predictions = clean.labels.numpy(), other.logits.argmax(1).numpy()
    parts = {name: np.zeros(len(predictions)) for name in ("error", "sequence", "disagreement")}
    for fitted, tap in zip(detector.maps, TAPS, strict=True):
        train, test = pooled(clean, world, tap), pooled(other, world, tap)
        mean, deviation = train.mean(0), train.std(0)
        prototypes = fitted["prototypes"].double().numpy()
        distances = cdist((train - mean) / deviation, prototypes)
        unit, error = distances.argmin(1), distances.min(1)
        distances = cdist((test - mean) / deviation, prototypes)
        parts["error"] += (distances.min(1) - error.mean()) / error.std() / 3
        members = {u: labels[right & (unit == u)] for u in range(len(prototypes))}
        occupied = [u for u in members if len(members[u])]
        for i, u in enumerate(distances.argmin(1)):
            own = right & (labels == predictions[i])
            if not own.any():
                own = right
            chance = ((unit[own] == u).sum() + detector.smoothing) / (own.sum() + detector.smoothing * len(prototypes))
            parts["sequence"][i] -= np.log(chance) / 3
            nearest = u if u in occupied else occupied[int(cdist(prototypes[u : u + 1], prototypes[occupied]).argmin())]
            majority = np.bincount(members[nearest]).argmax()
            parts["disagreement"][i] += (majority != predictions[i]) / 3
    return parts


@pytest.mark.parametrize("component", ["all", "error", "sequence", "disagreement"])
def test_components_are_what_counting_gives(world: Any, component: Any) -> None:
    clean, other = world.clean(160, 1), world.perturbed(40, 2)
    clean = clean.take(clean.labels != 3)
    detector = CodeShift(rows=3, columns=5, epochs=10, smoothing=0.5, component=component)
    detector.fit(world.traces(clean, detector.needs, fit=True))
    own = expected_parts(world, detector, clean, clean)
    parts = expected_parts(world, detector, clean, other)
    chosen = list(parts) if component == "all" else [component]
    expected = np.mean([(parts[n] - own[n].mean()) / own[n].std() for n in chosen], axis=0)
    found = detector.score(world.traces(other, detector.needs)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_clean_fit_images_have_mean_0_and_deviation_1(world: Any) -> None:
    for component in ("error", "sequence", "disagreement"):
        detector = CodeShift(rows=4, columns=4, epochs=5, component=component)
        traces = world.traces(world.clean(200, 1), detector.needs, fit=True)
        scores = detector.fit(traces).score(traces)
        assert float(scores.mean()) == pytest.approx(0, abs=1e-6)
        assert float(scores.std(correction=0)) == pytest.approx(1, abs=1e-6)


def test_images_of_one_class_predicted_as_another_contradict_their_codes(world: Any) -> None:
    detector = CodeShift(rows=4, columns=4, epochs=10, component="disagreement")
    detector.fit(world.traces(world.clean(400, 1), detector.needs, fit=True))
    clean = world.clean(100, 2, wrong=0)
    turned = type(clean)(clean.before, clean.logits.roll(1, 1), clean.labels)
    scores = [detector.score(world.traces(s, detector.needs)) for s in (clean, turned)]
    assert float((scores[1] > scores[0]).double().mean()) > 0.95


def test_statistic_and_layers_say_what_is_read(world: Any) -> None:
    detector = CodeShift("first:1", statistic="max", rows=2, columns=2, epochs=2)
    (need,) = detector.needs
    assert (need.representation, need.statistic, need.taps) == ("pooled", "max", "first:1")
    detector.fit(world.traces(world.clean(50, 1), detector.needs, fit=True))
    assert [m["prototypes"].shape for m in detector.maps] == [torch.Size([4, 6])]


def test_an_unknown_layer_is_named(world: Any) -> None:
    detector = CodeShift(["conv", "nope"])
    traces = world.traces(world.clean(5, 1), CodeShift().needs, fit=True)
    with pytest.raises(UsageError, match="nope"):
        detector.fit(type(traces)(traces.logits_rows, traces.taps, traces.codes, detector.needs, {}, {}, traces.labels))
