"""What a limit counts, and what it may not depend on."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Self

import aftershock
import pytest
from aftershock.detectors import Detector, DetectorInfo, register
from aftershock.harness.core.clock import Stopwatch
from aftershock.harness.core.errors import UsageError
from aftershock.harness.suite.resolve import load_suite
from aftershock.harness.tracing.traces import Traces
from support.suites import Tiny
from torch import Tensor


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


class Base(Detector):
    info = DetectorInfo(title="x", needs=())
    calls = 0

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        return self

    def score(self, traces: Traces) -> Tensor:
        type(self).calls += 1
        self.work(len(traces))
        return -traces.logits.double().logsumexp(1)

    def work(self, images: int) -> None:
        """Whatever takes time."""


@register("slow-at-first")
class SlowAtFirst(Base):
    def work(self, images: int) -> None:
        if self.calls == 1:
            burn(0.5)


@register("waits")
class Waits(Base):
    def work(self, images: int) -> None:
        if images == 1:
            time.sleep(0.3)


@register("always-slow")
class AlwaysSlow(Base):
    def work(self, images: int) -> None:
        burn(0.2 * images)


def test_seconds_are_of_the_cpu() -> None:
    clock = Stopwatch()
    time.sleep(0.3)
    assert clock.seconds < 0.1
    clock = Stopwatch()
    burn(0.2)
    assert clock.seconds >= 0.2


def test_threads_count_no_more_than_the_time_that_passes() -> None:
    clock, began = Stopwatch(), time.perf_counter()
    threads = [threading.Thread(target=burn, args=(0.1,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.seconds <= time.perf_counter() - began


def test_what_was_imported_meanwhile_is_noticed() -> None:
    import sys

    clock = Stopwatch()
    sys.modules.pop("this", None)
    assert not clock.imported
    sys.modules["aftershock_test_module"] = sys
    try:
        assert clock.imported
    finally:
        del sys.modules["aftershock_test_module"]


def test_a_score_is_measured_again_before_it_fails(tmp_path: Path, tiny: Tiny) -> None:
    names = ("slow-at-first", "waits", "always-slow", "energy")
    suite = tiny(tmp_path / "s.toml", [{"name": "gaussian", "std": 0.5}], [{"name": name} for name in names])
    suite.write_text(suite.read_text() + "\n[limits]\nscore_seconds = 0.1\n")
    found = aftershock.run(suite, tmp_path / "run", cache=tmp_path / "cache", only="score/*/calibrate")
    (cell,) = found.failed
    assert "/always-slow/" in cell and "score_seconds = 0.1 under [limits]" in found.failed[cell]
    # One row, twice: no more is spent on a detector that is too slow.
    assert AlwaysSlow.calls == 2


def test_a_fit_of_the_package_that_takes_too_long_is_named_and_kept(tmp_path: Path, tiny: Tiny) -> None:
    suite, said = tiny(tmp_path / "s.toml", [{"name": "gaussian", "std": 0.5}], [{"name": "mahalanobis"}]), list[str]()
    suite.write_text(suite.read_text() + "\n[limits]\nfit_seconds = 1e-9\n")
    found = aftershock.run(suite, tmp_path / "run", cache=tmp_path / "cache", only="fit/*", on_message=said.append)
    assert not found.failed and any("mahalanobis" in text and "fit_seconds" in text for text in said)
    # Only what an attack may spend decides what is computed.
    suite.write_text(suite.read_text().replace("1e-9", "60") + "memory = 2\nseconds = 7\nscore_seconds = 3\n")
    assert aftershock.run(suite, tmp_path / "again", cache=tmp_path / "cache", only="fit/*").computed == 0


def test_limits_have_defaults_and_are_checked(tmp_path: Path, tiny: Tiny) -> None:
    suite = tiny(tmp_path / "s.toml")
    limits = load_suite(suite).limits
    assert (limits.fit_seconds, limits.memory, limits.score_seconds) == (3600, 8, 1)
    assert (limits.analysis_seconds, limits.idle_seconds) == (3600, 30)
    text = suite.read_text()
    for wrong in (
        "memory = 0",
        "fit_seconds = -1",
        "fit_seconds = true",
        "memory = 'much'",
        "memory = nan",
        "idle_seconds = 0",
    ):
        suite.write_text(f"{text}\n[limits]\n{wrong}\n")
        with pytest.raises(UsageError, match=wrong.partition(" ")[0]):
            load_suite(suite)
