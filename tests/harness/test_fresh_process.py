"""Traces that go to another process and come back whole, and what a detector may do there."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from aftershock.detectors.base import split_state
from aftershock.harness import fresh_process
from aftershock.harness.architectures import mlp
from aftershock.harness.errors import AftershockError
from aftershock.harness.fresh_process import FreshProcess, ProcessEndedError, pack_traces, unpack_traces
from aftershock.harness.recorder import discover
from aftershock.harness.registry import DETECTORS, load_plugin_file
from aftershock.harness.scoring import Instruments, fit_traces
from aftershock.harness.trace import Need, TapInfo, Traces
from torch import Tensor

PLUGIN = """
import os
import time

import torch
from aftershock.detectors import Detector, DetectorInfo, register


@register("answers-as-told")
class AnswersAsTold(Detector):
    info = DetectorInfo(title="does what its parameter says", needs=())

    def __init__(self, what: str = "energy"):
        self.what = what

    def fit(self, clean, perturbed=None):
        return self

    def score(self, traces):
        if self.what == "hangs":
            time.sleep(1000)
        elif self.what == "ends":
            os._exit(5)
        elif self.what == "leaves":
            raise SystemExit(4)
        elif self.what == "raises":
            raise ValueError("it has\\nno idea")
        elif self.what == "prints":
            print('{"scores": [[0]]}', flush=True)
            os.write(1, b"noise\\n")
        elif self.what == "environment":
            return torch.full((len(traces),), float(len(os.environ.get("AFTERSHOCK_TEST_LEFT", ""))))
        elif self.what == "gradients":
            return torch.full((len(traces),), float(torch.is_grad_enabled()))
        elif self.what == "draws":
            return torch.rand(len(traces))
        elif self.what == "calls":
            self._calls = getattr(self, "_calls", 0) + 1
            return torch.full((len(traces),), float(self._calls))
        return -traces.logits.double().logsumexp(1)
"""


@pytest.fixture(scope="module")
def instruments() -> Instruments:
    torch.manual_seed(0)
    model = mlp((1, 8, 8), 10, width=16).eval()
    taps = discover(model, torch.rand(2, 1, 8, 8), (), model)
    return Instruments(model, taps, (), model)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fresh") / "parts.py"
    path.write_text(PLUGIN)
    load_plugin_file(path)
    return path


@pytest.fixture(scope="module")
def process(plugin: Path) -> Iterator[FreshProcess]:
    """One process for all tests of this file: a start costs seconds."""
    with FreshProcess([plugin]) as started:
        yield started


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


def test_traces_go_round_whole(instruments: Instruments) -> None:
    squeezing, odin = DETECTORS.get("feature-squeezing")(), DETECTORS.get("odin")()
    for detector in (squeezing, odin, DETECTORS.get("bitvector")(), DETECTORS.get("mahalanobis")()):
        traces = instruments.traces(detector, images(7))
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
    assert all(tensor.is_contiguous() for tensor in tensors.values())


def answer(process: FreshProcess, what: str, traces: Traces, repeats: int = 1, seconds: float = 60.0) -> Tensor:
    return process.score("answers-as-told", {"what": what}, {}, {}, traces, repeats, seconds)


@pytest.mark.parametrize(("name", "params"), [("feature-squeezing", {}), ("bitvector", {"method": "hamming"})])
def test_scores_there_are_scores_here(
    process: FreshProcess, instruments: Instruments, name: str, params: dict[str, str]
) -> None:
    detector = DETECTORS.get(name)(**params)
    generator = torch.Generator().manual_seed(0)
    fit = fit_traces(instruments.traces(detector, images(120)), torch.arange(120) % 10, generator)
    detector.fit(fit)
    traces = instruments.traces(detector, images(9, seed=1))
    with torch.no_grad():
        here = detector.score(traces).double()
    tensors, state = split_state(detector.state())
    there = process.score(name, params, tensors, state, traces, repeats=2)
    assert there.shape == (2, 9)
    assert torch.allclose(there, here.expand(2, -1), rtol=1e-6, atol=1e-9)


def test_what_a_detector_does_there_costs_nothing_but_its_answer(
    process: FreshProcess, instruments: Instruments, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = instruments.traces(DETECTORS.get("energy")(), images(4))
    expected = -traces.logits.double().logsumexp(1)
    for what in ("energy", "prints"):
        assert torch.allclose(answer(process, what, traces)[0], expected)
    assert answer(process, "gradients", traces).tolist() == [[0.0] * 4]
    # One detector for all repeats of a question, a new one for the next.
    for _ in range(2):
        assert answer(process, "calls", traces, repeats=3)[:, 0].tolist() == [1, 2, 3]
    # What is drawn is drawn anew for each repeat, and the same whenever it is asked for.
    drawn = [answer(process, "draws", traces, repeats=2) for _ in range(2)]
    assert torch.equal(*drawn) and not torch.equal(*drawn[0])
    for what, message in (("raises", "ValueError: it has no idea"), ("leaves", "SystemExit: 4")):
        with pytest.raises(AftershockError, match=message):
            answer(process, what, traces)
    # What a fit leaves in the environment of this process is not known there.
    monkeypatch.setitem(os.environ, "AFTERSHOCK_TEST_LEFT", "x")
    assert answer(process, "environment", traces).tolist() == [[0.0] * 4]


def test_a_process_that_ends_or_hangs_is_ended_and_the_next_question_has_a_new_one(
    process: FreshProcess, instruments: Instruments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fresh_process, "_START", 60.0)
    traces = instruments.traces(DETECTORS.get("energy")(), images(4))
    answer(process, "energy", traces)
    began = time.monotonic()
    with pytest.raises(ProcessEndedError, match="ended"):
        answer(process, "hangs", traces, seconds=0.5)
    assert time.monotonic() - began < 30
    assert answer(process, "calls", traces).tolist() == [[1.0] * 4]
    running, folder = process._process, process._folder
    assert running is not None and folder is not None and running.poll() is None and Path(folder.name).is_dir()
    with pytest.raises(ProcessEndedError, match=r"ended \(status 5\)"):
        answer(process, "ends", traces)
    for _ in range(2):
        process.close()
        assert running.poll() == 5 and not Path(folder.name).exists()
