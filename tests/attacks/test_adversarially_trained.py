"""A published, adversarially trained network: attacks must leave standing what is known to stand, and no more."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from aftershock.attacks.base.perturb_batch import perturb_batch
from aftershock.attacks.base.perturbation import Perturbation
from aftershock.attacks.native.autopgd import AutoPGD
from aftershock.attacks.native.pgd import PGD
from aftershock.harness.models.architectures import smallcnn
from aftershock.harness.models.weights import load_weights
from scipy.stats import binom
from torch import Tensor, nn

WEIGHTS = "weights/mnist-trades-smallcnn.pt"
EPS, IMAGES = 0.3, 500


@dataclass(frozen=True, eq=False)
class Trained:
    """The network and those of the first test images that it gets right."""

    model: nn.Module
    images: Tensor
    labels: Tensor

    def standing(self, attack: Perturbation, images: int = IMAGES) -> tuple[Tensor, float, float]:
        """Which of the first ``images`` of them the attack leaves standing, and what it took per image."""
        made = perturb_batch(
            attack, self.model, self.images[:images], self.labels[:images], range(len(self.images[:images])), 0, 100
        )
        assert made.flags == () and (made.norms["linf"] <= EPS + 1e-6).all()
        return ~made.success, made.forwards, made.backwards


@pytest.fixture(scope="module")
def trained(real_data: Path) -> Trained:
    raw = real_data / "MNIST" / "raw"
    if not (real_data / WEIGHTS).is_file() or not (raw / "t10k-images-idx3-ubyte").is_file():
        pytest.skip(f"needs MNIST and {WEIGHTS} under AFTERSHOCK_DATA")
    model = smallcnn((1, 28, 28), 10)
    load_weights(model, real_data / WEIGHTS)
    # The IDX format: a header of 16 bytes before the pixels, of 8 before the labels.
    pixels = np.fromfile(raw / "t10k-images-idx3-ubyte", np.uint8, count=IMAGES * 784, offset=16)
    labels = torch.from_numpy(np.fromfile(raw / "t10k-labels-idx1-ubyte", np.uint8, count=IMAGES, offset=8)).long()
    images = torch.from_numpy(pixels).view(-1, 1, 28, 28).float() / 255
    with torch.no_grad():
        right = model.eval()(images).argmax(1) == labels
    return Trained(model, images[right], labels[right])


@pytest.mark.realdata
def test_stronger_attacks_leave_no_more_than_published_pgd(trained: Trained) -> None:
    clean = len(trained.images)
    # 99.48 % of all 10,000 test images are published and measured.
    low, high = binom.interval(0.99, IMAGES, 0.9948)
    assert low <= clean <= high
    # The step is our default, 2.5 eps / steps: the figure comes without one, and it matters. Twenty steps of 0.01, as
    # long as the authors' forty, cannot cross the ball and leave 487, one more than the interval below allows.
    published, _, _ = trained.standing(PGD(EPS, steps=20))
    # 94.8 % of the 500, measured with another implementation and other random starts.
    low, high = binom.interval(0.99, IMAGES, 0.948)
    assert low <= published.sum() <= high

    # Worst case over steps and restarts, from the same first start: it can lose nothing.
    often, forwards, backwards = trained.standing(PGD(EPS, steps=20, restarts=2, early_stop=True))
    assert not (often & ~published).any() and forwards < 41 and backwards < 40
    # Another path than PGD's may miss an image or two that PGD finds by luck, not more than three.
    auto, _, _ = trained.standing(AutoPGD(EPS, steps=40))
    assert auto.sum() <= published.sum() + 3


@pytest.mark.realdata
@pytest.mark.torchattacks
@pytest.mark.parametrize("step_size", [0.01, 0.0375])
def test_pgd_is_as_strong_as_another_implementation_at_any_step(trained: Trained, step_size: float) -> None:
    import torchattacks

    images, labels = trained.images[:100], trained.labels[:100]
    ours = trained.standing(PGD(EPS, steps=20, step_size=step_size, random_start=False), 100)[0]
    attack = torchattacks.PGD(trained.model, eps=EPS, alpha=step_size, steps=20, random_start=False)
    made = attack(images, labels).detach()
    with torch.no_grad():
        theirs = trained.model(made).argmax(1) == labels
    # The same steps in another order of rounding.
    assert (ours == theirs).sum() >= 99


@pytest.mark.realdata
def test_no_attack_reaches_beyond_a_small_budget(trained: Trained) -> None:
    # A planted failure: at a hundredth of the budget it was trained for, the network hardly moves.
    made = perturb_batch(PGD(0.003, steps=10), trained.model, trained.images[:100], trained.labels[:100], range(100), 0)
    assert made.success.sum() == 0
