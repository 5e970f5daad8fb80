"""What an attack against a detector is told: thresholds, guides, and scores of the images that it asks about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from aftershock.attacks.base.perturb_batch import PerturbedBatch
from aftershock.attacks.base.watched_model import WatchedModel
from aftershock.detectors.base.detector import Detector, DetectorInfo
from aftershock.detectors.logits.baselines import MaxSoftmax
from aftershock.detectors.logits.consistency import ConsistentPrediction
from aftershock.detectors.logits.feature_squeezing import FeatureSqueezing
from aftershock.detectors.logits.odin import Odin
from aftershock.harness.core.errors import UsageError
from aftershock.harness.models.architectures import cnn
from aftershock.harness.run.fitted_target import FittedTarget, hard_traces, kept_units
from aftershock.harness.run.tasks.adaptive import judge
from aftershock.harness.run.workers.packing import pack_live, unpack_live
from aftershock.harness.tracing.extra_passes import InputGradient, View
from aftershock.harness.tracing.recorder import discover
from aftershock.harness.tracing.traced_model import TracedModel
from aftershock.harness.tracing.traces import LiveTrace, Need, TapInfo, Traces, pool
from torch import Tensor, nn


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


@pytest.mark.parametrize(
    "make", [ConsistentPrediction, lambda: FeatureSqueezing(("bit-depth", "median"), bits=2), MaxSoftmax, Odin]
)
@pytest.mark.parametrize("surrogate", [True, False])
def test_the_true_score_beside_a_surrogate_is_that_of_a_query(make: Callable[[], Detector], surrogate: bool) -> None:
    torch.manual_seed(0)
    model, images = cnn((1, 8, 8), 4, width=4, hidden=16).eval(), torch.rand(6, 1, 8, 8)
    traced, nothing = TracedModel(model, discover(model, images)), torch.zeros(0)
    target = FittedTarget(make(), traced, torch.arange(100.0), nothing, nothing, nothing)
    watched, wanted = (
        WatchedModel(model, torch.zeros(6, dtype=torch.int64)),
        torch.tensor([True, False, True, True, False, True]),
    )
    found = target.observe(watched, images.clone().requires_grad_(), surrogate=surrogate)
    before = watched.forwards
    score = found.score(wanted)
    torch.testing.assert_close(score, target.query(model, images[wanted])[1], atol=1e-6, rtol=1e-5)
    # Views that the surrogate has read are not made again.
    again = make().gradients or (make().views and not surrogate)
    assert (watched.forwards > before) == bool(again)


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


class Squared:
    """Reads one view: the squares of an image, with the transform's own gradient or without."""

    needs = (Need("pooled", "last:1"),)
    gradients: tuple[InputGradient, ...] = ()

    def __init__(self, differentiable: bool, dropout: bool = False) -> None:
        self.views = (View("squares", lambda images, draws: images**2, dropout, differentiable),)

    def score(self, traces: Traces) -> Tensor:
        return traces.view("squares").logits[:, 0]


@pytest.mark.parametrize("differentiable", [True, False])
def test_gradients_go_through_a_view_or_straight_through_its_transform(differentiable: bool) -> None:
    torch.manual_seed(0)
    model, images = cnn((1, 8, 8), 10).eval(), torch.rand(5, 1, 8, 8)
    traced, detector = TracedModel(model, discover(model, images)), Squared(differentiable)
    given, squares = images.clone().requires_grad_(), (images**2).requires_grad_()
    live = traced.live_for(detector, given)
    view = live.view("squares")
    assert view is live.view("squares")
    assert torch.allclose(view.logits, model(squares)) and set(view.activations) == {traced.taps[-1].name}
    (found,) = torch.autograd.grad(view.logits[:, 0].sum(), given)
    (at_squares,) = torch.autograd.grad(model(squares)[:, 0].sum(), squares)
    assert torch.allclose(found, at_squares * 2 * images if differentiable else at_squares, atol=1e-5)
    with pytest.raises(UsageError, match="did not declare"):
        live.view("cubes")
    tensors, described = pack_live(live, ["squares"])
    back = unpack_live(tensors, described)
    assert torch.equal(back.view("squares").logits, view.logits)
    with pytest.raises(UsageError, match="did not declare"):
        back.view("cubes")


def test_a_view_with_dropout_drops_in_a_live_pass_what_it_drops_in_a_recording() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10)).eval()
    images = torch.rand(5, 1, 8, 8)
    traced, detector = TracedModel(model, discover(model, images)), Squared(True, dropout=True)
    live = traced.live_for(detector, images.clone().requires_grad_()).view("squares")
    recorded = traced.traces(detector, images).view("squares")
    assert torch.allclose(live.logits.detach(), recorded.logits, atol=1e-6)
    assert not torch.allclose(recorded.logits, model(images**2), atol=1e-3)


def test_passes_of_views_are_counted_but_not_put_down_to_the_images_of_an_attack() -> None:
    model, images = LinearInPixels(), torch.rand(5, 1, 2, 2)
    watched = WatchedModel(model, torch.zeros(5, dtype=torch.int64))
    watched.aside()(-images.requires_grad_()).sum().backward()
    assert (watched.forwards, watched.backwards) == (5, 5) and int(watched._watch.passes.sum()) == 0
    watched(images)
    assert watched.forwards == 10 and watched._watch.passes.tolist() == [1] * 5


class LinearInPixels(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :2]


class NoisySum(Detector):
    """The sum of an image's logits after noise that is drawn anew for every evaluation."""

    info = DetectorInfo(title="Noisy sum", randomised=True)
    needs = (Need("pooled", "last:1"),)
    views = (View("noisy", lambda images, draws: images + 0.3 * torch.randn(images.shape, generator=draws)),)
    surrogate_kind = "exact"

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> NoisySum:
        return self

    def score(self, traces: Traces) -> Tensor:
        return traces.view("noisy").logits.sum(1)

    def surrogate(self, live: LiveTrace) -> Tensor:
        return live.view("noisy").logits.sum(1)


def test_of_a_drawn_score_an_attacker_has_the_mean_gradient_and_a_score_that_most_draws_do_not_exceed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).eval()
    images = torch.rand(40, 1, 8, 8)
    traced, detector = TracedModel(model, discover(model, images)), NoisySum()
    calibrate = traced.score(detector, images)[1]
    nothing = torch.zeros(0, dtype=torch.int64)
    target = FittedTarget(detector, traced, calibrate, images[:0], nothing, nothing)
    single = torch.stack([target.evaluate(model, images, draw)[1] for draw in range(200)])
    asked = target.query(model, images)[1]
    # The same question has the same answer, with the attacker's own draws, above the score of half of all draws.
    assert torch.equal(asked, target.query(model, images)[1])
    below = (single <= asked).double().mean(0)
    assert 0.6 < float(below.mean()) < 0.85
    # Who looks for images that are flagged asks for what most draws reach.
    reached = (single >= replace(target, flagging=True).query(model, images)[1]).double().mean(0)
    assert 0.6 < float(reached.mean()) < 0.85
    given = images.clone().requires_grad_()
    seen = target.observe(model, given)
    assert seen.suspicion is not None
    (found,) = torch.autograd.grad(seen.suspicion.sum(), given)
    noisy = (images + 0.3 * torch.randn((4000, *images.shape[1:]))[:, None]).flatten(0, 1).requires_grad_()
    (each,) = torch.autograd.grad(model(noisy).sum(), noisy)
    mean = each.view(4000, *images.shape).mean(0)
    cosine = torch.nn.functional.cosine_similarity(found.flatten(1), mean.flatten(1))
    # Of one draw it would be the gradient of another linear piece.
    assert float(cosine.mean()) > 0.97
    assert torch.equal(seen.score(torch.ones(40, dtype=torch.bool)), asked)


class UndeclaredSum(NoisySum):
    info = DetectorInfo(title="Noisy sum that does not say so")


@pytest.mark.parametrize(("detector", "passing"), [(NoisySum(), 40), (UndeclaredSum(), 0)])
def test_one_draw_elsewhere_is_not_held_against_an_image_that_passes_in_most(detector: Detector, passing: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).eval()
    images, nothing = torch.rand(40, 1, 8, 8), torch.zeros(0, dtype=torch.int64)
    traced = TracedModel(model, discover(model, images))
    target = FittedTarget(detector, traced, torch.full((100,), 1e6), images[:0], nothing, nothing)
    made = PerturbedBatch(images, nothing, nothing.bool(), {}, 0.0, 0.0, 0.0, ())
    flagging: Any = SimpleNamespace(
        detector=lambda fit, part: detector, device=torch.device("cpu"),
        fresh_scores=lambda *asked: torch.full((1, 40), torch.inf, dtype=torch.float64),
    )  # fmt: skip
    planned: Any = SimpleNamespace(fit="", part="")
    assert int(judge(flagging, target, planned, traced, made, 0).passed.sum()) == passing
