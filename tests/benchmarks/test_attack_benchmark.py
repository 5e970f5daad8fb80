"""How long PGD takes beside that of other libraries, and whether it fools as many; nothing here asserts a time.

All take the same steps of the same length from the image itself, on the same batches, without looking at the iterates.
The models are published ones where AFTERSHOCK_DATA has them, and a network trained on the digits.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from aftershock.attacks.base.perturb_batch import perturb_batch
from aftershock.attacks.native.pgd import PGD
from aftershock.harness.core.errors import AftershockError
from aftershock.harness.core.registry import DATASETS
from aftershock.harness.models.architectures import cnn, smallcnn
from aftershock.harness.models.classifier import ModelSpec, obtain
from aftershock.harness.models.folding import folded
from aftershock.harness.models.weights import load_weights
from sklearn.datasets import load_digits
from torch import Tensor, nn

STEPS, IMAGES, PAIRS = 20, 100, 5
TRADES, RESNET = "weights/mnist-trades-smallcnn.pt", "weights/cifar10-resnet20-12fca82f.th"


@dataclass(frozen=True, eq=False)
class Case:
    """A model, images that it gets right, and the budget."""

    name: str
    model: nn.Module
    images: Tensor
    labels: Tensor
    eps: float

    @property
    def step_size(self) -> float:
        return 2.5 * self.eps / STEPS

    def fooled(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model(images).argmax(1) != self.labels

    def ours(self) -> Tensor:
        """As a run does it: on a quick copy, with everything that is measured of the images besides."""
        attack = PGD(self.eps, steps=STEPS, step_size=self.step_size, random_start=False)
        quick, places = folded(self.model, self.images[:8]), range(len(self.images))
        assert quick is not None
        made = perturb_batch(attack, quick, self.images, self.labels, places, seed=0, measured_with=self.model)
        return made.images


@pytest.fixture(scope="module", params=["cifar10-resnet20", "mnist-trades", "digits-cnn"])
def case(request: pytest.FixtureRequest) -> Case:
    root = Path(os.environ.get("AFTERSHOCK_DATA") or "/nowhere")
    makers: dict[str, Callable[[Path], tuple[str, nn.Module, Tensor, Tensor, float]]] = {
        "cifar10-resnet20": _resnet, "mnist-trades": _trades, "digits-cnn": lambda root: _digits()
    }  # fmt: skip
    try:
        name, model, images, labels, eps = makers[request.param](root)
    except (AftershockError, OSError) as error:
        pytest.skip(f"AFTERSHOCK_DATA does not hold it: {error}")
    # Frozen, as the harness has it: otherwise some would also take the gradients of the weights.
    model = model.eval().requires_grad_(False)
    right = model(images).argmax(1) == labels
    return Case(name, model, images[right][:IMAGES], labels[right][:IMAGES], eps)


def _resnet(root: Path) -> tuple[str, nn.Module, Tensor, Tensor, float]:
    data = DATASETS.get("cifar10")(root).load()
    spec = ModelSpec(name="resnet20", weights=root / RESNET, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    rows = list(range(2 * IMAGES))
    return "cifar10-resnet20", obtain(spec, data, seed=0), data.test.images(rows), data.test.labels(rows), 8 / 255


def _trades(root: Path) -> tuple[str, nn.Module, Tensor, Tensor, float]:
    model = smallcnn((1, 28, 28), 10)
    load_weights(model, root / TRADES)
    raw = root / "MNIST" / "raw"
    # The IDX format: a header of 16 bytes before the pixels, of 8 before the labels.
    pixels = np.fromfile(raw / "t10k-images-idx3-ubyte", np.uint8, count=2 * IMAGES * 784, offset=16)
    labels = torch.from_numpy(np.fromfile(raw / "t10k-labels-idx1-ubyte", np.uint8, count=2 * IMAGES, offset=8)).long()
    return "mnist-trades", model, torch.from_numpy(pixels).view(-1, 1, 28, 28).float() / 255, labels, 0.3


def _digits() -> tuple[str, nn.Module, Tensor, Tensor, float]:
    x, y = load_digits(return_X_y=True)
    images, labels = torch.from_numpy(x.astype(np.float32) / 16).view(-1, 1, 8, 8), torch.from_numpy(y).long()
    torch.manual_seed(0)
    model = cnn((1, 8, 8), 10)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(100):
        rows = torch.randperm(1200)[:128]
        loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return "digits-cnn", model, images[1200:], labels[1200:], 0.06


def _torchattacks(case: Case) -> Callable[[], Tensor]:
    torchattacks = pytest.importorskip("torchattacks")

    def run() -> Tensor:
        attack = torchattacks.PGD(case.model, eps=case.eps, alpha=case.step_size, steps=STEPS, random_start=False)
        return attack(case.images, case.labels).detach()

    return run


def _foolbox(case: Case) -> Callable[[], Tensor]:
    # Without it the import fails where there is no git executable.
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    foolbox = pytest.importorskip("foolbox")

    def run() -> Tensor:
        attack = foolbox.attacks.LinfPGD(abs_stepsize=case.step_size, steps=STEPS, random_start=False)
        seen = foolbox.PyTorchModel(case.model, bounds=(0, 1))
        return attack(seen, case.images, foolbox.criteria.Misclassification(case.labels), epsilons=case.eps)[1]

    return run


def _art(case: Case) -> Callable[[], Tensor]:
    ProjectedGradientDescentPyTorch = pytest.importorskip("art.attacks.evasion").ProjectedGradientDescentPyTorch
    PyTorchClassifier = pytest.importorskip("art.estimators.classification").PyTorchClassifier

    shape = tuple(case.images.shape[1:])
    seen = PyTorchClassifier(
        case.model, nn.CrossEntropyLoss(), shape, 10, clip_values=(0.0, 1.0), device_type="cpu"
    )  # fmt: skip
    attack = ProjectedGradientDescentPyTorch(
        seen, norm=np.inf, eps=case.eps, eps_step=case.step_size, max_iter=STEPS, batch_size=IMAGES, verbose=False
    )
    images, labels = case.images.numpy(), case.labels.numpy()
    return lambda: torch.from_numpy(attack.generate(images, labels)).float()


@pytest.mark.parametrize("library", [_torchattacks, _foolbox, _art], ids=["torchattacks", "foolbox", "art"])
def test_pgd_beside_that_of_a_library(benchmark, case: Case, library) -> None:  # type: ignore[no-untyped-def]
    theirs = library(case)
    # Whatever else the machine does changes from second to second: the two are timed in pairs, each first in turn.
    ours_seconds: list[float] = []
    ratios: list[float] = []

    def pair() -> None:
        took = {}
        for work in (case.ours, theirs) if len(ratios) % 2 else (theirs, case.ours):
            began = time.perf_counter()
            work()
            took[work] = time.perf_counter() - began
        ours_seconds.append(took[case.ours])
        ratios.append(took[theirs] / took[case.ours])

    benchmark.pedantic(pair, rounds=PAIRS, warmup_rounds=1)
    # What comes before are the rounds of the warm-up.
    ours_seconds, ratios = ours_seconds[-PAIRS:], ratios[-PAIRS:]
    made, other = case.ours(), theirs()
    ours_fooled, theirs_fooled = case.fooled(made), case.fooled(other)
    benchmark.extra_info["model"] = case.name
    benchmark.extra_info["success"] = ours_fooled.float().mean().item()
    benchmark.extra_info["library_success"] = theirs_fooled.float().mean().item()
    benchmark.extra_info["library_seconds_over_ours"] = statistics.median(ratios)
    benchmark.extra_info["ms_per_image"] = 1000 * statistics.median(ours_seconds) / len(case.images)
    print(f"library / ours: median {statistics.median(ratios):.3f} of {len(ratios)} pairs")

    # Both must do the work, or the ratio would compare different things: all of the budget, on the same images.
    for images in (made, other):
        assert float((images - case.images).abs().max()) == pytest.approx(case.eps, rel=1e-4)
        assert images.min() >= 0 and images.max() <= 1
    # The same steps, but for the order of rounding: an image in fifty may end on the other side.
    assert ours_fooled.any() and (ours_fooled != theirs_fooled).sum() <= len(case.images) / 50
