"""A run that is killed at any moment loses at most one cell, and the same command ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from support.cells import ledger, read_cells
from support.commands import Forks, Result
from support.suites import Tiny
from support.tables import whole_tables

pytestmark = pytest.mark.slow

# Counts the steps of every write and kills its own process at one of them, before or after it is done. It is at work
# before the command begins: what a plugin replaces is put back.
KILLER = """
import os, pathlib, shutil, signal

AT = int(os.environ.get("KILL_AT") or 0)
AFTER = bool(os.environ.get("KILL_AFTER"))
ONLY = os.environ.get("KILL_ONLY", "")
LOG = os.environ.get("KILL_LOG")
count = 0

def steps(module, name):
    real = getattr(module, name)
    def step(*args, **kwargs):
        global count
        mine = not ONLY or ONLY == name
        count += mine
        if LOG:
            with open(LOG, "a") as log:
                log.write(name + "\\n")
        if mine and count == AT and not AFTER:
            if name in ("write_bytes", "write"):
                # Half of the bytes are on the disk when the process dies.
                real(args[0], args[1][: len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        # One step may count another inside it (Path.replace calls os.replace).
        own = count
        try:
            return real(*args, **kwargs)
        finally:
            if mine and own == AT:
                os.kill(os.getpid(), signal.SIGKILL)
    setattr(module, name, step)

if AT or LOG:
    for module, name in ((os, "write"), (os, "replace"), (os, "link"), (os, "unlink"), (pathlib.Path, "write_bytes"),
                         (pathlib.Path, "replace"), (pathlib.Path, "unlink"), (pathlib.Path, "mkdir")):
        steps(module, name)
"""
# By name, and whether the kill comes after the step; all of them with AFTERSHOCK_DAMAGE set (tox -e damage).
STEPS = [("write", False), ("replace", True), ("link", False)]
MOMENTS = 1
if os.environ.get("AFTERSHOCK_DAMAGE"):
    STEPS += [("write", True), ("replace", False), ("unlink", False), ("unlink", True), ("write_bytes", True)]
    MOMENTS = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    (folder / "killer.py").write_text(KILLER, encoding="utf-8")
    tiny(folder / "suite.toml", detectors=[{"name": "msp"}, {"name": "mahalanobis"}])
    return folder


@pytest.fixture(scope="module")
def run_killed(place: Path, forks: Forks) -> Callable[..., Result]:
    """Runs a command with the killer at work."""
    return partial(forks, before=place / "killer.py")


@pytest.fixture(scope="module")
def steps(place: Path, run_killed: Callable[..., Result]) -> dict[str, int]:
    """How many steps of each kind an uninterrupted run takes; its directory is ``undisturbed``."""
    log = place / "steps.log"
    done = run_killed(
        "run", "suite.toml", "--out", "undisturbed", cwd=place, AFTERSHOCK_CACHE=str(place / "cache"), KILL_LOG=str(log)
    )
    assert done.status == 0, done.output
    names = log.read_text().split()
    return {name: names.count(name) for name in set(names)}


def no_leftovers(run: Path) -> None:
    """A finished run directory holds no half-written file, and every entry of its ledger has its artifact."""
    assert not list(run.rglob("*.tmp"))
    cells = read_cells(run)
    assert all(cells.is_whole(record) for record in cells.records())
    # Every line but those that a kill cut off was read.
    held = [line for path in (run / "cells").iterdir() for line in path.read_bytes().splitlines()]
    assert len({json.loads(line)["key"] for line in held}) == len(set(cells.keys()))


@pytest.mark.parametrize(("step", "after"), STEPS)
def test_a_kill_at_a_step_of_a_write(
    step: str, after: bool, place: Path, steps: dict[str, int], run_killed: Callable[..., Result]
) -> None:
    out, cache = f"{step}-{after}", str(place / f"cache-{step}-{after}")
    total = steps[step]
    killed = 0
    # Each command gets some steps further than the one before: early, in the middle, at the end. Few links are made.
    for at in (2, total // 3, total // 3) if total > 20 else (1, 2, total):
        done = run_killed(
            "run", "suite.toml", "--out", out, cwd=place, AFTERSHOCK_CACHE=cache, KILL_ONLY=step, KILL_AT=str(at),
            KILL_AFTER="1" if after else "",
        )  # fmt: skip
        assert done.status in (0, -signal.SIGKILL), done.output
        killed += done.status == -signal.SIGKILL
    assert killed >= 2
    done = run_killed("run", "suite.toml", "--out", out, cwd=place, AFTERSHOCK_CACHE=cache)
    assert done.status == 0, done.output
    assert whole_tables(place / out) == whole_tables(place / "undisturbed")
    no_leftovers(place / out)


def test_a_kill_while_tables_and_report_are_written(
    place: Path, steps: dict[str, int], run_killed: Callable[..., Result]
) -> None:
    cache, log = str(place / "cache"), place / "again.log"
    done = run_killed("run", "suite.toml", "--out", "again", cwd=place, AFTERSHOCK_CACHE=cache, KILL_LOG=str(log))
    assert done.status == 0, done.output
    total = log.read_text().split().count("replace")
    for before in (17, 11, 6, 2, 0):
        # A directory of its own each time, so that it takes the same number of steps.
        out = f"ending-{before}"
        done = run_killed(
            "run", "suite.toml", "--out", out, cwd=place, AFTERSHOCK_CACHE=cache, KILL_ONLY="replace",
            KILL_AT=str(total - before),
        )  # fmt: skip
        assert done.status == -signal.SIGKILL, done.output
        done = run_killed("run", "suite.toml", "--out", out, cwd=place, AFTERSHOCK_CACHE=cache)
        assert done.status == 0, done.output
        assert whole_tables(place / out) == whole_tables(place / "undisturbed")
        no_leftovers(place / out)


@pytest.mark.parametrize("seed", range(MOMENTS))
def test_a_kill_from_outside_at_any_moment(
    seed: int, place: Path, steps: dict[str, int], run_killed: Callable[..., Result]
) -> None:
    draws = random.Random(seed)
    out, cache = place / f"outside-{seed}", str(place / f"cache-outside-{seed}")
    total = len(ledger(place / "undisturbed"))
    for share in (draws.uniform(0.05, 0.5), draws.uniform(0.5, 0.95)):

        def kill(process: int, wanted: float = share * total) -> None:
            end = time.monotonic() + 60
            while time.monotonic() < end and len(ledger(out)) < wanted:
                time.sleep(0.002)
            time.sleep(draws.uniform(0, 0.01))
            os.kill(process, signal.SIGKILL)

        done = run_killed("run", "suite.toml", "--out", out, cwd=place, while_running=kill, AFTERSHOCK_CACHE=cache)
        assert done.status == -signal.SIGKILL, done.output
        assert not (out / "run.json").exists()
    done = run_killed("run", "suite.toml", "--out", out, cwd=place, AFTERSHOCK_CACHE=cache)
    assert done.status == 0, done.output
    assert whole_tables(out) == whole_tables(place / "undisturbed")
    no_leftovers(out)


def test_an_interrupt_says_what_to_do_next(tmp_path: Path, forks: Forks, tiny: Tiny) -> None:
    suite = tiny(tmp_path / "s.toml", model={"epochs": 3000})

    def interrupt(process: int) -> None:
        time.sleep(3)
        os.kill(process, signal.SIGINT)

    done = forks(
        "run", str(suite), "--out", "run", cwd=tmp_path, while_running=interrupt, AFTERSHOCK_CACHE=str(tmp_path / "c")
    )
    assert done.status == 130
    assert "The same command continues where it stopped." in done.output and "Traceback" not in done.output
