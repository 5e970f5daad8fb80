"""What an attack against a detector is told: thresholds, guides, and scores of the images that it asks about."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from aftershock.harness.models.architectures import cnn
from aftershock.harness.run.fitted_target import FittedTarget, hard_traces, kept_units
from aftershock.harness.tracing.recorder import discover
from aftershock.harness.tracing.traced_model import TracedModel
from aftershock.harness.tracing.traces import LiveTrace, Need, TapInfo, pool


@pytest.mark.parametrize(("images", "expected"), [(1000, 950.0), (19, 18.0), (10, 9.0)])
def test_threshold_is_that_of_the_tables_or_the_largest_score(images: int, expected: float) -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    detector = SimpleNamespace(surrogate_kind="none")
    target = FittedTarget(detector, None, torch.arange(images), nothing, nothing, nothing)  # type: ignore[arg-type]
    assert target.threshold == expected


def test_guides_are_the_images_that_the_detector_lets_pass() -> None:
    images, labels = torch.arange(4).float().view(4, 1, 1, 1), torch.arange(4)
    scores = torch.tensor([0.0, 950.0, 951.0, torch.nan])
    detector = SimpleNamespace(surrogate_kind="none")
    target = FittedTarget(detector, None, torch.arange(1000), images, labels, scores)  # type: ignore[arg-type]
    guides = target.guides()
    assert guides.labels.tolist() == [0, 1] and torch.equal(guides.images, images[:2])


@pytest.mark.parametrize("wanted", [[True, False, True, True, False], [True] * 5])
def test_hard_traces_are_those_that_a_recording_holds_of_the_same_images(wanted: list[bool]) -> None:
    torch.manual_seed(0)
    model, images, rows = cnn((1, 8, 8), 10).eval(), torch.rand(5, 1, 8, 8), torch.tensor(wanted)
    traced = TracedModel(model, discover(model, images))
    needs = (Need("bits"), Need("pooled"), Need("full", "last:1", units=4))
    live = traced.live(needs, images.requires_grad_())
    kept = kept_units(needs, traced.taps, images.device)
    found, recorded = hard_traces(live, needs, rows, kept, images.device), traced.codes(needs, images.detach())
    assert torch.equal(found.logits, recorded.logits[rows])
    for code, taps in recorded.codes.items():
        assert found.codes[code].keys() == taps.keys()
        assert all(torch.equal(found.codes[code][tap][:], values[:][rows]) for tap, values in taps.items())


def test_codes_recorded_for_several_detectors_are_those_of_each_alone_and_its_to_change() -> None:
    torch.manual_seed(0)
    model, images = cnn((1, 8, 8), 10).eval(), torch.rand(5, 1, 8, 8)
    traced = TracedModel(model, discover(model, images))
    one = SimpleNamespace(needs=(Need("bits", "last:1"), Need("pooled")), views=(), gradients=())
    other = SimpleNamespace(needs=(Need("bits"), Need("pooled", statistic="max")), views=(), gradients=())
    shared = traced.codes((*one.needs, *other.needs), images)
    for detector in (one, other):
        found, alone = traced.traces(detector, images, plain=shared), traced.traces(detector, images)
        assert found.needs == alone.needs and torch.equal(found.logits, alone.logits)
        assert found.codes.keys() == alone.codes.keys()
        for code, taps in alone.codes.items():
            assert list(found.codes[code]) == list(taps)
            for tap, rows in taps.items():
                assert torch.equal(found.codes[code][tap][:], rows[:])
                found.codes[code][tap][:].zero_()


@pytest.mark.parametrize("shape", [(4, 3), (4, 5, 3), (4, 3, 6, 7)])
def test_live_pooling_is_that_of_recordings_to_the_last_bit(shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    activation, tap = torch.randn(shape, generator=draw), TapInfo("tap", "relu", shape[1:])
    one, other = activation.clone().requires_grad_(), activation.clone().requires_grad_()
    live = LiveTrace(one, one, (tap,), {"tap": one}, {"tap": one})
    found, expected = live.pooled("tap"), pool(other, "mean")
    assert torch.equal(found, expected)
    weights = torch.rand(found.shape, generator=draw)
    gradients = [torch.autograd.grad((v * weights).sum(), x)[0] for v, x in ((found, one), (expected, other))]
    assert torch.equal(*gradients)
