"""Runs on a Ray cluster of several nodes: the same tables as in one process, whatever becomes of a node."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.commands import Result, quiet_environment
from support.plugins import NETWORK, PLUGGED
from support.suites import Tiny, table
from support.tables import whole_tables

pytestmark = pytest.mark.skipif(
    find_spec("ray") is None or os.environ.get("AFTERSHOCK_RAY") != "1",
    reason="takes minutes and needs the extra ray: tox -e ray",
)

# Asked to, a network says on which node it computes, and waits.
HOLDING = """def before_pass():
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized() and (HERE / "hold").exists():
        (HERE / "pid").write_text(str(os.getpid()))
        (HERE / "holding.new").write_text(ray.get_runtime_context().get_node_id())
        (HERE / "holding.new").rename(HERE / "holding")
        while (HERE / "hold").exists():
            time.sleep(0.05)
"""
# A run in which the first report of a task is lost, as if its worker had been ended for the memory that it took.
FULL = """
import ray

from aftershock.harness.run.engines import ray_worker

get, lost = ray.get, []


def get_after_one_is_lost(references, **more):
    found = get(references, **more)
    if isinstance(found, ray_worker.Report) and not lost:
        lost.append(found)
        raise ray.exceptions.OutOfMemoryError("full")
    return found


ray.get = get_after_one_is_lost
from aftershock.harness.run.engines import ray as engine

give = engine._Worker.give


def give_and_tell(worker, task, sent):
    if task.halvings:
        print(f"halvings: {task.halvings}", flush=True)
    return give(worker, task, sent)


engine._Worker.give = give_and_tell
from aftershock.harness.cli.main import main

main()
"""
ATTACKS: list[dict[str, Any]] = [{"name": "fgsm", "eps": 0.3}, {"name": "gaussian", "std": 0.3}]
DETECTORS: list[dict[str, Any]] = [{"name": "msp"}, {"name": "plugged"}]
# A run in which no node is taken to see the run directory.
APART = """
import functools
import sys

from aftershock.harness.run.engines import ray_cluster

connect = ray_cluster.connect


def connect_apart(address):
    connection = connect(address)
    from aftershock.harness.run.engines import ray

    ray.RayEngine = functools.partial(ray.RayEngine, share="never")
    return connection


ray_cluster.connect = connect_apart
from aftershock.harness.cli.main import main

main()
"""


class TwoNodes:
    """A cluster of two nodes that compute, in a process of its own.

    Args:
        environment: what it adds to the environment, as whoever starts it does.
    """

    def __init__(self, nodes: int, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("cluster.py")), str(nodes)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=quiet_environment(**environment),
        )  # fmt: skip
        assert self._process.stdout is not None
        # Ray may say something before.
        lines = (line.strip() for line in self._process.stdout)
        self.address = next(line for line in lines if re.fullmatch(r"[0-9.]+:[0-9]+", line))

    def end(self, node: str) -> None:
        """End a node at once, with everything that runs on it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{node}\n")
        self._process.stdin.flush()
        while "ended" not in self._process.stdout.readline():
            assert self._process.poll() is None

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


@pytest.fixture(scope="module")
def token() -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@pytest.fixture(scope="module")
def nodes(token: dict[str, str]) -> Iterator[TwoNodes]:
    cluster = TwoNodes(2, token)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    (folder / "plugged.py").write_text(PLUGGED, encoding="utf-8")
    (folder / "network.py").write_text(NETWORK + HOLDING, encoding="utf-8")
    suite = tiny(folder / "suite.toml", ATTACKS, DETECTORS, plugins=["plugged.py"])
    with suite.open("a") as stream:
        stream.write(table("[[models]]", {"factory": "network.py:network", "label": "own"}))
    return folder


def start(place: Path, out: str, *more: object, program: str = "", **environment: str) -> subprocess.Popen[str]:
    """Start a run with a cache of its own."""
    code = program or "from aftershock.harness.cli.main import main; main()"
    command = ["run", "suite.toml", "--out", out, "--cache", f"cache-{out}", *map(str, more)]
    return subprocess.Popen(
        [sys.executable, "-c", code, *command], cwd=place, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=quiet_environment(**environment),
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> Result:
    output, _ = process.communicate(timeout=200)
    return Result(process.returncode, output)


@pytest.fixture(scope="module")
def alone(place: Path) -> dict[str, bytes]:
    """The tables of the suite, computed in one process."""
    done = ended(start(place, "alone", "--workers", 1))
    assert done.status == 0, done.output
    return whole_tables(place / "alone")


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(condition: Any, seconds: float = 100) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("shared", [True, False])
def test_two_nodes_make_the_tables_of_one_process(
    place: Path, alone: dict[str, bytes], nodes: TwoNodes, token: dict[str, str], shared: bool
) -> None:
    out = "shared" if shared else "apart"
    ray = ("--engine", "ray", "--ray-address", nodes.address)
    done = ended(start(place, out, *ray, program="" if shared else APART, **token))
    assert done.status == 0, done.output
    assert "2 workers" in done.output and ("does not see the run directory" in done.output) != shared
    assert whole_tables(place / out) == alone
    assert not (place / out / ".incoming").exists()


def test_a_wrong_token_is_told_at_once(place: Path, nodes: TwoNodes, token: dict[str, str]) -> None:
    began = time.monotonic()
    wrong = {**token, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    done = ended(start(place, "wrong", "--engine", "ray", "--ray-address", nodes.address, **wrong))
    assert done.status == 2 and "refuses this program's token" in done.output and "Traceback" not in done.output
    # Ray itself tries for 20 s.
    assert time.monotonic() - began < 18


def test_a_cluster_that_anybody_can_use_is_refused_whatever_token_this_program_has(
    place: Path, token: dict[str, str]
) -> None:
    head = TwoNodes(0, {"RAY_AUTH_MODE": "disabled"})
    try:
        for mine in ({"RAY_AUTH_MODE": "disabled"}, token):
            done = ended(start(place, "open", "--engine", "ray", "--ray-address", head.address, **mine))
            assert done.status == 2 and "asks for no token" in done.output and "Traceback" not in done.output
    finally:
        head.close()


def test_a_cluster_of_this_machine_listens_to_it_alone_and_ends_with_a_killed_owner(place: Path) -> None:
    ss = shutil.which("ss")
    if ss is None:
        pytest.skip("needs ss, which lists sockets")
    (place / "holding").unlink(missing_ok=True)
    (place / "hold").touch()
    owner = start(place, "local", "--engine", "ray", RAY_ADDRESS="")
    try:
        wait_for((place / "holding").exists)
        sockets = subprocess.run([ss, "-ltnpH"], capture_output=True, text=True).stdout
        rays = [line for line in sockets.splitlines() if re.search(rf"ray|gcs|pid={owner.pid},", line)]
        raylets = [line for line in rays if "raylet" in line]
        assert raylets
        # Other clusters of these tests listen to other machines, too.
        assert any("127.0.0.1" in line for line in raylets)
        own = [line for line in rays if f"pid={owner.pid}," in line]
        assert own and all("127.0.0.1" in line for line in own)
        worker = int((place / "pid").read_text())
        os.kill(owner.pid, signal.SIGKILL)
        wait_for(lambda: gone(worker), 40)
    finally:
        owner.kill()
        owner.communicate()
        (place / "hold").unlink()


def test_a_worker_that_is_ended_for_its_memory_costs_half_the_batch(
    place: Path, alone: dict[str, bytes], nodes: TwoNodes, token: dict[str, str]
) -> None:
    done = ended(start(place, "full", "--engine", "ray", "--ray-address", nodes.address, program=FULL, **token))
    assert done.status == 0, done.output
    assert "whose memory was full; it is computed again in half the batches" in " ".join(done.output.split())
    assert "halvings: 1" in done.output
    # No set of this suite fills half a batch.
    assert whole_tables(place / "full") == alone


def test_a_run_that_is_interrupted_goes_on_where_it_was(place: Path, alone: dict[str, bytes]) -> None:
    (place / "holding").unlink(missing_ok=True)
    (place / "hold").touch()
    owner = start(place, "stopped", "--engine", "ray", "--workers", 1, RAY_ADDRESS="")
    try:
        wait_for((place / "holding").exists)
        worker = int((place / "pid").read_text())
        owner.send_signal(signal.SIGINT)
        done = ended(owner)
    finally:
        owner.kill()
        (place / "hold").unlink()
    assert done.status == 130 and "The same command continues" in done.output, done.output
    assert "Traceback" not in done.output
    wait_for(lambda: gone(worker), 40)
    again = ended(start(place, "stopped", "--workers", 1))
    assert again.status == 0, again.output
    assert whole_tables(place / "stopped") == alone


# The last one: it leaves one node.
def test_a_node_that_is_lost_while_it_computes_changes_nothing(
    place: Path, alone: dict[str, bytes], nodes: TwoNodes, token: dict[str, str]
) -> None:
    (place / "holding").unlink(missing_ok=True)
    (place / "hold").touch()
    owner = start(place, "lost", "--engine", "ray", "--ray-address", nodes.address, **token)
    try:
        wait_for((place / "holding").exists)
        node = (place / "holding").read_text()
        nodes.end(node)
    finally:
        (place / "hold").unlink()
    done = ended(owner)
    assert done.status == 0, done.output
    # It was running there.
    (said,) = re.findall(r"^(\S+): .*node \S+ \(([0-9a-f]+)\) was lost", done.output, re.MULTILINE)
    assert said[0] == "digits/own/0/model" and node.startswith(said[1])
    assert whole_tables(place / "lost") == alone
