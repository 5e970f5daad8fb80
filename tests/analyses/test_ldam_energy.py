"""What chains are drawn to: a planted linear unit, ascended and sampled, how targets are written, what is learnt."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from aftershock.analyses.ldam.discriminator import Rounds, train_discriminator
from aftershock.analyses.ldam.energy import Activations, Energy, Scale, Target, ascend, parse, total_variation
from aftershock.analyses.ldam.sampler import Plan, Schedule, langevin
from aftershock.analyses.ldam.space import EDGE, Gaussian
from aftershock.harness.core.errors import UsageError
from aftershock.harness.tracing.recorder import discover
from aftershock.harness.tracing.traced_model import TracedModel
from aftershock.harness.tracing.traces import TapInfo
from torch import Tensor, nn

CLASSES = ("left", "right", "top")
CPU = torch.device("cpu")
TAPS = (TapInfo("relu", "relu", (6, 8, 8)), TapInfo("relu:2", "relu", (10,)))


def planted() -> tuple[Activations, Scale, Tensor, Tensor]:
    """A logit that is linear in the pixels."""
    draws = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2), nn.Identity())
    with torch.no_grad():
        model.get_parameter("1.weight").copy_(torch.randn(2, 16, generator=draws))
    own = TracedModel(model.eval(), (TapInfo("1", "module", (2,)),), ("1",), model)
    images = torch.sigmoid(torch.randn(500, 1, 4, 4, generator=draws))
    activations = Activations(own, (Target("logit:0", "logit", 0),))
    data = activations.of(images, CPU)
    return activations, Scale.of(data), images, data[:, 0]


def test_plain_ascent_on_a_linear_unit_ends_in_its_corner() -> None:
    activations, scale, images, data = planted()
    which = torch.zeros(6, dtype=torch.int64)
    found = ascend(activations, scale, images[:6], which, 60, 0.05)
    reached = activations.of(found, CPU)[:, 0]
    assert float(reached.min()) > float(data.quantile(0.99))
    weight = activations.traced_model.model.get_parameter("1.weight")[0]
    assert torch.allclose(found.flatten(1), (weight > 0).float().expand(6, -1), atol=1e-3)
    smooth = ascend(activations, scale, images[:6], which, 60, 0.05, 1.0, 1, torch.Generator().manual_seed(0))
    assert float(total_variation(smooth).mean()) < 0.7 * float(total_variation(found).mean())


def test_chains_on_a_linear_unit_tilt_the_reference_measure_by_a_known_amount() -> None:
    # With z linear in unfolded Gaussian coordinates the density stays normal; here the logistic function bends it, so
    # the exact answer comes from importance weights over draws from the reference measure.
    activations, scale, images, _ = planted()
    space, pull = Gaussian(images), 1.0
    energy = Energy(
        activations, scale, space, torch.zeros(200, dtype=torch.int64), torch.zeros(200), None, pull
    )  # fmt: skip
    draws = torch.Generator().manual_seed(0)
    run = langevin(energy, space.draw(200, draws), Plan(80, 30, 1, Schedule(0.3), "mala"), draws)
    means = run.watched[:, :, 0].mean(0)
    with torch.no_grad():
        z = scale(activations(space.images(space.draw(50_000, draws))))[:, 0].double()
    weights = (pull * z).softmax(0)
    exact = float(weights @ z)
    error = float(means.std()) / math.sqrt(200) + float((weights.square() @ (z - exact).square()).sqrt())
    assert abs(float(means.mean()) - exact) < 4 * error
    assert exact > 0.5


def test_targets_are_read() -> None:
    taps = (TapInfo("a.relu:2", "relu", (5, 4, 4)), TapInfo("block", "module", (7, 12)))
    assert parse("logit:1", taps, CLASSES) == Target("logit:right", "logit", 1)
    assert parse("logit:right", taps, CLASSES).index == 1
    assert parse("channel:a.relu:2:4", taps, CLASSES) == Target("channel:a.relu:2:4", "channel", 4, "a.relu:2")
    assert parse("channel:block:11", taps, CLASSES).index == 11
    assert parse("unit:block:83", taps, CLASSES).index == 83


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("logit:bottom", "no class 'bottom'; there are left, right, top"),
        ("logit:3", "numbered from 0 to 2"),
        ("channel:conv3:0", "no tap 'conv3'"),
        ("channel:relu:6", "channels of relu are numbered from 0 to 5"),
        ("unit:relu:384", "units of relu are numbered from 0 to 383"),
        ("channel:relu", "cannot be read"),
        ("neuron:relu:1", "cannot be read"),
        ("logit:", "cannot be read"),
    ],
)
def test_targets_that_are_not_there_are_told_in_one_sentence(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        parse(text, TAPS, CLASSES)
    assert "\n" not in str(error.value)


def test_a_silent_unit_still_has_a_gradient() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        model.get_parameter("1.bias").fill_(-50.0)
    x = torch.rand(2, 1, 4, 4)
    own = TracedModel(model, discover(model, x), (), model)
    target = parse(f"unit:{own.taps[0].name}:2", own.taps, CLASSES)
    (slope,) = torch.autograd.grad(Activations(own, (target,))(x.requires_grad_(True)).sum(), x)
    assert float(slope.abs().max()) > 0


def test_real_images_have_no_pixel_value_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def spy(network: Any, optimiser: Any, real: Tensor, fake: Tensor, penalty: float) -> tuple[float, float]:
        seen.append(real)
        return 0.0, 0.0

    monkeypatch.setattr("aftershock.analyses.ldam.discriminator.learn", spy)
    activations, scale, images, _ = planted()
    black, space = torch.zeros(30, 1, 4, 4), Gaussian(images)
    energy = Energy(activations, scale, space, torch.zeros(3, dtype=torch.int64), torch.ones(3), None, 1.0)
    draws = lambda *names: torch.Generator().manual_seed(1)  # noqa: E731
    train_discriminator(energy, space, black, Rounds(1, 1, 2, 4), 0.02, draws, CPU)
    values = torch.cat(seen).flatten()
    assert len(values.unique()) > 0.9 * len(values)
    assert float((values - EDGE).abs().max()) <= 0.5 / 255 + 1e-6
