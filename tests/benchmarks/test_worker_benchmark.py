"""What it costs that a plugin's detector runs in a process of its own: the same detector built in, timed in pairs.

Fit, score and an attack that knows the detector, on noise: costs do not depend on what the images show. One network is
as small as the harness meets (digits), the other a ResNet-20 on images of CIFAR-10's size.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from aftershock.attacks.adaptive.surrogate import SurrogateAttack
from aftershock.attacks.base.perturb_batch import perturb_batch
from aftershock.harness.core.registry import DETECTORS
from aftershock.harness.models.architectures import cnn, resnet20
from aftershock.harness.run.fitted_target import FittedTarget
from aftershock.harness.run.workers.plugins import open_plugin_file
from aftershock.harness.run.workers.pool import POOL
from aftershock.harness.tracing.recorder import discover
from aftershock.harness.tracing.traced_model import TracedModel, fit_traces

PLUGIN = """
from aftershock.detectors import register
from aftershock.harness.core.registry import DETECTORS

for name in ("mahalanobis", "bitvector", "kde"):
    register(f"own-{name}")(type("Own", (DETECTORS.get(name),), {"__module__": __name__}))
"""
NETWORKS: dict[str, tuple[Callable[..., torch.nn.Module], tuple[int, int, int]]] = {
    "cnn-digits": (cnn, (1, 8, 8)),
    "resnet20": (resnet20, (3, 32, 32)),
}
FIT, SCORED, ATTACKED, STEPS, PAIRS = 500, 512, 64, 20, 5


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    path = tmp_path_factory.mktemp("plugin") / "own.py"
    path.write_text(PLUGIN)
    before, threads = dict(DETECTORS._entries), torch.get_num_threads()
    torch.set_num_threads(1)
    open_plugin_file(path)
    yield
    POOL.close()
    torch.set_num_threads(threads)
    DETECTORS._entries.clear()
    DETECTORS._entries.update(before)


@pytest.fixture(scope="module", params=NETWORKS)
def traced_model(request: pytest.FixtureRequest) -> tuple[TracedModel, tuple[int, int, int]]:
    make, shape = NETWORKS[request.param]
    torch.manual_seed(0)
    model = make(shape, 10).eval()
    return TracedModel(model, discover(model, torch.rand(2, *shape), (), model), (), model), shape


@pytest.mark.parametrize("name", ["mahalanobis", "bitvector", "kde"])
def test_a_detector_of_a_plugin_beside_a_built_in_one(
    benchmark: Any, traced_model: tuple[TracedModel, tuple[int, int, int]], name: str
) -> None:
    traced, shape = traced_model
    draw = torch.Generator().manual_seed(0)
    params = {"method": "hamming"} if name == "bitvector" else {}
    both = {"there": DETECTORS.get(f"own-{name}")(**params), "here": DETECTORS.get(name)(**params)}
    fit_images, images = (torch.rand(n, *shape, generator=draw) for n in (FIT, SCORED))
    fit = traced.traces(both["here"], fit_images)
    traces = traced.traces(both["here"], images).alone()
    with torch.no_grad():
        labels = traced.model(fit_images).argmax(1)
        attacked = traced.model(images[:ATTACKED]).argmax(1)
    scores = {}

    def fitting(where: str) -> None:
        both[where].fit(fit_traces(fit, labels, torch.Generator().manual_seed(0)))

    def scoring(where: str) -> None:
        with torch.no_grad():
            scores[where] = both[where].score(traces).double()

    def attacking(where: str) -> None:
        target = FittedTarget(both[where], traced, scores["here"], images[:0], attacked[:0], scores["here"][:0])
        attack = SurrogateAttack(8 / 255, method="joint", steps=STEPS)
        perturb_batch(attack, traced.model, images[:ATTACKED], attacked, range(ATTACKED), 0, target=target)

    ratios: dict[str, list[float]] = {}

    def pair() -> None:
        for work in (fitting, scoring, attacking):
            took = {}
            found = ratios.setdefault(work.__name__, [])
            for where in both if len(found) % 2 else reversed(both):
                began = time.perf_counter()
                work(where)
                took[where] = time.perf_counter() - began
            found.append(took["there"] / took["here"])

    benchmark.pedantic(pair, rounds=PAIRS, warmup_rounds=1)
    for what, found in ratios.items():
        benchmark.extra_info[f"{what}_there_over_here"] = round(statistics.median(found[-PAIRS:]), 2)
    print({k: v for k, v in benchmark.extra_info.items() if k.endswith("here")})
    assert torch.equal(scores["there"], scores["here"])


def test_what_a_start_costs(benchmark: Any, tmp_path: Path) -> None:
    """Seconds until the process of a plugin answers; paid once for each plugin and role of a run."""
    from aftershock.harness.run.workers.process import Source, Worker

    path = tmp_path / "own.py"
    path.write_text(PLUGIN)

    def start() -> None:
        worker = Worker(Source(path=path))
        worker.greeting()
        worker.close()

    benchmark.pedantic(start, rounds=3)
