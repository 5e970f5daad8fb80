from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from aftershock.attacks.base.perturb_batch import perturb_batch
from aftershock.attacks.base.perturbation import norms
from aftershock.attacks.benign.equal_norm_control import equal_norm_control
from aftershock.attacks.native.pgd import PGD
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.seeds import Draws
from support.attack_cases import DigitsCase, LinearCase
from support.generators import generator_states
from torch import Tensor, nn


def test_the_control_is_as_large_and_changes_no_prediction(linear: LinearCase) -> None:
    # In [0.3, 0.7] nothing is clipped, so the norms are exactly those asked for.
    made = perturb_batch(PGD(0.1), linear.model, linear.images, linear.labels, linear.indices, seed=0)
    control = equal_norm_control(linear.model, linear.images, made.images, linear.labels, Draws(0, linear.indices))
    assert control.positions.dtype == torch.int64 and len(control.positions) > 190
    assert control.kept_share == len(control.positions) / 200
    delta = control.images - linear.images[control.positions]
    wanted = made.images[control.positions] - linear.images[control.positions]
    assert torch.allclose(delta.abs(), wanted.abs(), atol=1e-6)
    assert control.linf_ratio == pytest.approx(1, abs=1e-5) and control.l2_ratio == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        assert torch.equal(linear.model(control.images).argmax(1), linear.labels[control.positions])
    # Random signs: about as many up as down, and not the attack's own.
    assert abs(float((delta > 0).float().mean()) - 0.5) < 0.03
    assert abs(float((delta * wanted > 0).float().mean()) - 0.5) < 0.05


def test_clipping_shows_in_the_ratios() -> None:
    model = Constant([1.0, 0.0])
    clean = torch.zeros(400, 1, 5, 5)
    control = equal_norm_control(
        model, clean, clean + 0.1, torch.zeros(400, dtype=torch.int64), Draws(0, range(400)), tries=1
    )
    # Black images: half of the elements are clipped away, so E[l2] is near sqrt(1/2).
    assert control.kept_share == 1 and control.linf_ratio == pytest.approx(1)
    assert control.l2_ratio == pytest.approx(math.sqrt(0.5), abs=0.02)
    assert norms(control.images)["l0"].max() < 25


class Constant(nn.Module):
    logits: Tensor

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


def first_element(images: Tensor) -> Tensor:
    """Class 1 where the first element went up."""
    return torch.stack([torch.full((len(images),), 0.5), images[:, 0, 0, 0]], 1)


class FirstElement(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return first_element(images)


def test_images_are_drawn_again_until_the_prediction_holds() -> None:
    # Each try keeps class 0 with chance 1/2: after k tries a share 1 - 2^-k is kept.
    clean = torch.full((2000, 1, 2, 2), 0.5)
    clean_predictions = torch.zeros(2000, dtype=torch.int64)
    for tries in (1, 2, 4):
        control = equal_norm_control(
            FirstElement(), clean, clean + 0.2, clean_predictions, Draws(0, range(2000)), tries=tries
        )
        share = 1 - 0.5**tries
        assert control.kept_share == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 2000))
        assert torch.equal(control.positions, control.positions.sort().values)
        assert (control.images[:, 0, 0, 0] < 0.5).all()


def test_images_that_never_hold_are_dropped() -> None:
    clean = torch.full((5, 1, 2, 2), 0.5)
    control = equal_norm_control(
        Constant([0.0, 1.0]), clean, clean + 0.1, torch.tensor([1, 0, 1, 0, 0]), Draws(0, range(5))
    )
    assert control.positions.tolist() == [0, 2] and control.kept_share == 0.4 and len(control.images) == 2
    nothing = equal_norm_control(
        Constant([0.0, 1.0]), clean, clean + 0.1, torch.zeros(5, dtype=torch.int64), Draws(0, range(5))
    )
    assert nothing.kept_share == 0 and math.isnan(nothing.l2_ratio) and nothing.images.shape == (0, 1, 2, 2)
    empty = equal_norm_control(
        Constant([0.0, 1.0]), clean[:0], clean[:0], torch.zeros(0, dtype=torch.int64), Draws(0, [])
    )
    assert math.isnan(empty.kept_share) and empty.positions.shape == (0,)


def test_images_that_were_not_moved_have_no_ratio() -> None:
    clean = torch.full((2, 1, 2, 2), 0.5)
    moved = clean.clone()
    moved[0] += 0.1
    control = equal_norm_control(
        Constant([1.0, 0.0]), clean, moved, torch.zeros(2, dtype=torch.int64), Draws(0, range(2))
    )
    assert control.kept_share == 1 and control.l2_ratio == pytest.approx(1, abs=1e-5)
    assert torch.equal(control.images[1], clean[1])


def test_batches_do_not_matter_and_nothing_is_left_behind(digits: DigitsCase) -> None:
    made = perturb_batch(PGD(0.2), digits.model, digits.images, digits.labels, digits.indices, seed=0)
    digits.model.train()
    states = generator_states()
    arguments = (digits.model, digits.images, made.images, digits.labels)
    whole = equal_norm_control(*arguments, Draws(0, digits.indices))
    parts = equal_norm_control(*arguments, Draws(0, digits.indices), batch_size=7)
    assert digits.model.training and all(p.requires_grad for p in digits.model.parameters())
    assert generator_states() == states
    assert torch.equal(whole.images, parts.images) and torch.equal(whole.positions, parts.positions)
    other = equal_norm_control(*arguments, Draws(1, digits.indices))
    assert not torch.equal(whole.images[:5], other.images[:5])


@pytest.mark.parametrize(
    "change",
    [
        {"perturbed": torch.zeros(3, 1, 2, 2)},
        {"clean_predictions": torch.zeros(3, dtype=torch.int64)},
        {"draws": Draws(0, range(3))},
        {"tries": 0},
        {"batch_size": 0},
    ],
)
def test_wrong_inputs_are_one_sentence(change: dict[str, object]) -> None:
    arguments: dict[str, Any] = {
        "model": Constant([1.0, 0.0]),
        "clean": torch.zeros(4, 1, 2, 2),
        "perturbed": torch.zeros(4, 1, 2, 2),
        "clean_predictions": torch.zeros(4, dtype=torch.int64),
        "draws": Draws(0, range(4)),
    }
    with pytest.raises(UsageError):
        equal_norm_control(**(arguments | change))
