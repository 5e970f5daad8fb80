"""What all tests share: the real data, the command line as a process, and a suite small enough to run often."""

from __future__ import annotations

import importlib.util
import os
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aftershock.harness.run  # noqa: F401 (opens plugins for tests that look up their parts)
import pytest
import torch
from support.commands import Forks
from support.suites import Tiny, table, write_suite
from support.tables import whole_tables


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--budget", type=float, default=60.0, metavar="SECONDS",
        help="name the tests that take longer and are not marked slow (default 60)",
    )  # fmt: skip


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Name the tests over the budget. They do not fail: how long a test takes depends on the machine."""
    budget, seconds = config.getoption("--budget"), dict[str, float]()
    for report in (r for found in terminalreporter.stats.values() for r in found if isinstance(r, pytest.TestReport)):
        if "slow" not in report.keywords:
            # What a shared fixture takes is not the test's own.
            seconds[report.nodeid] = seconds.get(report.nodeid, 0.0) + (report.duration if report.when == "call" else 0)
    over = sorted(((spent, name) for name, spent in seconds.items() if spent > budget), reverse=True)
    if over:
        terminalreporter.section(f"over {budget:g} s and not marked slow")
        for spent, name in over:
            terminalreporter.line(f"{spent:7.1f} s  {name}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs an extra that is not installed."""
    if item.get_closest_marker("torchattacks") and importlib.util.find_spec("torchattacks") is None:
        pytest.skip("torchattacks is not installed: pip install '.[torchattacks]'")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The root of the real data sets; skips where there is none."""
    root = os.environ.get("AFTERSHOCK_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("set AFTERSHOCK_DATA to a folder with the real data sets")
    return Path(root)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from threads, and on a busy machine wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Like ``shell``, many times faster: for tests that need many runs."""
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    made = Forks(tmp_path_factory.mktemp("logs"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """Writes a tiny suite: ``tiny(path, perturbations=, detectors=, data=, model=, seeds=, plugins=)``."""
    return write_suite


# A row does not depend on its neighbours, so a part of them will do.
QUICK_ROWS = ("bits-on-pgd", "bits-hamming", "mahalanobis")


@pytest.fixture(scope="session")
def quick_run(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """Run some rows of the suite ``quick``: three detectors of its first model, without analyses and propagation."""
    from aftershock.harness.suite.builtin import builtin_suites

    folder, path = tmp_path_factory.mktemp("quick"), builtin_suites()["quick"]
    suite = tomllib.loads(path.read_text(encoding="utf-8"))
    model = suite["models"][0]
    parts = [table("", {key: suite[key] for key in ("name", "seeds", "price_images") if key in suite})]
    parts += [table(f"[{name}]", suite[name]) for name in ("data", "threat", "limits") if name in suite]
    parts.append(table("[[models]]", {**model, "weights": str(path.parent / model["weights"])}))
    parts += [table("[[perturbations]]", entry) for entry in suite["perturbations"]]
    detectors = [entry for entry in suite["detectors"] if entry.get("label", entry["name"]) in QUICK_ROWS]
    parts += [table("[[detectors]]", entry) for entry in detectors]
    (folder / "quick.toml").write_text("\n".join(parts), encoding="utf-8")
    # Scores, checks and false alarms; fits and attacks come with what needs them.
    only = ("--only", "digits/cnn/0/[csf][hca]", "--device", "cpu", "--out", "run")
    # Processes that share the tests share the cache: each cell is computed by one of them.
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "quick-cache"
    done = forks("run", "quick.toml", *only, cwd=folder, AFTERSHOCK_CACHE=str(cache))
    assert done.status == 0, done.output
    return folder / "run"


@pytest.fixture(scope="session")
def tables() -> Callable[[Path], dict[str, bytes]]:
    """Reads the tables of a run that may not differ between two runs of one suite."""
    return whole_tables
