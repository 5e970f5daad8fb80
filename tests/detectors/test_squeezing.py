"""Feature squeezing: SciPy's median filter, non-local means written out, and planted cases."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from aftershock.detectors.logits.feature_squeezing import (
    FeatureSqueezing,
    median,
    non_local_means,
    reduce_bits,
    selection_network,
)
from aftershock.harness.core.errors import UsageError
from aftershock.harness.tracing.traces import Traces
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import median_filter
from scipy.special import softmax


def pictures(n: int, size: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, size, size + 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [2, 4, 9, 11])
def test_the_comparisons_bring_every_rank_to_its_wire(size: int) -> None:
    # A network that sorts all rows of zeros and ones sorts everything.
    rows = np.array(list(product((0, 1), repeat=size))).T
    expected = np.sort(rows, axis=0)
    for rank in range(size):
        wires = list(rows)
        for low, high, keeps_low, keeps_high in selection_network(size, rank):
            smaller, larger = np.minimum(wires[low], wires[high]), np.maximum(wires[low], wires[high])
            wires[low] = smaller if keeps_low else np.full_like(smaller, -1)
            wires[high] = larger if keeps_high else np.full_like(larger, -1)
        np.testing.assert_array_equal(wires[rank], expected[rank])


@pytest.mark.parametrize("window", [2, 3, 4, 5, 11])
def test_median_is_that_of_scipy(window: int) -> None:
    images = pictures(2)
    expected = median_filter(images.numpy(), size=(1, 1, window, window), mode="reflect")
    np.testing.assert_array_equal(median(images, window).numpy(), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(0, 10_000))
def test_reduced_bits_are_few_near_and_stay(bits: int, seed: int) -> None:
    images = pictures(1, seed=seed)
    found = reduce_bits(images, bits)
    assert len(found.unique()) <= 2**bits
    assert float((found - images).abs().max()) <= 0.5 / (2**bits - 1) + 1e-6
    assert torch.equal(reduce_bits(found, bits), found)
    assert torch.equal(reduce_bits(torch.tensor([0.0, 1.0]), bits), torch.tensor([0.0, 1.0]))


def test_non_local_means_written_out() -> None:
    images, strength = pictures(1, 6), 0.3
    found = non_local_means(images, 3, 3, strength)[0].numpy()
    image = images[0].double().numpy()
    height, width = image.shape[1:]
    mirrored = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="symmetric")
    for y, x in ((0, 0), (2, 3), (5, 7)):
        total, weights = 0.0, 0.0
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                squares = [
                    ((image[:, a, b] - mirrored[:, a + dy + 1, b + dx + 1]) ** 2).mean()
                    for a in range(max(0, y - 1), min(height, y + 2))
                    for b in range(max(0, x - 1), min(width, x + 2))
                ]
                weight = np.exp(-np.mean(squares) / strength**2)
                total, weights = total + weight * mirrored[:, y + dy + 1, x + dx + 1], weights + weight
        np.testing.assert_allclose(found[:, y, x], total / weights, rtol=1e-4)


def test_squeezers_stay_in_range_and_keep_flat_images() -> None:
    for view in FeatureSqueezing(bits=8).views:
        draw = torch.Generator()
        flat = torch.full((2, 3, 8, 8), 51 / 255)
        torch.testing.assert_close(view.transform(flat, draw), flat)
        changed = view.transform(pictures(2), draw)
        assert changed.shape == pictures(2).shape and float(changed.min()) >= 0 and float(changed.max()) <= 1


def traces(own: torch.Tensor, **views: torch.Tensor) -> Traces:
    return Traces(own, (), view_traces={name.replace("_", "-"): Traces(v, ()) for name, v in views.items()})


def test_score_is_the_largest_distance() -> None:
    draw = torch.Generator().manual_seed(1)
    own, coarse, smooth = (3 * torch.randn(40, 5, generator=draw) for _ in range(3))
    detector = FeatureSqueezing(("bit-depth", "median"))
    found = detector.score(traces(own, bit_depth=coarse, median=smooth))
    p, q, r = (softmax(x.double().numpy(), 1) for x in (own, coarse, smooth))
    np.testing.assert_allclose(found.numpy(), np.maximum(abs(p - q).sum(1), abs(p - r).sum(1)), rtol=1e-9)
    assert torch.equal(detector.score(traces(own, bit_depth=own, median=own)), torch.zeros(40, dtype=torch.float64))
    flipped = detector.score(traces(50 * own, bit_depth=-50 * own, median=own * 50))
    assert float(flipped.median()) == pytest.approx(2, abs=1e-6)
    assert detector.score(traces(own, bit_depth=coarse, median=smooth)[:0]).shape == (0,)
    assert detector.surrogate_kind == "straight-through" and FeatureSqueezing(("median",)).surrogate_kind == "exact"


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"squeezers": ("jpeg",)}, "squeezers"),
        ({"squeezers": ()}, "squeezers"),
        ({"squeezers": "median"}, "squeezers"),
        ({"bits": 0}, "bits"),
        ({"window": 1}, "window"),
        ({"search": 4}, "search"),
        ({"patch": 2}, "patch"),
        ({"strength": 0.0}, "strength"),
    ],
)
def test_wrong_parameters(parameters: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        FeatureSqueezing(**parameters)  # type: ignore[arg-type]
