"""What a whole run costs beside its attacks' own passes; nothing here asserts a time.

A suite of the shape of `cifar10-resnet20`, with twelve detectors and 200 evaluate images, is run in a process of its
own. The forwards and gradients that its attacks took are counted in the run, and their price is measured on the bare
model before and after. Needs CIFAR-10 and the ResNet-20 checkpoint under AFTERSHOCK_DATA, and ten minutes.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from aftershock.harness.data.sets import cifar10
from aftershock.harness.models.classifier import ModelSpec, obtain
from aftershock.harness.store.ledger import Record
from aftershock.harness.store.run_directory import Store
from torch import Tensor, nn

WEIGHTS = "weights/cifar10-resnet20-12fca82f.th"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EVALUATE = 200
SUITE = f"""
name = "reduced"
seeds = [0]
[data]
name = "cifar10"
fit = 800
calibrate = 200
evaluate = {EVALUATE}
[threat]
norm = "linf"
eps = "8/255"
[[models]]
name = "resnet20"
weights = "WEIGHTS"
mean = {list(MEAN)}
std = {list(STD)}
[[perturbations]]
name = "gaussian"
std = "8/255"
[[perturbations]]
name = "fgsm"
eps = "8/255"
[[perturbations]]
name = "pgd"
eps = ["2/255", "8/255"]
steps = 10
[[perturbations]]
name = "torchattacks.CW"
label = "cw"
steps = 50
[[perturbations]]
name = "foolbox.LinfDeepFoolAttack"
label = "deepfool"
[[perturbations]]
name = "adaptive"
eps = ["2/255", "8/255"]
steps = 50
images = 40
[[detectors]]
name = "bitvector"
label = "bits-on-pgd"
fit_on = ["pgd[eps=8/255]"]
[[detectors]]
name = "bitvector"
label = "bits-hamming"
method = "hamming"
[[detectors]]
name = "lid"
fit_on = ["pgd[eps=8/255]"]
[[detectors]]
name = "feature-squeezing"
squeezers = ["bit-depth", "median"]
"""
OTHERS = ("nap", "codeshift", "latent", "layerwise", "mahalanobis", "knn", "msp", "energy")
ANALYSES = ("rdm", "functional_codes")


def price(model: nn.Module, images: Tensor) -> tuple[float, float]:
    """Return CPU seconds of a forward and of a gradient, per image."""
    forwards, both = [], []
    for _ in range(5):
        began = time.process_time()
        with torch.no_grad():
            model(images)
        forwards.append(time.process_time() - began)
        began = time.process_time()
        watched = images.clone().requires_grad_()
        torch.autograd.grad(model(watched).sum(), watched)
        both.append(time.process_time() - began)
    forward = statistics.median(forwards) / len(images)
    return forward, statistics.median(both) / len(images) - forward


def passes(records: list[Record]) -> tuple[float, float]:
    """Return how many forwards and gradients all attacks of a run took, their checks included, in images."""
    made = [record.values for record in records if record.kind in ("perturb", "check")]
    return sum(v["rows"] * v["forwards"] for v in made), sum(v["rows"] * v["backwards"] for v in made)


def by_kind(records: list[Record]) -> Mapping[str, float]:
    found: dict[str, float] = defaultdict(float)
    for record in records:
        found[record.kind] += record.seconds
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def test_a_run_beside_its_attacks_own_passes(benchmark: Any, tmp_path: Path) -> None:
    root = Path(os.environ.get("AFTERSHOCK_DATA") or "/nowhere")
    if not (root / WEIGHTS).is_file():
        pytest.skip("needs CIFAR-10 and the ResNet-20 checkpoint under AFTERSHOCK_DATA")
    for name in ("torchattacks", "foolbox"):
        pytest.importorskip(name)
    dataset = cifar10(root).load()
    model = obtain(ModelSpec(name="resnet20", weights=root / WEIGHTS, mean=MEAN, std=STD), dataset, 0).eval()
    model.requires_grad_(False)
    images = dataset.test.images(list(range(128)))
    parts = [f'[[detectors]]\nname = "{name}"\n' for name in OTHERS]
    parts += [f'[[analyses]]\nname = "{name}"\n' for name in ANALYSES]
    suite = tmp_path / "reduced.toml"
    suite.write_text(SUITE.replace("WEIGHTS", str(root / WEIGHTS)) + "".join(parts))
    command = [sys.executable, "-m", "aftershock", "run", str(suite), "--out", str(tmp_path / "run"), "--cache",
               str(tmp_path / "cache"), "--device", "cpu"]  # fmt: skip
    prices = [price(model, images)]

    def run() -> None:
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = spent()
    benchmark.pedantic(run, rounds=1)
    seconds = spent() - before
    prices.append(price(model, images))
    forward, gradient = (statistics.mean(values) for values in zip(*prices, strict=True))
    with Store(tmp_path / "run") as store:
        records = store.records()
    forwards, backwards = passes(records)
    own = forwards * forward + backwards * gradient
    benchmark.extra_info |= {
        "cpu_seconds": round(seconds, 1), "own_seconds": round(own, 1), "ratio": round(seconds / own, 3),
        "forwards": round(forwards), "backwards": round(backwards),
        "wall_seconds_by_kind": {k: round(v, 1) for k, v in by_kind(records).items()},
    }  # fmt: skip
    print({**benchmark.extra_info, "ms": (round(1000 * forward, 3), round(1000 * gradient, 3))})
    assert forwards > 0 and backwards > 0
