"""Ascents: the small attacks of a detector's own, whose images the harness makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from aftershock.harness.core.errors import AftershockError, UsageError
from aftershock.harness.models.architectures import cnn
from aftershock.harness.tracing.extra_passes import Ascent, InputGradient, View
from aftershock.harness.tracing.recorder import discover
from aftershock.harness.tracing.traced_model import TracedModel
from aftershock.harness.tracing.traces import Need, Traces
from aftershock.harness.tracing.view_images import climb
from torch import Tensor, nn


def images(count: int = 6, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return cnn((1, 8, 8), 4, width=4, hidden=16).eval()


def lost_ground(logits: Tensor, reference: Tensor) -> Tensor:
    return -logits.log_softmax(1).gather(1, reference.argmax(1, keepdim=True)).squeeze(1)


class Climbing:
    """Reads the first logit of one view, whose images may be changed before they are moved."""

    needs: tuple[Need, ...] = ()
    gradients: tuple[InputGradient, ...] = ()

    def __init__(self, ascent: Ascent, **about: Any) -> None:
        self.views = (View("moved", ascent=ascent, **about),)

    def score(self, traces: Traces) -> Tensor:
        return traces.view("moved").logits[:, 0]


def test_of_a_linear_model_it_finds_the_corner_of_the_ball() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    x = images()
    weight = model.get_parameter("1.weight")
    # Three steps of .03 go further than the radius.
    moved = climb(model, x, Ascent(lambda logits, reference: logits[:, 1], eps=0.05, step_size=0.03, steps=3))
    corner = (x + 0.05 * weight[1].view(1, 1, 8, 8).sign()).clamp(0, 1)
    torch.testing.assert_close(moved, corner)
    short = climb(model, x, Ascent(lambda logits, reference: logits[:, 1], eps=0.05, step_size=0.01, steps=2))
    torch.testing.assert_close(short, (x + 0.02 * weight[1].view(1, 1, 8, 8).sign()).clamp(0, 1))


@pytest.mark.parametrize("step_size", [0.002, 0.02, 0.5])
def test_it_stays_in_the_ball_and_never_ends_below_its_start(step_size: float) -> None:
    model, x = network(), images(40)
    before = x.clone()
    moved = climb(model, x, Ascent(lost_ground, 0.05, step_size, 4))
    assert torch.equal(x, before) and not moved.requires_grad
    assert float((moved - x).abs().max()) <= 0.05 + 1e-6 and float(moved.min()) >= 0 and float(moved.max()) <= 1
    with torch.no_grad():
        start, end = (lost_ground(model(batch), model(x)) for batch in (x, moved))
    assert bool((end >= start).all()) and float((end - start).mean()) > 0
    # Where a step leaves the ball on the other side of a maximum, the start is kept.
    peak = Ascent(lambda logits, reference: -(logits - reference).square().sum(1), 0.05, step_size, 4)
    assert torch.equal(climb(model, x, peak), x)


def test_an_image_is_moved_alike_whatever_is_beside_it() -> None:
    model, x = network(), images(20)
    ascent = Ascent(lost_ground, 0.05, 0.02, 4)
    together = climb(model, x, ascent)
    alone = torch.cat([climb(model, x[i : i + 1], ascent) for i in range(len(x))])
    backwards = climb(model, x.flip(0), ascent).flip(0)
    with torch.no_grad():
        values = [lost_ground(model(moved), model(x)) for moved in (together, alone, backwards)]
    torch.testing.assert_close(values[0], values[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(values[0], values[2], atol=1e-4, rtol=0)
    assert climb(model, x[:0], ascent).shape == (0, 1, 8, 8)


def test_the_model_and_the_random_state_stay_as_they_were() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4)).train()
    state, drawn = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    with torch.no_grad():
        climb(model, images(), Ascent(lost_ground, 0.05, 0.02, 2))
    assert model.training and torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("differentiable", [True, False])
@pytest.mark.parametrize("transform", [lambda x, draws: x, lambda x, draws: x.square()])
def test_an_attack_sees_the_images_that_are_recorded_and_the_gradient_there(
    differentiable: bool, transform: Any
) -> None:
    model, x = network(), images()
    traced = TracedModel(model, discover(model, x))
    detector = Climbing(Ascent(lost_ground, 0.05, 0.02, 4), transform=transform, differentiable=differentiable)
    recorded = traced.traces(detector, x).view("moved").logits
    given = x.clone().requires_grad_()
    live = traced.live_for(detector, given).view("moved")
    torch.testing.assert_close(live.logits.detach(), recorded, atol=1e-5, rtol=0)
    (found,) = torch.autograd.grad(live.logits[:, 0].sum(), given)
    start = transform(x, torch.Generator())
    there = climb(model, start, detector.views[0].ascent or pytest.fail()).requires_grad_()
    (expected,) = torch.autograd.grad(model(there)[:, 0].sum(), there)
    squared = differentiable and not torch.equal(start, x)
    torch.testing.assert_close(found, expected * 2 * x if squared else expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"eps": 0.0}, {"eps": -0.1}, {"eps": 8}, {"eps": "8/255"}, {"eps": float("nan")}, {"eps": True},
        {"step_size": 0}, {"step_size": 2.0}, {"steps": 0}, {"steps": 1.0}, {"steps": True},
    ],
)  # fmt: skip
def test_parameters_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Ascent(**{"objective": lost_ground, "eps": 0.1, "step_size": 0.1, "steps": 1, **wrong})


@pytest.mark.parametrize("objective", [lambda z, r: z, lambda z, r: z.sum(), lambda z, r: z[:1, 0]])
def test_an_objective_of_another_shape_is_named(objective: Any) -> None:
    with pytest.raises(AftershockError, match="objective of an ascent"):
        climb(network(), images(), Ascent(objective, 0.1, 0.1, 1))
