"""Runs in several processes: the same tables as in one, whatever becomes of a process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aftershock
import pytest
from aftershock.harness.core.cell_names import CellName
from aftershock.harness.core.errors import AftershockError, UsageError
from aftershock.harness.plan.cells import Cell, Images, PerturbJob, ScoreJob, TargetPlan, TraceJob
from aftershock.harness.run import options
from aftershock.harness.run.engines import processes
from aftershock.harness.run.engines.elsewhere import plugin_labels, runs_plugin
from aftershock.harness.run.engines.ray_resources import share_out
from aftershock.harness.run.engines.ray_worker import CarriedCells, Surroundings, read_by
from aftershock.harness.run.events import Event
from aftershock.harness.run.options import EngineChoice
from aftershock.harness.run.runner import POLL, Runner
from aftershock.harness.run.sharding import parse_shard, run_shard
from aftershock.harness.run.tasks import TaskContext, compute
from aftershock.harness.run.work import Outcome, Output, Task
from aftershock.harness.run.workers.folder import WorkFolder
from aftershock.harness.store.artifacts import Artifact
from aftershock.harness.store.run_directory import Store
from aftershock.harness.store.stored_traces import StoredCells
from aftershock.harness.suite.resolve import load_suite
from support.cells import ledger
from support.commands import Forks, Result, quiet_environment
from support.plugins import NETWORK, PLUGGED
from support.suites import Tiny, table
from support.tables import read_table, share_secret, whole_tables

pytestmark = pytest.mark.skipif(os.name != "posix", reason="workers need Linux or macOS")

# If it is told so, it ends a worker that computes with it, as one that takes too much memory does.
DEADLY = """def before_pass():
    if (HERE / "deadly").exists() and sys.argv[0] == "-c":
        os.kill(os.getpid(), signal.SIGKILL)
    (HERE / "pids").open("a").write(f"{os.getpid()}\\n")
"""
ATTACKS: list[dict[str, Any]] = [
    {"name": "fgsm", "eps": 0.3},
    {"name": "adaptive", "eps": 0.3, "steps": 4, "restarts": 1, "queries": 20, "images": 8},
]
DETECTORS: list[dict[str, Any]] = [{"name": "msp"}, {"name": "latent", "epochs": 3}, {"name": "plugged"}]


# What the ordinary tests leave to `tox -e damage`: each starts processes of its own.
thorough = pytest.mark.skipif(not os.environ.get("AFTERSHOCK_DAMAGE"), reason="set AFTERSHOCK_DAMAGE to try these")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    (folder / "plugged.py").write_text(PLUGGED, encoding="utf-8")
    suite = tiny(folder / "suite.toml", ATTACKS, DETECTORS, plugins=["plugged.py"])
    with suite.open("a") as stream:
        stream.write(table("[[analyses]]", {"name": "rdm"}))
    return folder


def run(forks: Forks, place: Path, out: str, cache: str, *more: object) -> Result:
    command = ("run", "suite.toml", *more) if "--shard" in more else ("run", "suite.toml", "--out", out, *more)
    return forks(*command, cwd=place, AFTERSHOCK_CACHE=str(place / cache))


@pytest.fixture(scope="module")
def alone(forks: Forks, place: Path) -> Path:
    """The run directory of the suite, computed in one process."""
    done = run(forks, place, "alone", "cache-alone", "--workers", 1)
    assert done.status == 0, done.output
    return place / "alone"


def test_two_workers_make_the_tables_and_findings_of_one(forks: Forks, place: Path, alone: Path) -> None:
    share_secret(alone, place / "two")
    done = run(forks, place, "two", "cache-two", "--workers", 2)
    assert done.status == 0, done.output
    assert whole_tables(place / "two") == whole_tables(alone)
    found = [sorted((folder / "analyses").rglob("*.json")) for folder in (place / "two", alone)]
    assert found[0]
    for one, other in zip(*found, strict=True):
        assert json.loads(one.read_text()) == json.loads(other.read_text())
    # Everything that was given away is in its place, and nothing is missing for the next call.
    assert not (place / "two" / ".incoming").exists()
    assert ledger(place / "two").keys() == ledger(alone).keys()
    again = run(forks, place, "two", "cache-two", "--workers", 2)
    assert again.status == 0 and "Nothing was missing" in again.output


def test_shards_fill_a_cache_from_which_one_call_makes_the_tables(forks: Forks, place: Path, alone: Path) -> None:
    ended: dict[int, Result] = {}

    def shard(number: int) -> None:
        folder = place / f"forks-{number}"
        folder.mkdir()
        mine = Forks(folder)
        try:
            ended[number] = run(mine, place, "", "cache-shards", "--shard", f"{number}/2")
        finally:
            mine.close()

    both = [threading.Thread(target=shard, args=(number,)) for number in (1, 2)]
    for one in both:
        one.start()
    for one in both:
        one.join(300)
    assert [ended[n].status for n in (1, 2)] == [0, 0], ended
    total = len(ledger(alone))
    here = [int(ended[n].output.rpartition("computed ")[2].split()[0]) for n in (1, 2)]
    # Every cell was computed once, and both took part.
    assert sum(here) == total and min(here) > 0
    # What a shard worked in is gone.
    assert not list((place / "cache-shards" / "shards").iterdir())
    collected = run(forks, place, "collected", "cache-shards")
    assert collected.status == 0 and whole_tables(place / "collected") == whole_tables(alone)


def test_seeds_that_were_computed_apart_are_joined_by_their_caches(forks: Forks, tmp_path: Path, tiny: Tiny) -> None:
    for number, seeds in (("0", [0]), ("1", [1]), ("all", [0, 1])):
        suite = tiny(tmp_path / f"{number}.toml", [{"name": "fgsm", "eps": 0.3}], [{"name": "msp"}], seeds=seeds)
        cache = tmp_path / f"cache-{number}"
        if number == "all":
            for apart in ("0", "1"):
                shutil.copytree(tmp_path / f"cache-{apart}", cache, dirs_exist_ok=True)
        if number != "0":
            share_secret(tmp_path / "run-0", tmp_path / f"run-{number}")
        done = forks("run", suite, "--out", f"run-{number}", cwd=tmp_path, AFTERSHOCK_CACHE=str(cache))
        assert done.status == 0, done.output
    assert "No cell was missing" in done.output
    (row,) = [r for r in read_table(tmp_path / "run-all", "leaderboard.csv") if r["detector"] == "msp"]
    assert row["seeds"] == "0 1"


@pytest.fixture
def networks(tmp_path: Path, tiny: Tiny) -> Path:
    """A suite of an ordinary model, and one whose network can end its process."""
    (tmp_path / "network.py").write_text(NETWORK + DEADLY, encoding="utf-8")
    suite = tiny(tmp_path / "suite.toml", [{"name": "fgsm", "eps": 0.3}], [{"name": "msp"}])
    with suite.open("a") as stream:
        stream.write(table("[[models]]", {"factory": "network.py:network", "label": "own"}))
    return tmp_path


def test_a_worker_that_is_killed_costs_its_cell_and_the_next_call_mends_it(forks: Forks, networks: Path) -> None:
    (networks / "deadly").touch()
    done = run(forks, networks, "run", "cache", "--workers", 2)
    facts = json.loads((networks / "run" / "run.json").read_text())
    reasons = {f["cell"]: f["reason"] for f in facts["failures"]}
    assert done.status == 1 and reasons["digits/own/0/model"] == "the process that computed it ended (SIGKILL)"
    assert all(reason.startswith("needs ") for name, reason in reasons.items() if name != "digits/own/0/model")
    rows = (networks / "run" / "tables" / "leaderboard.csv").read_text()
    assert ",mlp,msp," in rows
    (networks / "deadly").unlink()
    assert run(forks, networks, "run", "cache", "--workers", 2).status == 0


@thorough
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_a_worker_that_ends_while_it_is_idle_costs_nothing(tmp_path: Path, tiny: Tiny) -> None:
    """Another one takes its place, and what it leaves behind does not hide that it has ended."""
    suite = tiny(tmp_path / "suite.toml", [{"name": "fgsm", "eps": 0.3}], [{"name": "msp"}], seeds=[0, 1])
    killed: list[int] = []

    def watch(event: Event) -> None:
        if event.kind == "done" and event.cell.kind == "model" and not killed:
            # The one whose task is done waits for the next.
            for worker in children():
                os.kill(worker, signal.SIGKILL)
                killed.append(worker)

    run = aftershock.run(suite, tmp_path / "run", cache=tmp_path / "cache", workers=2, on_progress=watch)
    assert len(killed) == 2
    # The other one computed a model at that moment; all the rest is there.
    assert set(run.failed.values()) <= {"the process that computed it ended (SIGKILL)"}
    assert sum(name.endswith("/model") for name in run.failed) <= 1
    assert aftershock.run(suite, tmp_path / "run", cache=tmp_path / "cache", workers=2).failed == {}


def children() -> list[int]:
    """Processes of this one that compute."""
    found = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    numbers = [int(n) for file in found for n in file.read_text().split()]
    return [n for n in numbers if b"engines.worker" in Path(f"/proc/{n}/cmdline").read_bytes()]


@thorough
def test_modules_of_the_working_directory_are_not_those_of_a_worker(tmp_path: Path, tiny: Tiny) -> None:
    """The installed command does not look there, either."""
    tiny(tmp_path / "suite.toml", [{"name": "fgsm", "eps": 0.3}], [{"name": "msp"}])
    (tmp_path / "statistics.py").write_text("raise SystemExit('not this one')\n")
    command = [sys.executable, "-P", "-m", "aftershock", "run", "suite.toml", "--out", "run", "--workers", "2"]
    done = subprocess.run(
        command, cwd=tmp_path, env=quiet_environment(AFTERSHOCK_CACHE=str(tmp_path / "cache")), capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_what_a_worker_cannot_open_ends_the_run_with_the_reason(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = tiny(tmp_path / "suite.toml", [{"name": "fgsm", "eps": 0.3}], [{"name": "msp"}])
    monkeypatch.setattr(processes, "_COMMAND", (sys.executable, "-c", "raise ImportError('no torch here')"))
    with pytest.raises(AftershockError, match="no torch here"):
        aftershock.run(suite, tmp_path / "run", cache=tmp_path / "cache", workers=2)


def test_code_of_plugins_runs_in_one_worker(place: Path) -> None:
    suite = load_suite(place / "suite.toml")
    labels = plugin_labels(suite)
    assert labels == {"plugged"}
    own, adaptive = (next(p for p in suite.perturbations if p.against == d) for d in ("msp", "plugged"))
    score = next(d for d in suite.detectors if d.label == "plugged")
    jobs: list[tuple[Any, bool]] = [
        (ScoreJob("m", score, "f", ()), True),
        (PerturbJob("m", adaptive, "evaluate", 0, 1, "l", 0, TargetPlan(score, "f", "c", "l", "g")), True),
        (PerturbJob("m", own, "evaluate", 0, 1, "l", 0), False),
        (TraceJob("m", Images("fit", 0, 1), None), False),
    ]
    for job, expected in jobs:
        cell = Cell("k", CellName("digits", "mlp", 0, "kind"), job, (), "k", 1)
        assert runs_plugin(Task(0, (cell,)), labels) is expected


def test_a_group_that_another_run_held_is_computed_while_a_long_task_runs() -> None:
    """The engine is asked for a short time while a slot is free and something is held elsewhere."""
    asked: list[float | None] = []

    class Held(Exception):
        pass

    class Long:
        slots = 2

        def submit(self, task: Task) -> None:
            pass

        def next(self, on_progress: Any, seconds: float | None = None) -> Outcome | None:
            asked.append(seconds)
            if len(asked) == 3:
                raise Held
            return None

        def close(self) -> None:
            pass

    class Shared:
        folder = Path()

        def find(self, key: str, name: CellName) -> None:
            return None

        def computing(self, key: str) -> ExitStack | None:
            return None if key == "held" else ExitStack()

    job: Any = None
    cells = {key: Cell(key, CellName("d", "m", 0, "trace", key), job, (), key, 1) for key in ("long", "held")}
    store: Any = Shared()
    with pytest.raises(Held):
        Runner(cells, store, Long(), lambda cell: 1.0, lambda event: None).run()
    assert asked == [POLL] * 3


def gone(process: int) -> bool:
    """Whether a process has ended; one whose parent was killed may wait for somebody to ask about it."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=thorough)])
def test_workers_end_with_their_owner_and_the_run_goes_on_later(
    forks: Forks, networks: Path, how: signal.Signals
) -> None:
    def end(process: int) -> None:
        until = time.monotonic() + 120
        while not (networks / "pids").exists() and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(process, how)

    ended = forks(
        "run", "suite.toml", "--out", "run", "--workers", 2, cwd=networks, while_running=end,
        AFTERSHOCK_CACHE=str(networks / "cache"),
    )  # fmt: skip
    assert ended.status in (-signal.SIGKILL, 130)
    workers = {int(line) for line in (networks / "pids").read_text().split()}
    until = time.monotonic() + 20
    while not all(map(gone, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert all(map(gone, workers))
    assert run(forks, networks, "run", "cache", "--workers", 2).status == 0
    assert not (networks / "run" / ".incoming").exists()


def test_a_part_of_this_session_is_computed_here_or_refused(tmp_path: Path, tiny: Tiny) -> None:
    from aftershock.harness.core.registry import DETECTORS

    held = dict(DETECTORS._entries)
    try:
        exec(PLUGGED.replace('"plugged"', '"of-the-session"'), {"__name__": "__main__"})
        suite = tiny(tmp_path / "suite.toml", [{"name": "fgsm", "eps": 0.3}], [{"name": "of-the-session"}])
        with pytest.raises(UsageError, match="of-the-session"):
            aftershock.run(suite, tmp_path / "run", cache=tmp_path / "cache", workers=2)
    finally:
        DETECTORS._entries.clear()
        DETECTORS._entries.update(held)


def test_what_killed_shards_leave_is_removed_by_the_next_call(forks: Forks, tmp_path: Path, tiny: Tiny) -> None:
    suite = tiny(tmp_path / "suite.toml", [{"name": "fgsm", "eps": 0.3}], [{"name": "msp"}])
    cache = tmp_path / "cache"

    def end(process: int) -> None:
        until = time.monotonic() + 120
        while not ledger(cache) and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(process, signal.SIGKILL)

    ended = forks("run", suite, "--shard", "1/2", cwd=tmp_path, while_running=end, AFTERSHOCK_CACHE=str(cache))
    assert ended.status == -signal.SIGKILL
    assert len(list((cache / "shards").iterdir())) == 1
    held = WorkFolder(cache / "shards")
    done = forks("run", suite, "--out", "run", cwd=tmp_path, AFTERSHOCK_CACHE=str(cache))
    assert done.status == 0, done.output
    # That of a shard that works is left alone.
    assert list((cache / "shards").iterdir()) == [held.path]
    held.remove()
    # The run took over the secret of the shards; others draw a new one, and have the rest in common with it.
    again = run_shard(suite, "1/1", cache=cache)
    shadows = [record for record in ledger(tmp_path / "run").values() if "shadow" in str(record.name)]
    assert 0 < again.computed == len(shadows)
    assert run_shard(suite, "1/1", cache=cache).computed == 0


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/0", "-1/2", "a/b", "1/2/3", "1/1000000000000"])
def test_a_shard_is_a_number_of_a_count(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--shard"):
        parse_shard(text)
    with pytest.raises(UsageError, match="--shard"):
        run_shard("quick", text, cache=tmp_path)


def test_shards_share_the_groups_of_cells_about_evenly() -> None:
    groups = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(300)]
    owned = [[parse_shard(f"{i}/3").owns(group) for group in groups] for i in (1, 2, 3)]
    assert all(sum(owners) == 1 for owners in zip(*owned, strict=True))
    assert all(60 < sum(mine) < 140 for mine in owned)


def test_mistakes_are_told(tmp_path: Path) -> None:
    for given in ({"workers": 0}, {"engine": "loca"}, {"ray_address": "10.0.0.5:6379"}):
        with pytest.raises(UsageError):
            aftershock.run("quick", tmp_path / "run", cache=tmp_path / "cache", **given)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--cache"):
        run_shard("quick", "1/2", cache=tmp_path / "file")


def test_without_ray_its_engine_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'aftershock\[ray\]'"):
        EngineChoice("ray")


GIB = 2**30


@pytest.mark.parametrize(
    ("nodes", "given", "count", "cpus"),
    [
        # As many as there are processors, unless memory has room for fewer: then each has more threads.
        ([(4, 0, 16), (2, 0, 16)], {}, 6, 1),
        ([(8, 0, 5)], {}, 2, 4),
        # A node that computes nothing, as heads often are.
        ([(0, 0, 16), (2, 0, 16)], {}, 2, 1),
        ([(8, 0, 64)], {"threads": 4}, 2, 4),
        ([(8, 0, 64)], {"workers": 3}, 3, 2),
        ([(4, 0, 64), (4, 0, 64)], {"workers": 1}, 1, 4),
        # More than there is room for: a cluster may grow.
        ([(2, 0, 64)], {"workers": 8}, 8, 1),
        ([(16, 4, 64), (16, 0, 64)], {"gpu": True}, 4, 4),
        # Less memory than a worker should have.
        ([(2, 0, 1)], {}, 1, 2),
    ],
)
def test_workers_of_a_cluster_are_as_many_as_it_has_room_for(
    nodes: list[tuple[int, int, int]], given: dict[str, Any], count: int, cpus: int
) -> None:
    resources = [{"CPU": c, "GPU": g, "memory": m * GIB} for c, g, m in nodes]
    choice = {"memory": 2 * GIB, "gpu": False, "workers": None, "threads": None, **given}
    share = share_out(resources, **choice)
    assert (share.count, share.cpus, share.gpus) == (count, cpus, int(choice["gpu"]))
    assert share.memory <= min(2, max(m for _, _, m in nodes)) * GIB


def test_other_code_or_libraries_of_a_node_are_named() -> None:
    here = Surroundings.here()
    assert not here.difference(Surroundings.here())
    other = Surroundings("other", {**here.versions, "torch": "1.0"})
    assert "torch 1.0 instead of" in here.difference(other) and "Aftershock" in here.difference(other)


def test_cells_that_were_sent_are_read_as_from_a_run_directory(place: Path, alone: Path) -> None:
    with Store(alone) as store:
        record = next(r for r in store.records() if r.kind == "model")
        sent = store.artifact(record.key)
        assert len(sent.data) == record.size == sent.size
        cells = CarriedCells(limit=2 * sent.size)
        try:
            assert cells.missing([record.key]) == [record.key]
            cells.put(record.key, record.name, sent, record.values, record.seconds)
            assert not cells.missing([record.key]) and not cells.empty_if_full()
            reader = StoredCells(cells.folder)
            assert reader.values(record.key) == record.values
            held, given = reader.load(record.key), store.load(record.key)
            assert held.keys() == given.keys() and all(held[name].equal(given[name]) for name in given)
            with pytest.raises(AftershockError, match="damaged"):
                damaged = Artifact(sent.digest, sent.size, sent.data[:-1] + b"x")
                cells.put(record.key, record.name, damaged, record.values, record.seconds)
            for key in ("a" * 64, "b" * 64):
                cells.put(key, record.name, sent, record.values, record.seconds)
            assert cells.empty_if_full() and cells.missing([record.key]) == [record.key]
        finally:
            cells.close()
        assert not cells.folder.exists()


def test_a_task_reads_no_other_cells_than_those_that_are_sent_with_it(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes that do not see the run directory have nothing else."""
    from aftershock.harness.run import computing

    read: set[str] = set()
    beyond: dict[str, set[str]] = {}

    def noted(method: Any) -> Any:
        def read_too(self: Store, key: str, *more: str) -> Any:
            read.add(key)
            return method(self, key, *more)

        return read_too

    for name in ("values", "load", "tensor"):
        monkeypatch.setattr(Store, name, noted(getattr(Store, name)))

    def watched(context: TaskContext, task: Task, on_progress: Any) -> list[Output]:
        read.clear()
        outputs = compute(context, task, on_progress)
        if read - set(read_by(task)):
            beyond[str(task.cells[0].name)] = read - set(read_by(task))
        return outputs

    monkeypatch.setattr(computing, "compute", watched)
    detectors: list[dict[str, Any]] = [
        {"name": "msp"}, {"name": "odin"}, {"name": "feature-squeezing"}, {"name": "gradnorm"},
        {"name": "safetynet", "fit_on": ["fgsm"]}, {"name": "bitvector", "fit_on": ["fgsm"]},
    ]  # fmt: skip
    suite = tiny(tmp_path / "suite.toml", [*ATTACKS, {"name": "gaussian", "std": 0.3}], detectors)
    with suite.open("a") as stream:
        for name in ("rdm", "functional_codes"):
            stream.write(table("[[analyses]]", {"name": name}))
    done = aftershock.run(suite, tmp_path / "run", cache=tmp_path / "cache")
    assert not done.failed and not beyond
