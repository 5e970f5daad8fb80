"""What all tests share: the real data, the command line as a process, and a suite small enough to run often."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aftershock.harness.run  # noqa: F401 (opens plugins for tests that look up their parts)
import pytest

# Lines of JSON in, one per run; a process with everything imported forks a child for each and tells what became of it.
FORKS = """
import importlib, json, os, signal, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
import torch
torch.set_num_threads(1)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        # As a command that a person starts, also where these tests run in the background, with SIGINT ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        out = os.open(job["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(job["cwd"])
        os.environ.update(job["env"])
        sys.argv = ["aftershock", *job["arguments"]]
        status = 70
        try:
            exec(job["before"], {})
            from aftershock.harness.cli.main import main
            main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
IMPORTED = (
    "aftershock.harness.run.api",
    "aftershock.harness.run.runner",
    "aftershock.harness.run.tasks",
    "aftershock.harness.evaluation.collect",
    "aftershock.reports.site.build",
    "aftershock.analyses.propagation.analysis",
    "aftershock.harness.cli.console",
    "aftershock.harness.data.sets",
    "aftershock.harness.models.architectures",
    "aftershock.harness.models.training",
    "aftershock.attacks.benign.noise",
    "aftershock.attacks.native.pgd",
    "aftershock.attacks.benign.equal_norm_control",
    "aftershock.attacks.base.perturb_batch",
    "aftershock.attacks.from_file",
    "aftershock.detectors.logits.baselines",
    "sklearn.datasets",
    "plotly.offline",
    "jinja2",
    "rich.progress",
)


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


@dataclass(frozen=True)
class Result:
    """How a command ended: its exit status (negative: the signal) and what it said."""

    status: int
    output: str


def quiet_environment(**more: str) -> dict[str, str]:
    """The environment of a command: compiled files are kept, and one thread per process."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**environment, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more}


@pytest.fixture(scope="session")
def shell() -> Callable[..., Result]:
    """Runs ``python -m aftershock.harness.cli.main`` with arguments, as a person would."""

    def run(*arguments: object, cwd: Path, **environment: str) -> Result:
        command = [sys.executable, "-m", "aftershock.harness.cli.main", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=cwd, env=quiet_environment(**environment), capture_output=True, text=True, timeout=120
        )
        return Result(done.returncode, done.stdout + done.stderr)

    return run


class Forks:
    """Commands in processes of their own, without the seconds that imports take."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._server = subprocess.Popen(
            [sys.executable, "-c", FORKS, *IMPORTED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=quiet_environment(),
        )  # fmt: skip

    def __call__(
        self,
        *arguments: object,
        cwd: Path,
        while_running: Callable[[int], object] = lambda process: None,
        before: Path | None = None,
        **environment: str,
    ) -> Result:
        self._count += 1
        log = self._folder / f"{self._count}.log"
        job = {"log": str(log), "cwd": str(cwd), "env": environment, "arguments": [str(a) for a in arguments]}
        # Code that runs in the process before the command.
        job["before"] = before.read_text(encoding="utf-8") if before else ""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        while_running(int(self._server.stdout.readline()))
        status = int(self._server.stdout.readline())
        return Result(status, log.read_text(encoding="utf-8") if log.exists() else "")

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=60)


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Like ``shell``, many times faster: for tests that need many runs."""
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    made = Forks(tmp_path_factory.mktemp("logs"))
    yield made
    made.close()


def toml(value: object) -> str:
    """A TOML value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value) if isinstance(value, str) else str(value)


def table(header: str, entry: Mapping[str, Any]) -> str:
    """A TOML table with its header."""
    return "\n".join([header, *(f"{key} = {toml(value)}" for key, value in entry.items()), ""])


GAUSSIAN = {"name": "gaussian", "std": 0.5}
FGSM = {"name": "fgsm", "eps": 0.3}
PERTURBATIONS = (GAUSSIAN, FGSM)
DETECTORS = ({"name": "msp"}, {"name": "energy"})


def write_suite(
    path: Path,
    perturbations: Sequence[Mapping[str, Any]] = PERTURBATIONS,
    detectors: Sequence[Mapping[str, Any]] = DETECTORS,
    data: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    **top: Any,
) -> Path:
    """Write a suite of a second or two: a hardly trained MLP on scikit-learn's digits."""
    top = {"name": "tiny", "seeds": [0], **top}
    parts = [table("", top)]
    parts.append(table("[data]", {"name": "digits", "fit": 120, "calibrate": 200, "evaluate": 60, **(data or {})}))
    parts.append(table("[threat]", {"norm": "linf", "eps": 0.3}))
    parts.append(table("[[models]]", {"name": "mlp", "epochs": 3, "width": 32, **(model or {})}))
    parts += [table("[[perturbations]]", entry) for entry in perturbations]
    parts += [table("[[detectors]]", entry) for entry in detectors]
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Path]:
    """Writes a tiny suite: ``tiny(path, perturbations=, detectors=, data=, model=, seeds=, plugins=)``."""
    return write_suite


# A row does not depend on its neighbours, so a part of them will do.
QUICK_ROWS = ("bits-on-pgd", "bits-hamming", "mahalanobis")


@pytest.fixture(scope="session")
def quick_run(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """Run some rows of the suite ``quick``: three detectors of its first model, without analyses and propagation."""
    from aftershock.harness.suite.resolve import builtin_suites

    folder, path = tmp_path_factory.mktemp("quick"), builtin_suites()["quick"]
    suite = tomllib.loads(path.read_text(encoding="utf-8"))
    model = suite["models"][0]
    parts = [table("", {"name": suite["name"], "seeds": suite["seeds"]})]
    parts += [table(f"[{name}]", suite[name]) for name in ("data", "threat", "limits") if name in suite]
    parts.append(table("[[models]]", {**model, "weights": str(path.parent / model["weights"])}))
    parts += [table("[[perturbations]]", entry) for entry in suite["perturbations"]]
    detectors = [entry for entry in suite["detectors"] if entry.get("label", entry["name"]) in QUICK_ROWS]
    parts += [table("[[detectors]]", entry) for entry in detectors]
    (folder / "quick.toml").write_text("\n".join(parts), encoding="utf-8")
    # Fits, attacks and large-budget checks come with the scores and checks that need them.
    only = ("--only", "digits/cnn/0/[cs][hc]", "--device", "cpu", "--out", "run")
    done = forks("run", "quick.toml", *only, cwd=folder, AFTERSHOCK_CACHE=str(folder / "cache"))
    assert done.status == 0, done.output
    return folder / "run"


def whole_tables(run: Path) -> dict[str, bytes]:
    """The bytes of every table but the timings; the compressed one unpacked, so that a difference can be read."""
    found = {}
    for path in sorted((run / "tables").iterdir()):
        if path.name != "timings.csv":
            data = path.read_bytes()
            found[path.name] = gzip.decompress(data) if path.suffix == ".gz" else data
    return found


@pytest.fixture(scope="session")
def tables() -> Callable[[Path], dict[str, bytes]]:
    """Reads the tables of a run that may not differ between two runs of one suite."""
    return whole_tables
