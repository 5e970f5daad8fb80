"""How long a suite takes with many workers: simulated from the seconds of its cells, beside runs that were timed.

    python docs/studies/scaling.py SUITE RUN... [--data DIR] [--workers 1,2,4,8,64,1024] [--cores 2] [--markdown]

The first RUN is a run directory of SUITE that one worker computed; its ledger holds what every cell took. Each of them
may be given with its number of workers and its wall time (``runs/two:2:95.1``), which are then shown beside the
simulation. The tasks go through the harness's own schedule. A worker begins when its process has opened the run; with
more workers than cores all of them slow down alike. The owner of the run directory handles one result after the other.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aftershock.harness.core.content_keys import FileDigests
from aftershock.harness.core.interrupts import Interrupt
from aftershock.harness.plan.cells import Cell
from aftershock.harness.run.opening import open_run
from aftershock.harness.run.options import EngineChoice, Options
from aftershock.harness.run.roots import cache_root, data_root
from aftershock.harness.run.schedule import Schedule
from aftershock.harness.store.run_directory import Store
from aftershock.harness.suite.resolve import load_suite


@dataclass(frozen=True)
class Costs:
    """What is known of a run that one worker computed.

    Attributes:
        cells: of the suite, inputs first.
        seconds: of each cell, by key.
        sizes: bytes of each cell's artifact, by key.
        before: seconds before the first cell and after the last: planning, tables, pages.
    """

    cells: Mapping[str, Cell]
    seconds: Mapping[str, float]
    sizes: Mapping[str, int]
    before: float


@dataclass(frozen=True)
class Machine:
    """What computes.

    Attributes:
        cores: how many processes run at once at full speed.
        opening: seconds until a worker's process has opened the run.
        owner: seconds of the owner for one cell, and
        bandwidth: bytes a second that it reads back and files.
    """

    cores: int
    opening: float
    owner: float
    bandwidth: float


@dataclass(frozen=True)
class Simulated:
    """What a number of workers make of a suite: seconds in all, and how much of them workers and owner are busy."""

    workers: int
    seconds: float
    busy: float
    owner: float


def simulate(costs: Costs, machine: Machine, workers: int) -> Simulated:
    """Let a number of workers compute a suite; several are processes of their own, one is the owner itself."""
    schedule = Schedule(costs.cells, lambda cell: costs.seconds[cell.key], workers)
    # Work that is left, by worker: first its opening, for which it has no cells.
    left: dict[int, float] = dict.fromkeys(range(workers), machine.opening if workers > 1 else 0.0)
    given: dict[int, list[Cell]] = {worker: [] for worker in left}
    idle: list[int] = []
    arrived: list[tuple[float, list[Cell]]] = []
    now = owner = busy = 0.0
    while left or arrived or (schedule and idle):
        while schedule and idle:
            worker = idle.pop()
            given[worker] = schedule.next()
            left[worker] = sum(costs.seconds[cell.key] for cell in given[worker])
            busy += left[worker]
        # More processes than cores share them alike, until one is done or the owner has a result.
        rate = min(1.0, machine.cores / max(1, len(left)))
        done = now + min(left.values()) / rate if left else float("inf")
        heard = arrived[0][0] if arrived else float("inf")
        step = min(done, heard) - now
        left = {worker: work - step * rate for worker, work in left.items()}
        now = min(done, heard)
        if heard <= done:
            for cell in arrived.pop(0)[1]:
                schedule.settle(cell.key)
            continue
        worker = min(left, key=left.__getitem__)
        del left[worker]
        idle.append(worker)
        cells, given[worker] = given[worker], []
        if cells:
            # Results wait for the owner, one after the other; their worker does not, unless it is the owner.
            handled = sum(machine.owner + costs.sizes[cell.key] / machine.bandwidth for cell in cells)
            owner = max(owner, now) + handled
            now = owner if workers == 1 else now
            arrived.append((owner, cells))
    return Simulated(workers, costs.before + now, busy / (workers * now), _owner_seconds(costs, machine) / now)


def _owner_seconds(costs: Costs, machine: Machine) -> float:
    return sum(machine.owner + size / machine.bandwidth for size in costs.sizes.values())


def critical_path(costs: Costs) -> float:
    """Return the seconds of the longest chain of cells: no number of workers is faster."""
    ends: dict[str, float] = {}
    for key, cell in costs.cells.items():
        ends[key] = costs.seconds[key] + max((ends[i] for i in cell.inputs if i in ends), default=0.0)
    return max(ends.values(), default=0.0)


def costs_of(suite: str, run: Path, data: Path, before: float) -> Costs:
    """Read what every cell of a suite took in a run directory; cells that failed there take no time."""
    loaded = load_suite(suite)
    silent = {"on_progress": lambda event: None, "on_message": lambda text: None, "interrupt": Interrupt()}
    options = Options("cpu", None, None, False, EngineChoice(), debug=False, **silent)
    opened = open_run(loaded, data, FileDigests(cache_root()), options)
    with Store(run) as store:
        records = {record.key: record for record in store.records()}
    seconds = {key: records[key].seconds if key in records else 0.0 for key in opened.cells}
    sizes = {key: records[key].size if key in records else 0 for key in opened.cells}
    return Costs(opened.cells, seconds, sizes, before)


def main() -> None:
    """Print one line for each number of workers."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("suite")
    parser.add_argument("runs", nargs="+", help="FOLDER or FOLDER:WORKERS:SECONDS; first the one of one worker")
    parser.add_argument("--data")
    parser.add_argument("--workers", default="1,2,4,8,16,64,256,1024")
    parser.add_argument("--cores", type=int, default=0, help="of the machine; by default as many as there are workers")
    parser.add_argument("--opening", type=float, default=5.0, help="seconds until a worker has opened the run")
    parser.add_argument("--owner", type=float, default=4e-4, help="seconds of the owner for a cell")
    parser.add_argument("--bandwidth", type=float, default=400e6, help="bytes a second that the owner files")
    asked = parser.parse_args()
    folders, timed = _timed(asked.runs)
    costs = costs_of(asked.suite, folders[0], data_root(asked.data), 0.0)
    whole = timed.get(1)
    before = 0.0 if whole is None else max(0.0, whole - sum(costs.seconds.values()))
    costs = Costs(costs.cells, costs.seconds, costs.sizes, before)
    _print(costs, timed, asked)


def _timed(runs: Sequence[str]) -> tuple[list[Path], dict[int, float]]:
    folders, timed = [], {}
    for text in runs:
        folder, *more = text.split(":")
        folders.append(Path(folder))
        if more:
            timed[int(more[0])] = float(more[1])
    return folders, timed


def _print(costs: Costs, timed: Mapping[int, float], asked: Namespace) -> None:
    total, size = sum(costs.seconds.values()), sum(costs.sizes.values())
    lines = [
        f"{asked.suite}: {len(costs.cells)} cells, {total:.0f} s, the longest chain {critical_path(costs):.1f} s, "
        f"{size / 1e6:.0f} MB; {costs.before:.0f} s before and after the cells",
        "",
        "| workers | simulated, s | speed-up | measured, s | workers busy | owner busy |",
        "| --: | --: | --: | --: | --: | --: |",
    ]
    one = 0.0
    for workers in (int(w) for w in asked.workers.split(",")):
        machine = Machine(asked.cores or workers, asked.opening, asked.owner, asked.bandwidth)
        found = simulate(costs, machine, workers)
        one = one or found.seconds
        seconds = timed.get(workers)
        measured = "" if seconds is None else f"{seconds:.0f} ({100 * found.seconds / seconds - 100:+.0f} %)"
        lines.append(
            f"| {workers} | {found.seconds:.1f} | {one / found.seconds:.1f} | {measured} | {found.busy:.2f} | "
            f"{found.owner:.3f} |"
        )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
