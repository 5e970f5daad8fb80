"""ViM, GradNorm and ODIN against pytorch-ood and automatic differentiation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from aftershock.detectors.logits.odin import Odin
from aftershock.detectors.logits.vim_gradnorm import GradNorm, Vim
from aftershock.harness.core.errors import UsageError
from aftershock.harness.tracing.recorder import input_gradient
from aftershock.harness.tracing.traces import LiveTrace, Need, TapInfo, Traces
from torch import Tensor, nn

TAPS = (TapInfo("pool", "relu", (24,)),)
NEED = Need("pooled", "last:1")


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(4)
    return nn.Linear(24, 5)


def traces(features: Tensor, layer: nn.Linear, labels: bool = False) -> Traces:
    logits = layer(features).detach()
    return Traces(
        logits, TAPS, {NEED.code: {"pool": features}}, (NEED,), label_rows=logits.argmax(1) if labels else None
    )


def draw(n: int, seed: int) -> Tensor:
    """Non-negative features near a subspace of 6 dimensions."""
    basis = torch.rand(6, 24, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 6, generator=generator) @ basis + 0.05 * torch.rand(n, 24, generator=generator)


@pytest.mark.parametrize("dimensions", [0, 3])
def test_vim_is_that_of_pytorch_ood_given_the_weights(layer: nn.Linear, pytorch_ood: Any, dimensions: int) -> None:
    fit, test = draw(400, 1), draw(50, 2)
    reference = pytorch_ood.ViM(None, dimensions or 5, layer.weight, layer.bias).fit_features(fit, torch.zeros(400))
    detector = Vim(dimensions=dimensions).fit(traces(fit, layer, labels=True))
    assert detector.explained > 1 - 1e-9
    assert detector.alpha == pytest.approx(reference.alpha, rel=1e-3)
    found = detector.score(traces(test, layer))
    torch.testing.assert_close(found.float(), reference.predict_features(test), rtol=1e-3, atol=1e-3)


def test_vim_sees_what_leaves_the_subspace(layer: nn.Linear) -> None:
    detector = Vim(dimensions=8).fit(traces(draw(400, 1), layer, labels=True))
    clean = draw(100, 2)
    # Directions that change no logit, orthogonal to the weights: only the residual can tell.
    hidden = torch.linalg.svd(layer.weight.detach(), full_matrices=True).Vh[5:]
    moved = clean + 3 * hidden.sum(0) / hidden.sum(0).norm()
    assert float(detector.score(traces(moved, layer)).min()) > float(detector.score(traces(clean, layer)).max())


def test_gradnorm_is_the_norm_of_the_gradient(layer: nn.Linear) -> None:
    features = draw(6, 3)
    found = GradNorm(temperature=2.0).score(traces(features, layer))
    for row, score in zip(features, found, strict=True):
        logs = (layer(row) / 2.0).log_softmax(0)
        # KL(uniform || softmax) up to a constant.
        (gradient,) = torch.autograd.grad(-logs.mean(), layer.weight)
        assert float(score) == pytest.approx(-float(gradient.abs().sum()), rel=1e-4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Sequential(nn.Flatten(), nn.Linear(48, 30), nn.Tanh(), nn.Linear(30, 4))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.stack(images)
        return logits


def test_odin_is_that_of_pytorch_ood_to_first_order(pytorch_ood: Any) -> None:
    torch.manual_seed(5)
    model, images = Net().double().eval(), torch.rand(20, 3, 4, 4, dtype=torch.float64)
    eps, temperature = 1e-5, 2.0
    detector = Odin(temperature, eps)
    (wanted,) = detector.gradients
    gradient = input_gradient(model, images, wanted.objective)
    logits = model(images).detach()
    found = detector.score(Traces(logits, (), gradient_rows={wanted.name: gradient}))
    reference = pytorch_ood.ODIN(model, eps=eps, temperature=temperature).predict(images)
    still = logits.div(temperature).softmax(1).amax(1)
    # The effect of the step alone, since the rest is the softmax.
    torch.testing.assert_close(found + still.log(), -((-reference).log() - still.log()), rtol=1e-3, atol=1e-10)

    live_images = images.clone().requires_grad_()
    live = LiveTrace(live_images, model(live_images), (), {}, {})
    stand_in = detector.surrogate(live)
    torch.testing.assert_close(stand_in.detach(), found, rtol=1e-6, atol=1e-9)
    (slope,) = torch.autograd.grad(stand_in.sum(), live_images)
    assert bool(slope.isfinite().all()) and bool((slope.flatten(1).abs().sum(1) > 0).all())


def test_odin_without_a_step_needs_no_gradient() -> None:
    detector = Odin(eps=0)
    assert detector.gradients == ()
    logits = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    scores = detector.score(Traces(logits, ()))
    assert float(scores[0]) < float(scores[1])
    with pytest.raises(UsageError, match="gradients"):
        Odin().surrogate(LiveTrace(torch.zeros(2, 1, 1, 1), logits.requires_grad_(), (), {}, {}))
