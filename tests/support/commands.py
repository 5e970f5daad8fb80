"""The command line as a person calls it, in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

# Lines of JSON in, one per run; a process with everything imported forks a child for each and tells what became of it.
FORKS = """
import importlib, json, os, signal, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
import torch
torch.set_num_threads(1)
if "aftershock.reports.site.build" in sys.modules:
    # Compiled once, not by each child.
    from aftershock.reports.templates.rendering import environment
    for root in ("", "../"):
        for name in environment(root).list_templates(extensions=["html"]):
            environment(root).get_template(name)
for line in sys.stdin:
    job = json.loads(line)
    if "check" in job["arguments"][:2]:
        # Made once: a network is trained for it.
        from aftershock.harness.conformance.fixture import make_fixture
        make_fixture()
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
    "aftershock.harness.run.computing",
    "aftershock.harness.run.opening",
    "aftershock.harness.run.writing",
    "aftershock.harness.run.interim",
    "aftershock.harness.run.engines.make",
    "aftershock.harness.cli.results",
    "aftershock.harness.suite.resolve",
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


class CacheVariable(TypedDict):
    """The environment variable that says where a command keeps its cache."""

    AFTERSHOCK_CACHE: str


@dataclass(frozen=True)
class Result:
    """How a command ended: its exit status (negative: the signal) and what it said."""

    status: int
    output: str


def quiet_environment(**more: str) -> dict[str, str]:
    """The environment of a command: compiled files are kept, and one thread per process."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**environment, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more}


def shell(*arguments: object, cwd: Path, **environment: str) -> Result:
    """Run ``python -m aftershock.harness.cli.main`` with arguments."""
    command = [sys.executable, "-m", "aftershock.harness.cli.main", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env=quiet_environment(**environment), capture_output=True, text=True, timeout=120
    )
    return Result(done.returncode, done.stdout + done.stderr)


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
