"""Consistent prediction: a linear model, where the inner attack's result is known in closed form; planted cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from aftershock.detectors.logits.consistency import ConsistentPrediction
from aftershock.harness.core.errors import UsageError
from aftershock.harness.models.architectures import cnn
from aftershock.harness.tracing.recorder import discover
from aftershock.harness.tracing.traced_model import TracedModel
from aftershock.harness.tracing.traces import Traces
from torch import Tensor, nn


def traced(model: nn.Module) -> TracedModel:
    return TracedModel(model, discover(model, torch.rand(2, 1, 8, 8)))


def grey(count: int, seed: int = 0) -> Tensor:
    """Images with room for any change of at most a quarter."""
    return 0.25 + 0.5 * torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def linear(classes: int, scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(2)
    layer = nn.Linear(64, classes)
    nn.init.normal_(layer.weight, std=0.1 * scale)
    nn.init.zeros_(layer.bias)
    # A tap, which no detector needs here, and no change of the logits' order.
    return nn.Sequential(nn.Flatten(), nn.ReLU(), layer).eval()


def test_score_is_the_margin_that_is_left_written_out() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0], [1.0, 0.0, 4.0]])
    attacked = torch.tensor([[2.0, 1.0, 1.5], [4.0, 1.0, 0.0], [0.0, 0.0, 9.0]])
    found = ConsistentPrediction().score(Traces(logits, (), view_traces={"attacked": Traces(attacked, ())}))
    assert found.dtype == torch.float64 and found.tolist() == [-0.5, 3.0, -9.0]


@pytest.mark.parametrize("eps", [0.002, 0.02, 0.2])
def test_of_a_linear_model_it_is_the_worst_margin_in_the_ball(eps: float) -> None:
    model, x = linear(2), grey(60)
    detector = ConsistentPrediction(eps, steps=4, step_size=eps / 3)
    logits, found = traced(model).score(detector, x)
    weight = model.get_parameter("2.weight").detach().double()
    margin = logits.double().max(1).values - logits.double().min(1).values
    expected = -margin + eps * (weight[0] - weight[1]).abs().sum()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    # The paper's rule: some image within the radius is of another class.
    changes = torch.minimum(logits[:, 0], logits[:, 1]).double() + eps * (weight[0] - weight[1]).abs().sum()
    assert torch.equal(found > 0, changes > logits.max(1).values.double())


def test_surrogate_is_the_score_with_the_gradient_of_the_maximum() -> None:
    model, x = linear(2), grey(10)
    detector, i = ConsistentPrediction(0.02, 4, 0.01), traced(model)
    given = x.clone().requires_grad_()
    found = detector.surrogate(i.live_for(detector, given))
    torch.testing.assert_close(found.detach(), i.score(detector, x)[1], atol=1e-6, rtol=0)
    (gradient,) = torch.autograd.grad(found.sum(), given)
    weight = model.get_parameter("2.weight").detach()
    sign = torch.where(model(x).argmax(1) == 0, 1.0, -1.0).view(-1, 1)
    torch.testing.assert_close(gradient.flatten(1), sign * (weight[1] - weight[0]), atol=1e-5, rtol=0)


def test_the_inner_attack_moves_even_a_confident_model() -> None:
    # Its cross-entropy and the gradient of it are 0 in float32.
    x = grey(20)
    _, plain = traced(linear(4)).score(ConsistentPrediction(0.02, 4, 0.01), x)
    logits, found = traced(linear(4, scale=200)).score(ConsistentPrediction(0.02, 4, 0.01), x)
    untouched = logits.double().topk(2).values.diff(dim=1).squeeze(1)
    assert bool((found > untouched + 1e-3).all())
    # Not exactly 200 times: with more than two classes, the loss of a less confident model pulls at several of them.
    torch.testing.assert_close(found / 200, plain, atol=0.05, rtol=0)


def test_images_at_the_boundary_score_above_those_far_from_it() -> None:
    torch.manual_seed(0)
    model = cnn((1, 8, 8), 4, width=4, hidden=16).eval()
    x = grey(200)
    _, found = traced(model).score(ConsistentPrediction(0.02, 4, 0.01), x)
    logits = model(x).detach()
    margin = logits.topk(2).values.diff(dim=1).squeeze(1).neg()
    near, far = margin.argsort()[:40], margin.argsort()[-40:]
    assert float(found[near].mean()) > float(found[far].mean())


@pytest.mark.parametrize(
    ("parameters", "word"),
    [({"eps": 0.0}, "eps"), ({"eps": 2.0}, "2/255"), ({"steps": 0}, "steps"), ({"step_size": -1.0}, "step_size")],
)
def test_parameters_out_of_range_are_refused(parameters: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        ConsistentPrediction(**parameters)
