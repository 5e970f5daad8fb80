"""What a guard costs beside the bare model: a ResNet-20 on batches of CIFAR-10's size."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from aftershock import Guard
from aftershock.detectors.base.detector import Detector
from aftershock.harness.core.registry import DETECTORS
from aftershock.harness.models.architectures import resnet20
from aftershock.harness.models.classifier import Classifier, Normalise
from aftershock.harness.run.guard import Description, ModelDescription
from aftershock.harness.tracing.recorder import discover
from aftershock.harness.tracing.traced_model import TracedModel, fit_traces


def fitted(name: str, model: Classifier, images: torch.Tensor) -> tuple[Detector, TracedModel]:
    """A detector of noise fitted on noise: costs do not depend on what the images show."""
    taps = discover(model, images[:1], (), model.network)
    traced_model = TracedModel(model, taps, (), model.network)
    detector: Detector = DETECTORS.get(name)(**({"method": "hamming"} if name == "bitvector" else {}))
    with torch.no_grad():
        labels = model(images).argmax(1)
    detector.fit(fit_traces(traced_model.traces(detector, images), labels, torch.Generator().manual_seed(0)))
    return detector, traced_model


@pytest.mark.parametrize("size", [1, 64])
@pytest.mark.parametrize("name", ["msp", "mahalanobis", "bitvector", "codeshift"])
def test_overhead_over_the_bare_model(benchmark: Any, name: str, size: int) -> None:
    draw = torch.Generator().manual_seed(0)
    model = Classifier(resnet20((3, 32, 32), 10), Normalise([0.5] * 3, [0.25] * 3), (3, 32, 32), 10).eval()
    detector, traced_model = fitted(name, model, torch.rand(300, 3, 32, 32, generator=draw))
    guard = Guard(detector, traced_model, 0.0, _about())
    images = torch.rand(size, 3, 32, 32, generator=draw)

    def bare() -> None:
        with torch.no_grad():
            model(images)

    benchmark.pedantic(guard, (images,), rounds=10, warmup_rounds=2)
    times = []
    for _ in range(12):
        began = time.perf_counter()
        bare()
        times.append(time.perf_counter() - began)
    benchmark.extra_info["guard_over_bare_model"] = round(benchmark.stats.stats.median / sorted(times)[6], 2)


def _about() -> Description:
    """A guard's description: only the shape of its images matters here."""
    model = ModelDescription(
        label="resnet20", dataset="noise", digest="", shape=(3, 32, 32), classes=10, normalise=None, taps=[],
        modules=[], bits_per_tap=None,
    )  # fmt: skip
    return Description(format=2, detector="", label="", params={}, state=None, model=model, seed=0, versions={})
