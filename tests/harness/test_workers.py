"""The processes of plugins: what goes there and comes back whole, what a part may do there, and what it costs."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from aftershock.attacks.base.perturb_batch import perturb_batch
from aftershock.attacks.base.watched_model import Limits
from aftershock.harness.core.errors import AftershockError, UsageError
from aftershock.harness.core.parameters import bind
from aftershock.harness.core.plugin_files import load_plugin_file
from aftershock.harness.core.registry import DATASETS, DETECTORS, MODELS, PERTURBATIONS, Entry
from aftershock.harness.core.seeds import forked_rng
from aftershock.harness.core.state import split_state
from aftershock.harness.models.architectures import mlp
from aftershock.harness.run.answering import analyses
from aftershock.harness.run.workers.channel import Channel, ChannelError, Message
from aftershock.harness.run.workers.files import FileWatch
from aftershock.harness.run.workers.folder import WorkFolder
from aftershock.harness.run.workers.packing import pack_live, pack_traces, unpack_live, unpack_traces
from aftershock.harness.run.workers.plugins import open_plugin_file
from aftershock.harness.run.workers.pool import POOL, WorkerPool
from aftershock.harness.run.workers.process import Allowance, PartError, Source, Worker, WorkerEndedError
from aftershock.harness.run.workers.witness import witness_scores
from aftershock.harness.tracing.recorder import discover
from aftershock.harness.tracing.traced_model import TracedModel, fit_traces
from aftershock.harness.tracing.traces import Need, TapInfo, Traces
from torch import Tensor

PLUGIN = """
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import torch
from aftershock.attacks import Perturbation, PerturbationInfo
from aftershock.attacks import register as perturbation
from aftershock.detectors import Ascent, Detector, DetectorInfo, InputGradient, Need, View, register
from aftershock.harness.data.types import Dataset, DataSource, ImageSplit
from aftershock.harness.core.registry import DATASETS, MODELS


@register("answers-as-told")
class AnswersAsTold(Detector):
    "Does what its parameter says."

    info = DetectorInfo(title="as told", needs=(Need("pooled", taps="last:1"),), surrogate="exact")
    everyone = []

    def __init__(self, what: str = "energy", size: float = 1.0, path=None):
        self.what, self.size, self.path = what, size, path

    def fit(self, clean, perturbed=None):
        if self.what == "labels in score":
            self.labels = clean.labels
        self.sources, self.others = clean.sources, None if perturbed is None else perturbed.sources
        self.drawn = torch.rand(3, generator=clean.generator)
        self.mean = clean.pooled(clean.tap_names()[0]).mean(0)
        return self

    def score(self, traces):
        if self.what in DEEDS:
            DEEDS[self.what](self, traces)
        if self.what == "gradients":
            return torch.full((len(traces),), float(torch.is_grad_enabled()))
        if self.what == "draws":
            return torch.rand(len(traces))
        if self.what == "calls":
            self._calls = getattr(self, "_calls", 0) + 1
            return torch.full((len(traces),), float(self._calls))
        if self.what == "calls of all":
            self.everyone.append(1)
            return torch.full((len(traces),), float(len(self.everyone)))
        if self.what == "places":
            return torch.arange(len(traces))
        if self.what == "environment":
            return torch.full((len(traces),), float(len(os.environ.get("AFTERSHOCK_TEST_LEFT", ""))))
        if self.what == "complex":
            return torch.zeros(len(traces), dtype=torch.complex64)
        if self.what == "numpy":
            return np.zeros(len(traces))
        return -self.size * traces.logits.double().logsumexp(1)

    def surrogate(self, live):
        tap = live.tap_names()[0]
        return (live.pooled(tap) * self.mean).sum(1).tanh() - self.size * live.logits.logsumexp(1)


def spin(detector, traces):
    while True:
        pass


def fork(detector, traces):
    if os.fork() == 0:
        while True:
            time.sleep(0.01)


def escape(detector, traces):
    "In another session, without a variable of this environment."
    code = "import time; time.sleep(1000)" if detector.what == "escapes" else "while True: pass"
    child = subprocess.Popen([sys.executable, "-S", "-c", code], env={}, start_new_session=True)
    with open(detector.path, "w") as stream:
        stream.write(str(child.pid))
    if detector.what != "escapes":
        time.sleep(1000)


def spin_in_many(detector, traces):
    while True:
        subprocess.run([sys.executable, "-S", "-c", "for i in range(10**6): pass"], env={}, start_new_session=True)


def leave(detector, traces):
    pid = os.fork()
    if pid == 0:
        os.setsid()
        pid = os.fork()
        if pid == 0:
            time.sleep(1000)
        with open(detector.path, "w") as stream:
            stream.write(str(pid))
        os._exit(0)
    os.waitpid(pid, 0)


class Mute(Exception):
    def __str__(self):
        raise ValueError


def raise_mute(detector, traces):
    raise Mute


def raise_odd_text(detector, traces):
    raise ValueError("no \\x1b[31m \\ud800")


def read(detector, traces):
    with open(detector.path, "rb") as stream:
        stream.read()


DEEDS = {
    "hangs": lambda d, t: time.sleep(1000),
    "spins": spin,
    "forks": fork,
    "leaves its session": leave,
    "escapes": escape,
    "spins elsewhere": escape,
    "spins in many": spin_in_many,
    "ends the one above": lambda d, t: (os.kill(os.getppid(), signal.SIGKILL), time.sleep(1000)),
    "signals its group": lambda d, t: os.killpg(0, signal.SIGTERM),
    "matches": lambda d, t: re.match(r"(a+)+$", "a" * 60 + "b"),
    "answers twice": lambda d, t: os.fork(),
    "has no text": raise_mute,
    "has odd text": raise_odd_text,
    "ends": lambda d, t: os._exit(5),
    "is killed": lambda d, t: os.kill(os.getpid(), signal.SIGSEGV),
    "closes": lambda d, t: os.closerange(0, 64),
    "leaves": lambda d, t: sys.exit(4),
    "interrupts": lambda d, t: (_ for _ in ()).throw(KeyboardInterrupt()),
    "raises": lambda d, t: (_ for _ in ()).throw(ValueError("it has\\nno idea")),
    "prints": lambda d, t: (print('{"scores": [[0]]}', flush=True), os.write(1, b"noise\\n")),
    "needs memory": lambda d, t: torch.ones(2**28).sum(),
    "labels in score": lambda d, t: t.labels,
    "reads": read,
}


@register("with-extras")
class WithExtras(Detector):
    info = DetectorInfo(title="extras", needs=())

    def fit(self, clean, perturbed=None):
        return self

    @property
    def views(self):
        noisy = View("noisy", lambda images, draws: (images + torch.rand(images.shape, generator=draws)) / 2)
        return noisy, View("pushed", ascent=Ascent(lambda z, start: (z - start)[:, 0] - z.logsumexp(1), 0.2, 0.1, 3))

    @property
    def gradients(self):
        return (InputGradient("norm", lambda logits: logits.square().sum(1)),)

    def score(self, traces):
        views = traces.view("noisy").logits.amax(1) + traces.view("pushed").logits[:, 0]
        return traces.gradient("norm").flatten(1).norm(dim=1) + views


@perturbation("steps")
class Steps(Perturbation):
    info = PerturbationInfo(title="steps", kind="attack", family="steps", norm="linf", stochastic=True)

    def __init__(self, eps: float, steps: int = 3, what: str = ""):
        self.eps, self.steps, self.what = eps, steps, what

    def perturb(self, model, images, labels, draws):
        if self.what == "nothing":
            return None
        found = images + self.eps * (2 * draws.uniform(images) - 1) + 1e-3 * self.eps * torch.rand(())
        rows = torch.arange(len(images))
        for _ in range(self.steps):
            found = found.detach().requires_grad_()
            loss = torch.nn.functional.cross_entropy(model.of(rows)(found), labels, reduction="sum")
            found = (found + self.eps * torch.autograd.grad(loss, found)[0].sign()).clamp(0, 1)
            found = images + (found - images).clamp(-self.eps, self.eps)
        if self.what == "raises":
            raise ValueError("it gives up")
        model.credits = ["steps"] * len(images)
        return found.detach()


@DATASETS.register("two-shades")
def two_shades(root, count: int = 20):
    def load():
        labels = torch.arange(count) % 2
        images = (labels * 200 + 10).to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8).clone()
        split = ImageSplit(images, labels)
        return Dataset("two-shades", ("dark", "light"), (1, 8, 8), split, split, (0.4,), (0.3,))

    return DataSource("two-shades", (), load, {"count": count, "root": str(root)})


@MODELS.register("own-model")
def own_model(shape: tuple[int, int, int], classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))
"""


@pytest.fixture(scope="module")
def traced_model() -> TracedModel:
    torch.manual_seed(0)
    model = mlp((1, 8, 8), 10, width=16).eval()
    taps = discover(model, torch.rand(2, 1, 8, 8), (), model)
    return TracedModel(model, taps, (), model)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "parts.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture(scope="module")
def opened(plugin: Path) -> Iterator[Path]:
    """The plugin in a process of its own, for all tests of this file: a start costs seconds."""
    registries = (DETECTORS, PERTURBATIONS, DATASETS, MODELS)
    before = [dict(registry._entries) for registry in registries]
    open_plugin_file(plugin)
    yield plugin
    POOL.close()
    for registry, entries in zip(registries, before, strict=True):
        registry._entries.clear()
        registry._entries.update(entries)


@pytest.fixture(scope="module")
def here(plugin: Path, opened: Path) -> dict[str, Any]:
    """The same parts in this process, by name."""
    registries = (DETECTORS, PERTURBATIONS, DATASETS, MODELS)
    stand_ins: list[dict[str, Entry]] = [dict(registry._entries) for registry in registries]
    origin = load_plugin_file(plugin)
    found = {entry.name: entry.load() for registry in registries for entry in registry.of(origin)}
    for registry, entries in zip(registries, stand_ins, strict=True):
        registry._entries.update(entries)
    return found


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def same(one: Traces, other: Traces) -> None:
    """Everything that a detector may read of traces is equal."""
    assert torch.equal(one.logits, other.logits) and one.logits.dtype == other.logits.dtype
    assert (one.taps, tuple(one.needs)) == (other.taps, tuple(other.needs))
    assert {code: list(taps) for code, taps in one.codes.items()} == {
        code: list(taps) for code, taps in other.codes.items()
    }
    for code, taps in one.codes.items():
        for tap, rows in taps.items():
            assert torch.equal(rows[:], other.codes[code][tap][:])
            assert rows[:].dtype == other.codes[code][tap][:].dtype
    assert list(one.gradient_rows) == list(other.gradient_rows)
    for name, rows in one.gradient_rows.items():
        assert torch.equal(rows[:], other.gradient_rows[name][:])
    assert list(one.view_traces) == list(other.view_traces)
    for name, view in one.view_traces.items():
        same(view, other.view_traces[name])


def test_traces_go_round_whole(traced_model: TracedModel) -> None:
    squeezing, odin = DETECTORS.get("feature-squeezing")(), DETECTORS.get("odin")()
    for detector in (squeezing, odin, DETECTORS.get("bitvector")(), DETECTORS.get("mahalanobis")()):
        traces = traced_model.traces(detector, images(7))
        same(traces, unpack_traces(*pack_traces(traces)))
        # A part of them: what was left out does not travel.
        part = traces[2:5].alone()
        same(part, unpack_traces(*pack_traces(part)))
    assert squeezing.views and odin.gradients


def test_needs_views_and_gradients_together() -> None:
    taps = (TapInfo("a.b/c", "relu", (3,)), TapInfo("logits", "linear", (2,)))
    needs = (Need("bits", taps="all"), Need("full", taps=("logits",), units=2))
    codes = {
        needs[0].code: {"a.b/c": torch.tensor([[1], [2]], dtype=torch.uint8)},
        needs[1].code: {"logits": torch.rand(2, 2, dtype=torch.float16)},
    }
    inner = Traces(torch.rand(2, 2), taps, codes, needs)
    outer = replace(inner, view_traces={"x": inner, "y/z": replace(inner, logits_rows=torch.rand(2, 2))})
    outer = replace(outer, gradient_rows={"g": torch.rand(2, 1, 8, 8)})
    tensors, described = pack_traces(outer)
    same(outer, unpack_traces(tensors, described))


def fit_images(traced_model: TracedModel, detector: Any, count: int = 40) -> Traces:
    draws = torch.Generator().manual_seed(7)
    traces = fit_traces(traced_model.traces(detector, images(count)), torch.arange(count) % 10, draws)
    return replace(traces, source_rows=torch.arange(count) + 1000)


def fitted(traced_model: TracedModel, **params: Any) -> Any:
    detector = DETECTORS.get("answers-as-told")(**params)
    return detector.fit(fit_images(traced_model, detector))


def test_a_part_there_is_described_here(opened: Path, here: dict[str, Any]) -> None:
    part = DETECTORS.get("answers-as-told")
    assert part.info == here["answers-as-told"].info and part.__doc__ == here["answers-as-told"].__doc__
    assert DETECTORS.entry("answers-as-told").origin.path == str(opened.resolve())
    given = {"what": "energy", "size": "1/2", "nothing": 1}
    assert bind(part, given) == bind(here["answers-as-told"], given)
    made, own = PERTURBATIONS.get("steps")(eps=0.25), here["steps"](eps=0.25)
    for name in ("info", "eps", "norm", "images", "family", "effort", "learnable"):
        assert getattr(made, name) == getattr(own, name)
    assert made.covers([3, 4]) == [True, True] and made.inapplicable((1, 8, 8), 1) == own.inapplicable((1, 8, 8), 1)
    with pytest.raises(AftershockError, match="there is no parameter 'wrong'"):
        DETECTORS.get("answers-as-told")(wrong=1)


def test_a_model_is_imported_here_and_nothing_else_of_its_file(opened: Path) -> None:
    network = MODELS.get("own-model")((1, 8, 8), 10)
    assert isinstance(network, torch.nn.Module) and network(images(2)).shape == (2, 10)
    assert type(DETECTORS.get("answers-as-told")).__name__ == "PluginPart"


def test_fit_scores_and_state_are_those_of_the_part_itself(
    opened: Path, here: dict[str, Any], traced_model: TracedModel
) -> None:
    there, own = (factory(size=2.0) for factory in (DETECTORS.get("answers-as-told"), here["answers-as-told"]))
    traces = traced_model.traces(own, images(9, seed=1))
    for detector in (there, own):
        clean = fit_images(traced_model, detector)
        perturbed = replace(clean[:4].alone(), label_rows=None, source_rows=torch.tensor([1003, 1000, 1000, 1039]))
        assert detector.fit(clean, perturbed) is detector
    assert torch.equal(there.score(traces), own.score(traces))
    learned, expected = there.state(), own.state()
    for name in ("mean", "drawn"):
        assert torch.equal(learned[name], expected[name])
    # Which rows are of one image is told, which image of the data set it is not.
    assert learned["sources"].tolist() == list(range(40)) and learned["others"].tolist() == [3, 0, 0, 39]
    again = DETECTORS.get("answers-as-told")(size=2.0)
    again.load_state(learned)
    assert torch.equal(again.score(traces), own.score(traces))
    # Another process knows nothing of it, and is told.
    POOL.close()
    assert torch.equal(again.score(traces), own.score(traces))


def test_the_number_of_threads_goes_there_and_is_no_change_of_the_parts(
    opened: Path, traced_model: TracedModel
) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (3, 2):
            torch.set_num_threads(threads)
            detector = fitted(traced_model)
            assert detector.changed == []
            detector.score(fit_images(traced_model, detector, 4))
            assert detector.changed == []
    finally:
        torch.set_num_threads(before)


def test_labels_are_known_to_fit_alone(opened: Path, traced_model: TracedModel) -> None:
    detector = fitted(traced_model, what="labels in score")
    assert detector.state()["labels"].tolist() == [i % 10 for i in range(40)]
    traces = fit_images(traced_model, detector)
    with pytest.raises(UsageError, match="known only to fit"):
        detector.score(traces)


def test_a_surrogate_has_the_gradients_of_the_part_itself(
    opened: Path, here: dict[str, Any], traced_model: TracedModel
) -> None:
    there = fitted(traced_model)
    own = here["answers-as-told"]()
    own.load_state(there.state())
    weights = torch.arange(6.0)
    found = []
    for detector in (there, own):
        x = images(6, seed=3).requires_grad_()
        live = traced_model.live(detector.needs, x)
        values = detector.surrogate(live)
        # Twice through one graph, and together with another loss, as attacks do.
        first = torch.autograd.grad((values * weights).sum(), x, retain_graph=True)[0]
        second = torch.autograd.grad(values.square().sum() + live.logits.sum(), x)[0]
        found.append((values.detach(), first, second))
        with torch.no_grad():
            assert not detector.surrogate(traced_model.live(detector.needs, x.detach())).requires_grad
    for one, other in zip(*found, strict=True):
        assert one.abs().sum() > 0 and torch.allclose(one, other, rtol=1e-6, atol=1e-8)


def test_views_and_input_gradients_go_there(opened: Path, here: dict[str, Any], traced_model: TracedModel) -> None:
    there, own = DETECTORS.get("with-extras")(), here["with-extras"]()
    one, other = (traced_model.traces(detector, images(5), seed=4) for detector in (there, own))
    same(one, other)
    assert not torch.equal(one.view("noisy").logits, traced_model.traces(own, images(5), seed=5).view("noisy").logits)
    assert torch.equal(there.score(one), own.score(other))


@pytest.mark.parametrize("limits", [None, Limits(forwards=2)])
def test_an_attack_there_makes_its_passes_here(
    opened: Path, here: dict[str, Any], traced_model: TracedModel, limits: Limits | None
) -> None:
    x = images(12)
    labels = traced_model.model(x).argmax(1)
    one, other = (
        perturb_batch(make(eps=0.2), traced_model.model, x, labels, range(12), seed=5, limits=limits)
        for make in (PERTURBATIONS.get("steps"), here["steps"])
    )
    assert torch.allclose(one.images, other.images, atol=1e-6) and one.flags == other.flags
    assert ("limit" in one.flags) == (limits is not None)
    assert (one.forwards, one.backwards, one.credits) == (other.forwards, other.backwards, other.credits)
    assert one.forwards == (3 if limits is None else 2) and one.success.any() == (limits is None)


def test_an_attack_that_fails_there(opened: Path, traced_model: TracedModel) -> None:
    x = images(4)
    labels = traced_model.model(x).argmax(1)
    make = PERTURBATIONS.get("steps")
    with pytest.raises(PartError, match="ValueError: it gives up"):
        perturb_batch(make(eps=0.2, what="raises"), traced_model.model, x, labels, range(4), seed=5)
    nothing = perturb_batch(make(eps=0.2, what="nothing"), traced_model.model, x, labels, range(4), seed=5)
    assert nothing.flags == ("shape",) and torch.equal(nothing.images, x)


def test_a_data_set_there(opened: Path, here: dict[str, Any], tmp_path: Path) -> None:
    one, other = (make(tmp_path, count=6) for make in (DATASETS.get("two-shades"), here["two-shades"]))
    assert one.fingerprint == other.fingerprint == {"count": 6, "root": str(tmp_path)}
    found, own = one.load(), other.load()
    assert (found.classes, found.shape, found.mean, found.std) == (own.classes, own.shape, own.mean, own.std)
    for rows in (slice(1, 4), [5, 0, 0]):
        assert torch.equal(found.test.images(rows), own.test.images(rows))
        assert torch.equal(found.train.labels(rows), own.train.labels(rows))
    # It is loaded again where its process has ended.
    POOL.close()
    assert torch.equal(found.test.images([1]), own.test.images([1]))


ENDS = {
    "ends": r"ended its process \(status 5\)",
    "is killed": r"ended its process \(SIGSEGV\)",
    "closes": "does not answer|ended its process",
    "hangs": "it hangs",
    "spins": r"it took more than 1 s of computing \(score_seconds = 0 .*\): .* under \[limits\]",
    "spins elsewhere": "it took more than 1 s of computing",
    "spins in many": "it took more than 1 s of computing",
    "ends the one above": "ended its process .SIGKILL.",
    "signals its group": "ended its process .SIGTERM.",
}


@pytest.mark.parametrize("what", ENDS)
def test_a_part_that_ends_or_blocks_its_process_costs_one_question(
    opened: Path, traced_model: TracedModel, what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    detector, other = fitted(traced_model, what=what, path=str(tmp_path / "pid")), fitted(traced_model)
    traces = traced_model.traces(other, images(3))
    expected = other.score(traces)
    worker = POOL.worker(DETECTORS.get("answers-as-told").source, "detectors")
    monkeypatch.setattr(worker, "allowance", replace(worker.allowance, idle=1.0))
    monkeypatch.setattr("aftershock.harness.run.workers.standins.detectors.SETTLING", 1.0)
    detector.score_seconds = 0.0
    began = time.monotonic()
    with pytest.raises(WorkerEndedError, match=ENDS[what]):
        detector.score(traces)
    assert time.monotonic() - began < 60
    # The next question has a new process, which is told what the detector had learned.
    monkeypatch.undo()
    assert torch.equal(other.score(traces), expected)


RAISES = {
    "raises": (PartError, "^ValueError: it has no idea$"),
    "leaves": (AftershockError, r"tried to end the program \(sys.exit\(4\)\)"),
    "interrupts": (PartError, "^KeyboardInterrupt$"),
    "has no text": (PartError, "^Mute$"),
    "has odd text": (PartError, "^ValueError: no \ufffd\\[31m \ufffd$"),
    "numpy": (AftershockError, "gave ndarray instead of a tensor"),
}


@pytest.mark.parametrize("what", RAISES)
def test_what_a_part_raises_comes_back(opened: Path, traced_model: TracedModel, what: str) -> None:
    detector = fitted(traced_model, what=what)
    kind, text = RAISES[what]
    traces = traced_model.traces(detector, images(3))
    with pytest.raises(kind) as found:
        detector.score(traces)
    assert re.search(text, str(found.value))
    # Where it was raised is told to whoever asks for it (--debug).
    assert ("parts.py" in found.value.__notes__[0]) == (what != "numpy")


def test_what_ends_its_process_each_time_is_asked_twice(opened: Path, traced_model: TracedModel) -> None:
    detector, other = fitted(traced_model, what="ends"), fitted(traced_model)
    traces = traced_model.traces(other, images(3))
    worker = POOL.worker(DETECTORS.get("answers-as-told").source, "detectors")
    POOL.close()
    numbers = []
    for _ in range(4):
        with pytest.raises(WorkerEndedError, match="status 5"):
            detector.score(traces)
        numbers.append(POOL.worker(worker.source, "detectors").generation)
    assert numbers[0] < numbers[1] == numbers[2] == numbers[3]
    assert len(other.score(traces)) == 3
    # Another run asks again.
    POOL.close()
    with pytest.raises(WorkerEndedError, match="status 5"):
        detector.score(traces)
    assert POOL.worker(worker.source, "detectors").generation > numbers[3]


def has_ended(process: str | int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def wait_until(holds: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("what", ["leaves its session", "escapes"])
def test_what_left_its_session_ends_with_the_process(
    opened: Path, traced_model: TracedModel, tmp_path: Path, what: str
) -> None:
    detector = fitted(traced_model, what=what, path=str(tmp_path / "pid"))
    detector.score(traced_model.traces(detector, images(3)))
    left = (tmp_path / "pid").read_text()
    assert not has_ended(left)
    POOL.close()
    wait_until(lambda: has_ended(left), 10)


def test_what_a_part_does_there_changes_no_answer(opened: Path, traced_model: TracedModel) -> None:
    traces = traced_model.traces(fitted(traced_model), images(4))
    expected = -traces.logits.double().logsumexp(1)
    for what in ("energy", "prints", "forks", "answers twice", "energy"):
        assert torch.allclose(fitted(traced_model, what=what).score(traces), expected)
    with torch.no_grad():
        assert fitted(traced_model, what="gradients").score(traces).tolist() == [0.0] * 4
    assert fitted(traced_model, what="gradients").score(traces).tolist() == [1.0] * 4
    # What is drawn depends on the generator of this process, as if it were drawn here.
    drawn = []
    for seed in (1, 1, 2):
        with forked_rng(seed):
            drawn.append(fitted(traced_model, what="draws").score(traces))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert fitted(traced_model, what="complex").score(traces).is_complex()


def test_memory_has_a_limit(plugin: Path, traced_model: TracedModel) -> None:
    for memory, words in (
        (2**29, r"memory = 0\.5 under \[limits\]"),
        (2**20, r"held more than|memory = 0\.0009"),
    ):
        worker = Worker(Source(path=plugin), Allowance(memory=memory))
        try:
            about = {"kind": "detectors", "name": "answers-as-told", "params": {"what": "needs memory"}}
            with pytest.raises(AftershockError, match=words):
                number = worker.ask("make", about).values["id"]
                traces = traced_model.traces(DETECTORS.get("energy")(), images(2))
                tensors, described = pack_traces(traces)
                values = {"id": number, "traces": described, "seed": 0}
                worker.ask("score", values, tensors)
        finally:
            worker.close()


def test_files_that_are_not_a_plugins_own_are_recorded(opened: Path, traced_model: TracedModel, tmp_path: Path) -> None:
    secret = tmp_path / "test-images.npz"
    secret.write_bytes(b"0")
    honest, reader = fitted(traced_model), fitted(traced_model, what="reads", path=str(secret))
    traces = traced_model.traces(honest, images(2))
    for detector in (honest, reader):
        detector.score(traces)
    assert honest.files == [] and reader.files == [str(secret.resolve())]


WATCHED = """
import ctypes, multiprocessing, os, platform, socket, subprocess, sys, threading
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

SECRET = Path(__file__).parents[1] / "secret.txt"


class Rows(Dataset):
    def __init__(self, reads=False):
        self.reads = reads

    def __len__(self):
        return 8

    def __getitem__(self, row):
        return torch.full((300, 300), float(SECRET.read_text() if self.reads else row))


def exec_in_fork():
    if os.fork() == 0:
        os.execv("/bin/true", ["true"])
    os.wait()


def connect():
    server, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    server.bind("\\0of-a-test")
    server.listen()
    client.connect("\\0of-a-test")


def in_a_thread():
    thread = threading.Thread(target=os.system, args=("cat /dev/null",))
    thread.start()
    thread.join()


def pool():
    with multiprocessing.get_context("fork").Pool(1) as workers:
        workers.map(abs, [1])


DEEDS = {
    "loads data": lambda: list(DataLoader(Rows(), num_workers=2)),
    "asks for the machine": lambda: (platform.platform(), platform.processor(), os.cpu_count()),
    "computes": lambda: np.linalg.svd(torch.rand(50, 50) @ torch.rand(50, 50)),
    "runs": lambda: subprocess.run(["/bin/cat", "/dev/null"]),
    "runs a shell": lambda: os.system("true"),
    "runs in a thread": in_a_thread,
    "spawns": lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
    "forks": exec_in_fork,
    "has a pool": pool,
    "connects": connect,
    "calls the system": lambda: ctypes.CDLL(None).getpid(),
    "loads data from a file": lambda: list(DataLoader(Rows(True), num_workers=1)),
    "shares memory": lambda: open("/dev/shm/of-a-test", "ab").close() or os.unlink("/dev/shm/of-a-test"),
}
"""
WATCHING = """
import importlib, json, sys
import torch, torch.utils.data
from aftershock.harness.run.workers.files import FileWatch

watch = FileWatch(sys.argv[1], "")
watch.begin()
sys.path.insert(0, sys.argv[2])
deeds = importlib.import_module("parts").DEEDS
found = {"begin": [watch.opened(), watch.started()]}
for name, do in deeds.items():
    do()
    found[name] = [watch.opened(), watch.started()]
print(json.dumps(found))
"""


def test_what_opens_files_unseen_is_recorded_and_what_libraries_do_is_not(tmp_path: Path) -> None:
    place = tmp_path / "plugin" / "parts.py"
    place.parent.mkdir()
    place.write_text(WATCHED)
    secret = tmp_path.resolve() / "secret.txt"
    secret.write_text("1")
    done = subprocess.run(
        [sys.executable, "-c", WATCHING, str(place), str(place.parent)],
        capture_output=True, text=True, check=True, cwd=place.parent, env={**os.environ, "TMPDIR": "."},
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    for name in ("begin", "loads data", "asks for the machine", "computes"):
        assert found[name] == [[], []], name
    starts = {"runs": "/bin/cat", "runs a shell": "true", "runs in a thread": "cat /dev/null", "spawns": "/bin/true",
              "forks": "fork", "has a pool": "fork"}  # fmt: skip
    for name, program in starts.items():
        assert program in found[name][1], name
    assert len(found["forks"][1]) == 2
    assert found["connects"][0] and found["calls the system"][0] == ["library None"]
    assert found["loads data from a file"] == [[str(secret)], []]
    assert found["shares memory"][0] == ["/dev/shm/of-a-test"]


def test_folders_that_imports_look_into_are_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    watch = FileWatch(str(tmp_path / "plugins" / "parts.py"), "")
    for place in (tmp_path, tmp_path / "data"):
        watch._look("os.listdir", (str(place),))
    assert watch.opened() == [str((tmp_path / "data").resolve())]


def children(process: int) -> list[int]:
    """Processes that have this one as their parent."""
    stats = {int(p.parent.name): read_stat(p) for p in Path("/proc").glob("[0-9]*/stat")}
    return [number for number, fields in stats.items() if fields and int(fields[1]) == process]


def read_stat(path: Path) -> list[str]:
    try:
        return path.read_text().rpartition(")")[2].split()
    except OSError:
        return []


def test_a_process_knows_neither_cache_nor_data(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERSHOCK_DATA", "/data")
    worker = Worker(Source(path=plugin))
    worker.greeting()
    running, folder = worker._process, worker._folder
    assert running is not None and folder is not None
    (inner,) = children(running.pid)
    for process in (running.pid, inner):
        environment = Path(f"/proc/{process}/environ").read_bytes()
        assert b"AFTERSHOCK_DATA" not in environment and b"PWD=" not in environment
        assert Path(f"/proc/{process}/cwd").resolve() == folder.place.resolve()
    worker.close()
    assert running.poll() is not None and has_ended(inner) and not folder.path.exists()


OWNER = """
import sys, time
from pathlib import Path
from aftershock.harness.run.workers.process import Source, Worker
from aftershock.harness.run.workers.packing import pack_traces
from aftershock.harness.tracing.traces import Traces
import torch

worker = Worker(Source(path=Path(sys.argv[1])))
worker.start()
if sys.argv[2] != "started":
    worker.greeting()
    made = worker.ask("make", {"kind": "detectors", "name": "answers-as-told", "params": {"what": sys.argv[2]}})
print(worker._process.pid, worker._folder.path, flush=True)
if sys.argv[2] != "started":
    tensors, described = pack_traces(Traces(torch.rand(2, 10), (), {}, ()))
    worker.ask("score", {"id": made.values["id"], "traces": described, "seed": 0}, tensors, cpu=1e6)
time.sleep(99)
"""


@pytest.mark.parametrize(("what", "later"), [("started", 0.0), ("started", 0.3), ("matches", 1.5), ("spins", 1.5)])
def test_of_an_owner_that_is_killed_nothing_is_left(plugin: Path, what: str, later: float) -> None:
    # Whether the process has just begun, computes in Python, or holds the lock of its interpreter.
    command = [sys.executable, "-c", OWNER, str(plugin), what]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        number, folder = owner.stdout.readline().split()
        time.sleep(later)
        inner = children(int(number))
        owner.kill()
    wait_until(lambda: all(has_ended(process) for process in (int(number), *inner)))
    assert not Path(folder).exists()


def test_folders_of_owners_that_are_gone_are_removed(
    plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = (
        "import os, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from aftershock.harness.run.workers.folder import WorkFolder\n"
        "folder = WorkFolder(); (folder.place / 'kept').write_text('x'); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    (abandoned,) = tmp_path.glob("worker-*")
    # Another one is in use, and what has no lock is somebody else's.
    used = WorkFolder()
    (tmp_path / "worker-of-mine" / "lock").mkdir(parents=True)
    (tmp_path / "worker-list").write_text("x")
    (tmp_path / "worker-link").symlink_to(abandoned)
    pool = WorkerPool(2)
    pool.worker(Source(path=plugin), "detectors")
    assert not abandoned.exists()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {used.path.name, "worker-of-mine", "worker-list", "worker-link"}
    used.remove()
    assert not used.path.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [("import os; os._exit(3)", "status 3"), ("raise SystemExit", "could not be loaded"), ("def (", "SyntaxError")],
)
def test_a_plugin_that_cannot_be_imported_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(UsageError, match=words):
        open_plugin_file(tmp_path / "bad.py")


@pytest.mark.parametrize(("name", "params"), [("feature-squeezing", {}), ("bitvector", {"method": "hamming"})])
def test_a_witness_gives_the_scores_of_a_built_in_detector(
    opened: Path, traced_model: TracedModel, name: str, params: dict[str, str]
) -> None:
    detector = DETECTORS.get(name)(**params)
    detector.fit(fit_images(traced_model, detector, 120))
    traces = traced_model.traces(detector, images(9, seed=1))
    with torch.no_grad():
        expected = detector.score(traces).double()
    tensors, state = split_state(detector.state())
    there = witness_scores(name, params, tensors, state, traces, repeats=2)
    assert there.shape == (2, 9)
    assert torch.allclose(there, expected.expand(2, -1), rtol=1e-6, atol=1e-9)


def test_a_witness_has_one_detector_for_each_question(opened: Path, traced_model: TracedModel) -> None:
    traces = traced_model.traces(DETECTORS.get("answers-as-told")(), images(4))

    def ask(what: str, repeats: int) -> Tensor:
        return witness_scores("answers-as-told", {"what": what}, {}, {}, traces, repeats)

    for _ in range(2):
        assert ask("calls", 3)[:, 0].tolist() == [1, 2, 3]
        # Nothing is left of an earlier question, either.
        assert ask("calls of all", 3)[:, 0].tolist() == [1, 2, 3]
    # The rows come in an order that tells nothing.
    places = ask("places", 1)[0].tolist()
    assert places != [0, 1, 2, 3] and sorted(places) == [0, 1, 2, 3]
    # What is drawn is drawn anew for each repeat, and the same whenever it is asked for.
    drawn = [ask("draws", 2) for _ in range(2)]
    assert torch.equal(*drawn) and not torch.equal(*drawn[0])


def test_other_processes_stand_still_while_a_witness_runs(plugin: Path) -> None:
    pool, source = WorkerPool(4), Source(path=plugin)

    def states(worker: Worker) -> set[str]:
        assert worker._process is not None
        return {read_stat(Path(f"/proc/{child}/stat"))[0] for child in children(worker._process.pid)}

    try:
        other = pool.worker(source, "detectors")
        other.greeting()
        first = pool.worker(source, "witness")
        for _ in range(2):
            with pool.fresh(source) as witness:
                assert witness is first and states(other) == {"T"}
                witness.greeting()
                assert states(witness).isdisjoint("T")
                ended = witness._process and children(witness._process.pid)
            assert states(other).isdisjoint("T") and all(has_ended(process) for process in ended or ())
        assert len(other.ask("bind", {"kind": "detectors", "name": "with-extras", "params": {}, "skip": []}).values)
    finally:
        pool.close()


def test_live_traces_go_round_whole(traced_model: TracedModel) -> None:
    detector = DETECTORS.get("bitvector")()
    x = images(3).requires_grad_()
    live = replace(traced_model.live(detector.needs, x), temperature=0.5, straight_through=True)
    found = unpack_live(*pack_live(live))
    assert (found.taps, found.needs, found.temperature, found.straight_through) == (
        live.taps, live.needs, 0.5, True,
    )  # fmt: skip
    for tap in live.tap_names():
        assert torch.equal(found.preactivation(tap), live.preactivation(tap))


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = socket.socketpair()
    channels = Channel(one, seconds=5, limit=10_000), Channel(other, seconds=5, limit=10_000)
    yield channels
    for channel in channels:
        channel.close()


def test_every_kind_of_tensor_goes_through(ends: tuple[Channel, Channel]) -> None:
    sent = {
        "empty": torch.empty(0, 3), "scalar": torch.tensor(2.5), "bool": torch.tensor([True, False]),
        "half": torch.rand(2, 3).bfloat16(), "complex": torch.tensor([1 + 2j]),
        "strided": torch.arange(12).view(3, 4).T, "one": torch.arange(4.0)[::2][:1],
        "bytes": torch.arange(5, dtype=torch.uint8),
    }  # fmt: skip
    ends[0].send(Message({"x": [1, None, "é"]}, sent))
    found = ends[1].receive()
    assert found.values == {"x": [1, None, "é"]}
    for name, tensor in sent.items():
        assert torch.equal(found.tensor(name), tensor) and found.tensor(name).dtype == tensor.dtype


def test_texts_that_have_no_encoding_get_one(ends: tuple[Channel, Channel]) -> None:
    ends[0].send(Message({"x": ["a\ud800", {"\udfff": "\N{GRINNING FACE}"}]}))
    assert ends[1].receive().values == {"x": ["a?", {"?": "\N{GRINNING FACE}"}]}


@pytest.mark.parametrize(
    ("data", "model", "count"), [("digits", "mlp", 0), ("elsewhere", "mlp", 2), ("digits", "x", 2)]
)
def test_the_process_of_an_analysis_opens_other_plugins_only_for_what_is_theirs(
    data: str, model: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(analyses, "open_plugin_file", opened.append)
    suite: Any = SimpleNamespace(
        data=SimpleNamespace(name=data), models=[SimpleNamespace(name=model)], plugins=("a.py", "b.py")
    )
    analyses._open_others(suite)
    assert len(opened) == count


def test_what_cannot_be_sent_leaves_nothing_behind(ends: tuple[Channel, Channel]) -> None:
    for tensor in (torch.empty(2, device="meta"), torch.eye(2).to_sparse(), torch.zeros(2, dtype=torch.complex32)):
        with pytest.raises(AftershockError, match="cannot be sent"):
            ends[0].send(Message({}, {"good": torch.zeros(3), "bad": tensor}))
    ends[0].send(Message({"x": 1}))
    assert ends[1].receive().values == {"x": 1}


@pytest.mark.parametrize(
    "written",
    [
        b"\xff" * 8, b"\0" * 7 + b"\x04nope", b"\0" * 7 + b"\x02[]", b"\0" * 7 + b"\x0e{\"tensors\":[1]}",
        b"\0" * 7 + b"\x24" + b'{"tensors":[["a","float32",[99999]]]}'[:36],
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused(ends: tuple[Channel, Channel], written: bytes) -> None:
    ends[0]._socket.sendall(written)
    ends[0].close()
    with pytest.raises(ChannelError):
        ends[1].receive()


def test_more_than_a_message_may_hold_is_refused(ends: tuple[Channel, Channel]) -> None:
    ends[0]._socket.settimeout(0.5)
    with pytest.raises(ChannelError, match="takes nothing"):
        # Nobody reads it.
        ends[0].send(Message({}, {"a": torch.zeros(10_000_000)}))
    with pytest.raises(ChannelError, match="more than it may hold"):
        ends[1].receive()
