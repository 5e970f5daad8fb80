"""What parts are examined on: a CNN on scikit-learn's digits, and inputs that a detector must notice.

Everything goes the way of a real run: a trained model, its taps, recorded codes, and live traces for surrogates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ...detectors.base.detector import Detector
from ..core.registry import DATASETS
from ..core.seeds import generator
from ..data.types import Dataset
from ..models.classifier import Classifier, ModelSpec, obtain
from ..tracing.recorder import discover
from ..tracing.traced_model import TracedModel, fit_traces
from ..tracing.traces import LiveTrace, Traces

FIT_IMAGES = 400
TEST_IMAGES = 120
# Enough to fool the model on most digits, which are bold and few in pixels.
BUDGET = 0.3


@dataclass(frozen=True, eq=False)
class Fixture:
    """A model with images to fit on and to score.

    Attributes:
        traced_model: the model, its taps and its module paths.
        fit_images: float32 in [0, 1], (n, 1, 8, 8), with
        fit_labels: int64 (n,).
        clean: other clean images.
        planted: images that something is wrong with, by what it is: ``pgd`` (successful, at L-inf 0.3), ``noise``
            (uniform noise instead of a digit), ``inverted`` (white on black became black on white), ``salt`` (one
            pixel in six is black or white).
        fit_planted: PGD on the fit images, for supervised detectors.
        right_images: clean images that the model gets right, with
        right_labels: their classes.
        classes: the names of the classes.
    """

    traced_model: TracedModel
    fit_images: Tensor
    fit_labels: Tensor
    clean: Tensor
    planted: Mapping[str, Tensor]
    fit_planted: Tensor
    right_images: Tensor
    right_labels: Tensor
    classes: tuple[str, ...]

    def fit(self, detector: Detector, images: int | None = None, seed: int = 0) -> Detector:
        """Fit on the first ``images`` fit images, as a run does, and return what ``fit`` returned."""
        clean = self.fit_traces(detector, images, seed)
        perturbed = self.traces(detector, self.fit_planted[:images]) if detector.supervised else None
        return detector.fit(clean, perturbed)

    def fit_traces(self, detector: Detector, images: int | None = None, seed: int = 0) -> Traces:
        """Clean traces with labels and a generator."""
        traces = self.traces(detector, self.fit_images[:images])
        return fit_traces(traces, self.fit_labels[:images].clone(), generator(seed, "fit"))

    def traces(self, detector: Detector, images: Tensor) -> Traces:
        """Return traces for scoring."""
        return self.traced_model.traces(detector, images)

    def live(self, detector: Detector, images: Tensor, device: str = "cpu") -> LiveTrace:
        """Return a live trace; its ``images`` is the leaf to differentiate with respect to."""
        self.traced_model.model.to(device)
        return self.traced_model.live_for(detector, images.to(device).clone().requires_grad_())


@cache
def make_fixture() -> Fixture:
    """Return the fixture, made once and always the same."""
    from pathlib import Path

    dataset: Dataset = DATASETS.get("digits")(Path()).load()
    spec = ModelSpec(name="cnn", params={"width": 8, "hidden": 48, "dropout": 0.1})
    model = obtain(spec, dataset, seed=0).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    taps = discover(model, dataset.test.images(slice(0, 1)), (), model.network)
    traced_model = TracedModel(model, taps, (), model.network)
    fit, labels = dataset.train.images(slice(0, FIT_IMAGES)), dataset.train.labels(slice(0, FIT_IMAGES))
    test, truth = dataset.test.images(slice(0, 3 * TEST_IMAGES)), dataset.test.labels(slice(0, 3 * TEST_IMAGES))
    noise = torch.rand(TEST_IMAGES, *fit.shape[1:], generator=generator(0, "conformance", "noise"))
    salt = torch.rand(TEST_IMAGES, *fit.shape[1:], generator=generator(0, "conformance", "salt"))
    planted = {
        "pgd": _successful(model, test[TEST_IMAGES:], truth[TEST_IMAGES:]),
        "noise": noise,
        "inverted": 1 - test[TEST_IMAGES : 2 * TEST_IMAGES],
        "salt": torch.where(salt < 1 / 6, (salt < 1 / 12).float(), test[TEST_IMAGES : 2 * TEST_IMAGES]),
    }
    with torch.no_grad():
        right = model(test).argmax(1) == truth
    return Fixture(
        traced_model, fit, labels, test[:TEST_IMAGES], planted, _successful(model, fit, labels), test[right],
        truth[right], dataset.classes,
    )  # fmt: skip


def _successful(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Return images on which PGD fools the model; written here because detectors know no attacks."""
    x = images.clone()
    for _ in range(20):
        x = x.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(x), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        x = (x + BUDGET / 8 * gradient.sign()).clamp(images - BUDGET, images + BUDGET).clamp(0, 1)
    x = x.detach()
    with torch.no_grad():
        fooled = (model(images).argmax(1) == labels) & (model(x).argmax(1) != labels)
    return x[fooled]
