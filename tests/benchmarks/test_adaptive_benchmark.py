"""What an adaptive attack costs beside its own passes, by detector; nothing here asserts a time.

The passes of the attack are noted (how many images, how many gradients) and made again through the bare model: the
ratio is what surrogate, score, traces and the attack's own arithmetic add. Needs CIFAR-10 and the ResNet-20 checkpoint
under AFTERSHOCK_DATA.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from aftershock.attacks.adaptive.worst_case import WorstCase
from aftershock.attacks.base.perturb_batch import PerturbedBatch, perturb_batch
from aftershock.attacks.native.pgd import PGD
from aftershock.detectors.base.detector import Detector
from aftershock.harness.core.model_state import untouched
from aftershock.harness.core.registry import DETECTORS
from aftershock.harness.data.sets import cifar10
from aftershock.harness.models.classifier import ModelSpec, obtain
from aftershock.harness.run.fitted_target import FittedTarget
from aftershock.harness.tracing.recorder import discover
from aftershock.harness.tracing.traced_model import TracedModel, fit_traces
from torch import Tensor, nn

WEIGHTS = "weights/cifar10-resnet20-12fca82f.th"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FIT, CALIBRATE, GUIDES, ATTACKED, PERTURBED = 800, 200, 256, 100, 200
EPS, STEPS, QUERIES, ROUNDS = 2 / 255, 10, 20, 2

# As the suite `cifar10-resnet20` has them, by label: name and parameters.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "msp": ("msp", {}),
    "mahalanobis": ("mahalanobis", {}),
    "knn": ("knn", {}),
    "bits-hamming": ("bitvector", {"method": "hamming"}),
    "nap": ("nap", {}),
    "codeshift": ("codeshift", {}),
    "latent": ("latent", {}),
    "layerwise": ("layerwise", {}),
    "lid": ("lid", {}),
    "feature-squeezing": ("feature-squeezing", {"squeezers": ["bit-depth", "median"]}),
}


@dataclass(frozen=True, eq=False)
class Case:
    """A model with images that it gets right."""

    traced: TracedModel
    fit: Tensor
    fit_labels: Tensor
    fooling: Tensor
    calibrate: Tensor
    images: Tensor
    labels: Tensor


@dataclass(eq=False)
class Pass:
    """One forward of some images, and how often a gradient came back."""

    images: int
    differentiated: bool
    backwards: int = 0


class Noting(nn.Module):
    """Notes every pass through a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.passes: list[Pass] = []

    def forward(self, images: Tensor) -> Tensor:
        noted = Pass(len(images), torch.is_grad_enabled() and images.requires_grad)
        self.passes.append(noted)
        if noted.differentiated:
            images = images.view_as(images)

            def count(gradient: Tensor) -> None:
                noted.backwards += 1

            images.register_hook(count)
        logits: Tensor = self.model(images)
        return logits


@pytest.fixture(scope="module")
def case() -> Case:
    root = Path(os.environ.get("AFTERSHOCK_DATA") or "/nowhere")
    if not (root / WEIGHTS).is_file():
        pytest.skip("needs CIFAR-10 and the ResNet-20 checkpoint under AFTERSHOCK_DATA")
    dataset = cifar10(root).load()
    model = obtain(ModelSpec(name="resnet20", weights=root / WEIGHTS, mean=MEAN, std=STD), dataset, 0).eval()
    model.requires_grad_(False)

    def right(split: Any, count: int, first: int = 0) -> tuple[Tensor, Tensor]:
        rows = list(range(first, first + 2 * count))
        images, labels = split.images(rows), split.labels(rows)
        with torch.no_grad():
            good = torch.cat([model(part).argmax(1) for part in images.split(128)]) == labels
        return images[good][:count], labels[good][:count]

    fit, fit_labels = right(dataset.train, FIT)
    made = perturb_batch(PGD(EPS), model, fit[:PERTURBED], fit_labels[:PERTURBED], range(PERTURBED), 0)
    images, labels = right(dataset.test, ATTACKED)
    calibrate, _ = right(dataset.test, CALIBRATE, 1000)
    taps = discover(model, images[:1], (), model.network)
    traced = TracedModel(model, taps, (), model.network)
    return Case(traced, fit, fit_labels, made.images[made.success], calibrate, images, labels)


def fitted(case: Case, name: str, params: Mapping[str, Any]) -> Detector:
    detector: Detector = DETECTORS.get(name)(**params)
    clean = fit_traces(case.traced.traces(detector, case.fit), case.fit_labels, torch.Generator().manual_seed(0))
    return detector.fit(clean, case.traced.traces(detector, case.fooling) if detector.supervised else None)


@dataclass(eq=False)
class Timed:
    """CPU seconds of both sides, round by round."""

    attack: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        return statistics.median(a / b for a, b in zip(self.attack, self.bare, strict=True))


def spent(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def again(model: nn.Module, images: Tensor, passes: list[Pass]) -> None:
    """Make the passes again, with nothing around them."""
    for noted in passes:
        part = images[torch.arange(noted.images) % len(images)]
        if not noted.differentiated:
            with torch.no_grad():
                model(part)
            continue
        part.requires_grad_()
        logits = model(part)
        for left in reversed(range(noted.backwards)):
            torch.autograd.grad(logits.sum(), part, retain_graph=left > 0)


@pytest.mark.parametrize("label", CASES)
def test_an_adaptive_attack_beside_its_own_passes(benchmark: Any, case: Case, label: str) -> None:
    name, params = CASES[label]
    detector = fitted(case, name, params)
    scores = case.traced.score(detector, case.calibrate)[1]
    traced, noting = case.traced, Noting(case.traced.model)
    # A run reads these scores, too, from a cell of their own.
    guides = case.fit[:GUIDES], case.fit_labels[:GUIDES], case.traced.score(detector, case.fit[:GUIDES])[1]
    results: list[PerturbedBatch] = []

    def attack() -> None:
        noting.passes.clear()
        target = FittedTarget(detector, traced, scores, *guides)
        made = perturb_batch(
            WorstCase(EPS, STEPS, QUERIES, restarts=1), noting, case.images, case.labels, range(ATTACKED), 0,
            target=target, measured_with=traced.model,
        )  # fmt: skip
        results.append(made)

    timed = Timed()

    def pair() -> None:
        timed.attack.append(spent(attack))
        with untouched(traced.model), torch.enable_grad():
            timed.bare.append(spent(lambda: again(traced.model, case.images, noting.passes)))

    benchmark.pedantic(pair, rounds=ROUNDS)
    forwards = sum(p.images for p in noting.passes) / ATTACKED
    backwards = sum(p.images * p.backwards for p in noting.passes) / ATTACKED
    benchmark.extra_info |= {
        "ratio": round(timed.ratio, 3), "cpu_seconds": round(statistics.median(timed.attack), 3),
        "forwards": round(forwards, 1), "backwards": round(backwards, 1),
    }  # fmt: skip
    print(f"{label}: {timed.ratio:.2f} of {statistics.median(timed.bare):.2f} s, {forwards:.0f} f {backwards:.0f} b")
    # Both did the same passes, and the attack the same thing each time.
    assert all(torch.equal(made.images, results[0].images) for made in results)
