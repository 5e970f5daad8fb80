"""What a piece of code does to the process is undone at its end, and said."""

from __future__ import annotations

import builtins
import contextlib
import decimal
import gc
import json
import locale
import logging
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aftershock.harness.evaluation.results
import aftershock.harness.statistics.detection
import numpy as np
import pytest
import torch
from aftershock.harness.core.process_state import PROBES, guarded, guarded_part, patches
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class Functions(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), more: Any = None) -> Any:
        return function(*arguments, **(more or {}))


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), more: Any = None) -> Any:
        return function(*arguments, **(more or {}))


class Equal:
    def __eq__(self, other: object) -> bool:
        raise ValueError("ambiguous")

    __hash__ = None  # type: ignore[assignment]


KEPT: list[contextlib.AbstractContextManager[object]] = []


def enter(context: Callable[[], contextlib.AbstractContextManager[object]]) -> Callable[[], object]:
    """Enter a context and leave it entered."""

    def change() -> None:
        KEPT.append(context())
        KEPT[-1].__enter__()

    return change


NUMBERS: dict[str, Callable[[], object]] = {
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "autocast": enter(lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
    "gradient mode": lambda: torch.set_grad_enabled(False),
    "inference mode": enter(lambda: torch.inference_mode()),
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "backend settings": lambda: setattr(torch.backends.cudnn, "deterministic", True),
    "matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "flush denormal": lambda: torch.set_flush_denormal(True),
    "module hooks": lambda: register_module_forward_hook(lambda module, given, made: made * 0),
    "saved tensor hooks": enter(lambda: torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)),
    "function modes": enter(Functions),
    "dispatch modes": enter(Dispatch),
    "decimal context": lambda: setattr(decimal.getcontext(), "prec", 3),
    "locale": lambda: locale.setlocale(locale.LC_ALL, "C.UTF-8" if locale.setlocale(locale.LC_ALL) == "C" else "C"),
}
OTHERS: dict[str, Callable[[], object]] = {
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(True),
    "floating point errors of NumPy": lambda: np.seterr(all="raise"),
    "print options of NumPy": lambda: np.set_printoptions(precision=1),
    "warnings": lambda: warnings.simplefilter("error"),
    "display of warnings": lambda: setattr(warnings, "showwarning", print),
    "file mode mask": lambda: os.umask(0o077 if os.umask(0o022) == 0o022 else 0o022),
    "environment": lambda: os.environ.update(AFTERSHOCK_TEST="1"),
    "signal handlers": lambda: signal.signal(signal.SIGTERM, lambda *_: None),
    "timers": lambda: signal.setitimer(signal.ITIMER_REAL, 1000),
    "blocked signals": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1}),
    "import path": lambda: sys.path.insert(0, "/nowhere"),
    "streams": lambda: setattr(sys, "stdout", None),
    "logging": lambda: logging.disable(logging.CRITICAL),
    "garbage collection": lambda: gc.disable(),
    "recursion limit": lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 50),
    "tracing": lambda: sys.setprofile(lambda *_: None),
    "exception hook of threads": lambda: setattr(threading, "excepthook", print),
    "standard descriptors": lambda: os.close(0),
}
FUNCTIONS = {
    "torch.Tensor.norm": (torch.Tensor, "norm", lambda self: self),
    "torch.Tensor.argmax": (torch.Tensor, "argmax", lambda self: self),
    "torch.cat": (torch, "cat", None),
    "torch.nn.functional.relu": (nn.functional, "relu", abs),
    "torch.nn.modules.linear.Linear.forward": (nn.Linear, "forward", lambda self, x: x),
    "torch.autograd.grad": (torch.autograd, "grad", print),
    "numpy.mean": (np, "mean", Equal()),
    "time.perf_counter": (time, "perf_counter", lambda: 0.0),
    "builtins.sorted": (builtins, "sorted", list),
    "aftershock.harness.statistics.detection.auroc": (aftershock.harness.statistics.detection, "auroc", lambda *_: 1.0),
    "aftershock.harness.statistics.detection.len": (aftershock.harness.statistics.detection, "len", lambda _: 0),
    "aftershock.harness.evaluation.results.DetectorResult.failure": (
        aftershock.harness.evaluation.results.DetectorResult, "failure", lambda self: "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*NUMBERS, *OTHERS])
def test_changed_state_is_put_back_and_named(name: str, request: pytest.FixtureRequest) -> None:
    if name == "tracing" and sys.getprofile() is not None:
        pytest.skip("a profiler is at work")
    change = {**NUMBERS, **OTHERS}[name]
    before = {p.name: (p, p.read()) for p in PROBES}
    if name not in before and name == "saved tensor hooks":
        pytest.skip(f"torch {torch.__version__} does not tell which hooks on saved tensors are in force")
    expected = (torch.ones(2) / 3).sum()
    with guarded() as changes:
        change()
    assert name in (changes.numbers if name in NUMBERS else changes.others)
    assert [n for n, (p, value) in before.items() if p.effect != "none" and p.changed(value)] == []
    # What a part left entered may be deleted at any later time.
    KEPT.clear()
    assert [n for n, (p, value) in before.items() if p.effect != "none" and p.changed(value)] == []
    assert torch.equal((torch.ones(2) / 3).sum(), expected) and torch.ones(1, requires_grad=True).exp().requires_grad


@pytest.mark.parametrize("name", FUNCTIONS)
def test_replaced_functions_are_put_back_and_named(name: str) -> None:
    owner, attribute, replacement = FUNCTIONS[name]
    before = vars(owner).get(attribute)
    with guarded() as changes:
        setattr(owner, attribute, replacement)
    assert vars(owner).get(attribute) is before
    assert changes.numbers == [name]


def test_a_deleted_function_and_a_changed_table_are_put_back() -> None:
    from aftershock.harness.core.registry import DETECTORS
    from aftershock.harness.statistics.detection import ALPHAS

    held, entry = dict(ALPHAS), DETECTORS.entry("msp")
    with guarded() as changes:
        del torch.stack
        ALPHAS["5"] = 0.5
        DETECTORS._entries["msp"] = DETECTORS.entry("energy")
    assert torch.stack([torch.ones(1)]).shape == (1, 1) and held == ALPHAS and DETECTORS.entry("msp") is entry
    assert changes.numbers == ["torch.stack", "a table of this package"]


def test_a_set_that_lists_its_items_in_another_order_is_the_same() -> None:
    from aftershock.harness.core import content_keys

    # As large ones with equal hashes are: what comes later lies elsewhere.
    numbers = [8 * n for n in range(4)]
    held = set(numbers)
    vars(content_keys)["PLANTED"] = held
    patches._places.cache_clear()
    try:
        with guarded() as changes:
            held.clear()
            held.update(reversed(numbers))
        assert changes.all == []
        with guarded() as changes:
            held.add(1)
        assert changes.numbers == ["a table of this package"] and held == set(numbers)
    finally:
        del vars(content_keys)["PLANTED"]
        patches._places.cache_clear()


def test_reading_a_first_date_changes_nothing_that_numbers_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where the process began with another idea of the time zone than the first `tzset` has, as in some containers.
    monkeypatch.setattr(time, "tzname", ("before", "before"))
    with guarded() as changes:
        time.tzset()
    assert not changes.all


def test_the_working_directory_is_put_back(tmp_path: Path) -> None:
    before = Path.cwd()
    with guarded() as changes:
        os.chdir(tmp_path)
    assert Path.cwd() == before and changes.others == ["working directory"]


def test_a_default_device_is_put_back_however_it_was_set() -> None:
    for change in (lambda: torch.set_default_device("meta"), enter(lambda: torch.device("meta"))):
        with guarded() as changes:
            change()
            assert torch.ones(1).device.type == "meta"
        assert torch.ones(1).device.type == "cpu" and changes.numbers == ["function modes"]
    torch.set_default_device("cpu")
    try:
        with guarded() as changes:
            torch.set_default_device(None)
        assert changes.numbers == ["function modes"]
        assert torch.get_default_device().type == "cpu"
    finally:
        torch.set_default_device(None)
    assert torch.overrides._get_current_function_mode_stack() == []


def test_random_states_are_put_back_in_silence() -> None:
    before = torch.rand(1), np.random.rand(), random.random()
    for _ in range(2):
        with guarded() as changes:
            torch.manual_seed(0)
            np.random.seed(0)
            random.seed(0)
        assert not changes.all
    again = torch.rand(1), np.random.rand(), random.random()
    assert all(a != b for a, b in zip(before, again, strict=True))
    torch.manual_seed(0)
    assert torch.rand(1) != again[0]


def test_state_is_put_back_after_an_error_too() -> None:
    with pytest.raises(KeyError), guarded() as changes:
        torch.set_default_dtype(torch.float64)
        raise KeyError
    assert torch.get_default_dtype() is torch.float32 and changes.numbers == ["default dtype"]


def test_code_that_changes_nothing_changes_nothing() -> None:
    with guarded() as changes:
        with torch.no_grad(), torch.autocast("cpu"), np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nn.Linear(2, 2)(torch.ones(1, 2))
        json.dumps({})
    assert changes.all == []


def test_parts_of_the_package_are_guarded_by_their_cell_alone() -> None:
    from aftershock.detectors.logits.baselines import Energy

    class Own(Energy):
        pass

    for part, found in ((Energy(), []), (Own(), ["gradient mode"])):
        with guarded_part(part) as changes:
            torch.set_grad_enabled(False)
        assert changes.numbers == found
        torch.set_grad_enabled(True)


def test_a_guard_costs_little() -> None:
    times = []
    for _ in range(30):
        began = time.perf_counter()
        with guarded():
            pass
        times.append(time.perf_counter() - began)
    # Measured: 0.8 ms; machines of tests are slow and busy.
    assert min(times) < 0.01
