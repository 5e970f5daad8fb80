"""One GPU, one table: agreement with the CPU, images a second beside other libraries, the share of time in kernels.

Run by check.sh, which says how. Nothing here is collected by pytest.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
import tomllib
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import aftershock
import numpy as np
import torch
from aftershock.attacks.base.perturb_batch import PerturbedBatch, perturb_batch
from aftershock.attacks.base.perturbation import Perturbation
from aftershock.attacks.native.pgd import PGD
from aftershock.detectors.base.detector import Detector
from aftershock.harness.conformance.fixture import Fixture
from aftershock.harness.core.model_state import full_precision
from aftershock.harness.core.registry import DATASETS, DETECTORS, PERTURBATIONS
from aftershock.harness.models.classifier import Classifier, ModelSpec, obtain
from aftershock.harness.run.fitted_target import FittedTarget
from aftershock.harness.tracing.bits import flips
from aftershock.harness.tracing.recorder import discover
from aftershock.harness.tracing.traced_model import TracedModel
from aftershock.harness.tracing.traces import Need
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WEIGHTS = "weights/cifar10-resnet20-12fca82f.th"
EPS = 8 / 255
# Convolutions sum in another order; where a value lies within that of 0, a bit may differ.
LOGITS, BITS, SCORES = 1e-3, 1e-6, 0.02


class Table:
    """The lines that are printed as soon as they are known."""

    def __init__(self) -> None:
        self.differs = 0

    def line(self, what: str, value: str, verdict: str = "") -> None:
        self.differs += verdict == "DIFFERS"
        print(f"| {what:<44} | {value:<46} | {verdict:<7} |", flush=True)

    def within(self, what: str, found: float, allowed: float, unit: str = "") -> None:
        self.line(what, f"{found:.2e}{unit}, allowed {allowed:g}", "ok" if found <= allowed else "DIFFERS")


def main() -> int:
    """Run the parts asked for; 1 where CUDA and CPU disagree."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", default="agreement,speed,suite")
    parser.add_argument("--seconds", type=int, default=200, help="of the suite, which is stopped then")
    parser.add_argument("--images", type=Path, help="an .npz file with x_train, y_train, x_test, y_test")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--evaluate", type=int, default=2000)
    parser.add_argument("--detectors", default="", help="of the suite: some of its labels, and no analyses")
    parser.add_argument("--workers", type=int, help="processes that compute the suite")
    parser.add_argument("--device", default="cuda")
    asked = parser.parse_args()
    root = Path(os.environ.get("AFTERSHOCK_DATA") or ".")
    weights = asked.weights or root / WEIGHTS
    table = Table()
    with tempfile.TemporaryDirectory() as folder:
        images = asked.images or _subset(root, Path(folder) / "cifar10.npz", asked.evaluate)
        name = torch.cuda.get_device_name() if asked.device == "cuda" else "no GPU: the script itself is tried"
        table.line("device", name)
        table.line("torch, precision", f"{torch.__version__}, TF32 conv {torch.backends.cudnn.allow_tf32}")
        parts = {"agreement": agreement, "speed": speed, "suite": suite}
        for part in asked.parts.split(","):
            start = time.perf_counter()
            try:
                parts[part](table, images, weights, asked)
            except Exception as error:
                # What the other parts say is worth having.
                traceback.print_exc()
                table.line(part, f"{type(error).__name__}: {error}"[:46], "DIFFERS")
            table.line(f"seconds of {part}", f"{time.perf_counter() - start:.0f}")
    return int(bool(table.differs))


def _subset(root: Path, file: Path, evaluate: int) -> Path:
    """As many images of CIFAR-10 as the suite takes, the first of each split, as an .npz file."""
    whole = DATASETS.get("cifar10")(root).load()
    arrays = {}
    for name, split, count in (("train", whole.train, 4000), ("test", whole.test, evaluate + 1000)):
        rows = list(range(count))
        arrays[f"x_{name}"] = (split.images(rows) * 255).round().to(torch.uint8).numpy()
        arrays[f"y_{name}"] = split.labels(rows).numpy()
    np.savez(file, **arrays)
    return file


def _model(images: Path, weights: Path, device: str) -> tuple[Classifier, Any]:
    dataset = DATASETS.get("npz")(Path(), path=images).load()
    model = obtain(ModelSpec(name="resnet20", weights=weights, mean=MEAN, std=STD), dataset, seed=0)
    return model.eval().requires_grad_(False).to(device), dataset


# -- Agreement with the CPU


def agreement(table: Table, file: Path, weights: Path, asked: argparse.Namespace) -> None:
    """Logits, codes, every detector's scores and surrogates, and PGD on both, as runs compute them."""
    with full_precision():
        _compare(table, file, weights, asked)


def _compare(table: Table, file: Path, weights: Path, asked: argparse.Namespace) -> None:
    here, dataset = _model(file, weights, "cpu")
    there, _ = _model(file, weights, asked.device)
    fit, labels = dataset.train.images(slice(0, 600)), dataset.train.labels(slice(0, 600))
    images, truth = dataset.test.images(slice(0, 256)), dataset.test.labels(slice(0, 256))
    taps = discover(here, images[:1], (), here.network)
    traced = {
        d.model: d for d in (TracedModel(here, taps, (), here.network), TracedModel(there, taps, (), there.network))
    }
    cpu, cuda = traced[here], traced[there]
    needs = (Need("bits"), Need("pooled"), Need("full", units=256))
    one, two = cpu.codes(needs, images), cuda.codes(needs, images)
    table.within("logits: largest difference", float((one.logits - two.logits).abs().max()), LOGITS * 10)
    flipped = sum(int(flips(one.bits(t.name), two.bits(t.name)).sum()) for t in taps)
    table.within("bits that differ", flipped / (len(images) * sum(t.units for t in taps)), BITS)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        rounded = cuda.codes(needs, images)
    flipped = sum(int(flips(one.bits(t.name), rounded.bits(t.name)).sum()) for t in taps)
    share = flipped / (len(images) * sum(t.units for t in taps))
    table.line("bits that differ with TF32, which is off", f"{share:.2e}")
    pooled = max(float((one.pooled(t.name) - two.pooled(t.name)).abs().max()) for t in taps)
    table.within("pooled: largest difference", pooled, LOGITS)
    pgd = PGD(EPS, steps=10)
    made = [_perturbed(pgd, model, images, truth) for model in (here, there)]
    table.within("PGD-10: difference in success", abs(_share(made[0]) - _share(made[1])), 0.01)
    at_fit = _perturbed(pgd, there, fit, labels)
    fixture = Fixture(
        cpu, fit, labels, images, {"pgd": made[0].images}, at_fit.images[at_fit.success], images, truth, dataset.classes
    )
    for name in DETECTORS.names():
        try:
            _agrees(table, name, fixture, cuda)
        except Exception as error:
            table.line(name, f"{type(error).__name__}: {error}"[:46], "DIFFERS")


def _agrees(table: Table, name: str, fixture: Fixture, cuda: TracedModel) -> None:
    """Compare one detector's scores and surrogate, in units of the spread of its clean scores."""
    made = DETECTORS.get(name)
    params = {"of": ["msp", "energy"]} if name == "combination" else {}
    detector: Detector = fixture.fit(made(**params))
    images = torch.cat([fixture.clean, fixture.planted["pgd"]])
    on_cpu = fixture.traced_model.score(detector, images)[1]
    on_cuda = cuda.score(detector, images)[1]
    # Scores of sure predictions differ by less than float32 tells.
    spread = max(float(on_cpu.quantile(0.75) - on_cpu.quantile(0.25)), 1e-3 * float(on_cpu.std())) or 1.0
    # A bit or a unit that flips may move one image's score: the bulk has to stay.
    moved = float((on_cpu - on_cuda).abs().quantile(0.95)) / spread
    seen = []
    for model in (fixture.traced_model, cuda):
        device = next(model.model.parameters()).device
        labels = fixture.right_labels[:64]
        target = FittedTarget(detector, model, on_cpu[:128], fixture.clean[:64].to(device), labels, on_cpu[:64])
        given = images[-64:].to(device).requires_grad_()
        with torch.enable_grad():
            observed = target.observe(model.model, given)
        # What an attack is told on its way is what is scored of the same images.
        told = observed.score(torch.arange(64, device=device) % 3 > 0).cpu()
        moved = max(moved, float((told - on_cpu[-64:][torch.arange(64) % 3 > 0]).abs().quantile(0.95)) / spread)
        if observed.suspicion is not None:
            torch.autograd.grad(observed.suspicion.sum(), given)
            seen.append(observed.suspicion.detach().double().cpu())
    surrogate = (
        float((seen[0] - seen[1]).abs().quantile(0.95)) / (float(seen[0].std()) or 1.0) if len(seen) == 2 else 0.0
    )
    table.within(f"{name}: score, surrogate", max(moved, surrogate), SCORES, " of the spread")


def _perturbed(
    attack: Perturbation, model: Classifier, images: Tensor, labels: Tensor, **further: Any
) -> PerturbedBatch:
    return perturb_batch(attack, model, images, labels, range(len(images)), seed=0, **further)


def _share(made: PerturbedBatch) -> float:
    return float(made.success.double().mean())


# -- Images a second


def speed(table: Table, file: Path, weights: Path, asked: argparse.Namespace) -> None:
    """PGD-40 beside torchattacks and foolbox on the same images, then attacks that know a detector; all in float32."""
    with full_precision():
        _rates(table, file, weights, asked)


def _rates(table: Table, file: Path, weights: Path, asked: argparse.Namespace) -> None:
    model, dataset = _model(file, weights, asked.device)
    count = 1024 if asked.device == "cuda" else 32
    images, labels = _right(model, dataset, count)
    size = 2.5 * EPS / 40

    def ours(batch: int) -> float:
        return _share(_perturbed(PGD(EPS, steps=40, step_size=size), model, images, labels, batch_size=batch))

    def torchattacks_pgd(batch: int) -> float:
        import torchattacks

        attack = torchattacks.PGD(model, eps=EPS, alpha=size, steps=40)
        return _fooled(model, images, labels, batch, lambda x, y: attack(x, y))

    def foolbox_pgd(batch: int) -> float:
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=asked.device)
        attack = foolbox.attacks.LinfPGD(abs_stepsize=size, steps=40)
        return _fooled(model, images, labels, batch, lambda x, y: attack(wrapped, x, y, epsilons=EPS)[1])

    peers = {"Aftershock": ours, "torchattacks": torchattacks_pgd, "foolbox": foolbox_pgd}
    for batch in (128, count):
        for name, attack in peers.items():
            with suppress(ImportError):
                # The first call pays for the choice of algorithms and for memory.
                runs = [_timed(attack, batch, asked.device) for _ in range(3)]
                rate = len(images) / min(s for s, _ in runs[1:])
                table.line(f"PGD-40, batch {batch}: {name}", f"{rate:.0f} images/s, success {runs[-1][1]:.3f}")
    few = images[:256]
    taps = discover(model, few[:1].to(asked.device), (), model.network)
    traced = TracedModel(model, taps, (), model.network)
    fit, truth = dataset.train.images(slice(0, 1000)), dataset.train.labels(slice(0, 1000))
    fixture = Fixture(traced, fit, truth, few, {}, fit[:0], few, labels[:256], dataset.classes)
    for name in ("msp", "mahalanobis", "bitvector", "codeshift", "latent"):
        params = {"method": "hamming"} if name == "bitvector" else {}
        detector = fixture.fit(DETECTORS.get(name)(**params))
        scores = traced.score(detector, few)[1]
        known = traced.score(detector, fit[:128])[1]
        target = FittedTarget(detector, traced, scores, fit[:128].to(asked.device), truth[:128], known)
        attack = PERTURBATIONS.get("adaptive-pgd")(eps=EPS, steps=40)
        for _ in range(2):
            start = time.perf_counter()
            made = _perturbed(attack, model, few, labels[:256], target=target, batch_size=256)
            seconds = time.perf_counter() - start
        rate = made.forwards * len(few) / seconds
        table.line(f"adaptive PGD against {name}", f"{len(few) / seconds:.0f} images/s, {rate:.0f} forwards/s")


def _right(model: Classifier, dataset: Any, count: int) -> tuple[Tensor, Tensor]:
    images, labels = dataset.test.images(slice(0, 2 * count)), dataset.test.labels(slice(0, 2 * count))
    device = next(model.parameters()).device
    with torch.no_grad():
        right = model(images.to(device)).argmax(1).cpu() == labels
    return images[right][:count], labels[right][:count]


def _fooled(
    model: Classifier, images: Tensor, labels: Tensor, batch: int, attack: Callable[[Tensor, Tensor], Tensor]
) -> float:
    device = next(model.parameters()).device
    fooled = 0
    for start in range(0, len(images), batch):
        x, y = images[start : start + batch].to(device), labels[start : start + batch].to(device)
        with torch.enable_grad():
            made = attack(x, y)
        with torch.no_grad():
            fooled += int((model(made).argmax(1) != y).sum())
    return fooled / len(images)


def _timed(attack: Callable[[int], float], batch: int, device: str) -> tuple[float, float]:
    start = time.perf_counter()
    success = attack(batch)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, success


# -- The suite


def suite(table: Table, file: Path, weights: Path, asked: argparse.Namespace) -> None:
    """``cifar10-resnet20`` with more images, stopped after some time; how much of it the GPU was at work."""
    source = Path(aftershock.__file__).parent / "harness" / "suite" / "builtin" / "cifar10-resnet20.toml"
    made = tomllib.loads(source.read_text(encoding="utf-8"))
    made["data"] |= {"name": "npz", "path": str(file.resolve()), "evaluate": asked.evaluate}
    made["models"][0]["weights"] = str(weights.resolve())
    if asked.detectors:
        made["detectors"] = [d for d in made["detectors"] if d.get("label", d["name"]) in asked.detectors.split(",")]
        made["analyses"] = []
    kinds: Counter[str] = Counter()
    spent: dict[str, float] = defaultdict(float)
    begun = time.perf_counter()

    def on_progress(event: Any) -> None:
        nonlocal begun
        now = time.perf_counter()
        if event.kind == "failed":
            print("  ", str(event.cell.name)[:60], event.reason[:300], flush=True)
        if event.kind in ("done", "failed"):
            kinds[event.cell.name.kind if event.kind == "done" else f"failed {event.cell.name.kind}"] += 1
            spent[event.cell.name.kind] += now - begun
        if event.kind != "share":
            begun = now

    if asked.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder, Kernels(asked.device == "cuda") as kernels, _alarm(asked.seconds):
        start = time.perf_counter()
        try:
            aftershock.run(
                made, out=f"{folder}/run", cache=f"{folder}/cache", device=asked.device, on_progress=on_progress,
                workers=asked.workers,
                on_message=lambda text: print("  ", text[:110], flush=True),
            )  # fmt: skip
            ended = "whole"
        except KeyboardInterrupt:
            ended = "stopped"
        seconds = time.perf_counter() - start
    table.line("suite", f"{ended} after {seconds:.0f} s, {sum(kinds.values())} cells")
    for kind, count in sorted(kinds.items(), key=lambda item: -spent[item[0]]):
        table.line(f"  cells: {kind}", f"{count} in {spent[kind]:.1f} s")
    if asked.device == "cuda":
        if (asked.workers or 1) == 1:
            # Kernels of other processes are not seen.
            table.line("share of wall time in kernels", f"{kernels.share:.2f} (profiled {kernels.profiled:.0f} s)")
        table.line("utilisation as the driver says", f"{kernels.driver:.2f}")
        table.line("peak memory of the device", f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")
        for name, share in kernels.longest[:8]:
            table.line(f"  {name[:42]}", f"{share:.3f} of the time in kernels")


@contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    """Interrupt the block as Ctrl-C does, once, after some seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


class Kernels:
    """How much of the time a kernel ran: profiled in windows, since every launch of minutes would not fit in memory."""

    WINDOW, EVERY = 0.4, 4.0

    def __init__(self, wanted: bool) -> None:
        self._wanted, self._stop = wanted, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._busy = self.profiled = 0.0
        self._told: list[float] = []
        self._by_name: Counter[str] = Counter()

    def __enter__(self) -> Kernels:
        if self._wanted:
            torch.cuda.init()
            # What the profiler imports as well: not by two threads at once.
            for name in ("torch._dynamo", "torch._inductor.utils"):
                import_module(name)

            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._wanted:
            self._thread.join(10)

    @property
    def share(self) -> float:
        return self._busy / self.profiled if self.profiled else float("nan")

    @property
    def driver(self) -> float:
        return sum(self._told) / len(self._told) / 100 if self._told else float("nan")

    @property
    def longest(self) -> list[tuple[str, float]]:
        total = sum(self._by_name.values()) or 1.0
        return [(name, spent / total) for name, spent in self._by_name.most_common(12)]

    def _watch(self) -> None:
        while not self._stop.wait(self.EVERY - self.WINDOW):
            try:
                self._look()
            except Exception as error:
                print("   profiler:", type(error).__name__, str(error)[:90], flush=True)
                return

    def _look(self) -> None:
        self._told += [float(torch.cuda.utilization()) for _ in range(3) if not self._stop.wait(0.2)]
        profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        profile.start()
        start = time.perf_counter()
        time.sleep(self.WINDOW)
        seconds = time.perf_counter() - start
        profile.stop()
        spans = []
        results: Any = profile.profiler
        for event in results.kineto_results.events():
            if "CUDA" in str(event.device_type()) and "memcpy" not in event.name().lower():
                spans.append((event.start_ns(), event.end_ns()))
                self._by_name[event.name()] += event.duration_ns()
        self._busy += _union(sorted(spans)) / 1e9
        self.profiled += seconds


def _union(spans: list[tuple[int, int]]) -> int:
    """The time that at least one of the spans covers."""
    covered, end = 0, 0
    for start, stop in spans:
        covered += max(0, stop - max(start, end))
        end = max(end, stop)
    return covered


if __name__ == "__main__":
    sys.exit(main())
