"""What a suite of 100,000 cells costs besides computing: planning, running, storing, and finding that nothing is to do.

``python docs/studies/large_suite.py [--cells N] [--work FOLDER]``

Thirty detectors, 23 perturbations, three models and three seeds on blank images, in chunks as for 9,000 evaluate
images, and adaptive attacks, are planned; then the runner works through so many cells of the plan with an engine
that computes nothing and returns small scores, 1.7 kB for each cell, into a new run directory and a new cache. CPU
seconds of this process, so that neighbours on the machine do not count; files and bytes are those on the disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from aftershock.harness.core.cell_names import CellName
from aftershock.harness.core.content_keys import content_key
from aftershock.harness.core.formats import KEYS, seal
from aftershock.harness.data.types import Dataset, ImageSplit
from aftershock.harness.plan import Plan, make_plan
from aftershock.harness.plan.cells import Cell
from aftershock.harness.plan.models import find_weights
from aftershock.harness.run.runner import Runner
from aftershock.harness.run.up_to_date import are_whole, published, read_keys
from aftershock.harness.run.work import Outcome, Output, Task
from aftershock.harness.store.artifacts import Artifact
from aftershock.harness.store.run_directory import Store
from aftershock.harness.suite.resolve import load_suite
from aftershock.harness.suite.resolved import Suite

DETECTORS = ("msp", "energy", "entropy", "margin", "max-logit", "mahalanobis", "knn", "kde", "vim", "kl-matching")
BUDGETS = 21


def suite(evaluate: int) -> Suite:
    """Return a suite of 30 detectors, 23 perturbations, 3 models and 3 seeds."""
    detectors = [{"name": name, "label": f"{name}-{i}"} for i in range(3) for name in DETECTORS]
    eps = [round(0.005 * (i + 1), 3) for i in range(BUDGETS)]
    return load_suite(
        {
            "name": "large",
            "seeds": [0, 1, 2],
            "data": {"name": "mnist", "fit": 800, "calibrate": 400, "evaluate": evaluate},
            "threat": {"norm": "linf", "eps": eps[5]},
            "models": [{"name": "mlp", "label": f"mlp-{width}", "width": width} for width in (16, 32, 64)],
            "perturbations": [
                {"name": "gaussian", "std": 0.1},
                {"name": "pgd", "eps": eps},
                {"name": "adaptive-pgd", "eps": eps[5]},
            ],
            "detectors": detectors,
        }
    )


def blank(count: int) -> Dataset:
    """Return a data set of images of one pixel value, as many in each split."""
    labels = torch.arange(count) % 10
    split = ImageSplit((torch.arange(count * 784).reshape(count, 1, 28, 28) % 256).to(torch.uint8), labels)
    return Dataset("mnist", tuple("0123456789"), (1, 28, 28), split, split, (0.5,), (0.5,))


class NoEngine:
    """Gives back small scores for every cell at once."""

    slots = 1

    def __init__(self) -> None:
        self._tasks: list[Task] = []
        self._scores = torch.rand(200, dtype=torch.float64)

    def submit(self, task: Task) -> None:
        """Take a task."""
        self._tasks.append(task)

    def next(self, on_progress: Callable[[int, float], None], seconds: float | None = None) -> Outcome:
        """Return the outcome of a task."""
        task = self._tasks.pop()
        values = {"rows": 200, "score_seconds": 0.01}
        return Outcome(task.number, tuple(Output(cell.key, {"score": self._scores}, values) for cell in task.cells))

    def close(self) -> None:
        """End nothing."""


@contextmanager
def spent(what: str, rows: list[tuple[str, str]]) -> Iterator[None]:
    """Note the CPU seconds and the wall time of a block."""
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    rows.append((what, f"{time.process_time() - cpu:.1f} s CPU, {time.perf_counter() - wall:.1f} s wall"))


def on_disk(folder: Path) -> tuple[int, int, int]:
    """Return files, bytes and the most entries of one folder."""
    found = [p for p in folder.rglob("*") if p.is_file()]
    most = max(len(list(os.scandir(p))) for p in [folder, *(p for p in folder.rglob("*") if p.is_dir())])
    return len(found), sum(p.stat().st_size for p in found), most


SMALL = """
name = "small"
seeds = [0]
[data]
name = "digits"
fit = 100
calibrate = 40
evaluate = 40
[threat]
norm = "linf"
eps = 0.2
[[models]]
name = "mlp"
weights = "{weights}"
[[perturbations]]
name = "gaussian"
std = 0.1
[[detectors]]
name = "msp"
"""


def finished_command(place: Path, count: int) -> str:
    """Return what ``aftershock run`` takes where nothing is missing of a small suite and ``count`` cells more."""
    weights = Path(str(files("aftershock.harness.suite.builtin"))) / "weights" / "digits-mlp.safetensors"
    suite, run = place / "small.toml", place / "small"
    suite.write_text(SMALL.format(weights=weights.as_posix()), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "aftershock",
        "run",
        str(suite),
        "--out",
        str(run),
        "--cache",
        str(place / "cache"),
    ]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603
    facts, keys = json.loads((run / "run.json").read_text(encoding="utf-8")), read_keys(run)
    artifact = Artifact.of({"score": torch.rand(200, dtype=torch.float64)})
    with Store(run) as store:
        for number in range(count):
            keys.append(content_key("added", number=number))
            name = CellName("digits", "mlp", 0, "score", "msp", "", "gaussian", number)
            store.put(keys[-1], name, artifact, {"rows": 200}, 0.01)
        facts["packs"] = store.packs()
    (run / KEYS).write_text("".join(f"{key}\n" for key in sorted(keys)), encoding="ascii")
    facts["files"] |= published(run, [run / KEYS])
    del facts["checksum"]
    (run / "run.json").write_bytes(seal(facts))
    before, wall = os.times(), time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    wall, after = time.perf_counter() - wall, os.times()
    if "Nothing was missing" not in done.stdout:
        sys.exit("the run directory was not taken for finished")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return f"{cpu:.1f} s CPU, {wall:.1f} s wall"


def chosen(plan: Plan, count: int) -> Mapping[str, Cell]:
    """Return the first cells of a plan: their inputs come before them."""
    return dict(list(plan.cells.items())[:count])


def main() -> None:
    """Measure, and print a table."""
    made = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--cells", type=int, default=100_000, help="how many cells of the plan are run")
    made.add_argument("--evaluate", type=int, default=9_000, help="evaluate images of the plan")
    made.add_argument("--work", type=Path, help="folder in which run and cache are made; by default a temporary one")
    given = made.parse_args()
    rows: list[tuple[str, str]] = []
    loaded, dataset = suite(given.evaluate), blank(2 * given.evaluate)
    digest = content_key("data", count=given.evaluate)
    with spent("plan", rows):
        plan = make_plan(loaded, dataset, digest, "cpu", find_weights(loaded, Path.cwd()))
    edges = sum(len(cell.inputs) for cell in plan.cells.values())
    rows.insert(0, ("planned", f"{len(plan.cells):,} cells, {edges:,} edges"))
    cells = chosen(plan, given.cells)
    with TemporaryDirectory(dir=given.work) as place:
        run, cache = Path(place) / "run", Path(place) / "cache"
        work = partial(Runner, cells, on_progress=lambda event: None)
        with spent(f"runner around empty work, {len(cells):,} cells", rows), Store(run, cache) as store:
            work(store=store, engine=NoEngine()).run()
            stamps = {name: [*stamp] for name, stamp in store.packs().items()}
        with spent("nothing to do: all cells looked at", rows):
            if not are_whole(run, list(cells), stamps):
                sys.exit("the run directory is damaged")
        with (
            spent("the same cells found in the run directory, every artifact hashed", rows),
            Store(run, cache) as store,
        ):
            work(store=store, engine=NoEngine()).run()
        with spent("the same cells taken over from the cache", rows), Store(Path(place) / "second", cache) as store:
            work(store=store, engine=NoEngine()).run()
        for name, folder in (("run directory", run), ("cache", cache)):
            count, size, most = on_disk(folder)
            rows.append(
                (name, f"{count:,} files ({len(cells) / count:.0f} cells each), {size / 1e6:.0f} MB, "
                 f"at most {most:,} entries in a folder")
            )  # fmt: skip
        what = f"nothing to do: the whole command, {given.cells:,} cells"
        rows.append((what, finished_command(Path(place), given.cells)))
    sys.stdout.write("\n".join(["| what | measured |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in rows), ""]))


if __name__ == "__main__":
    main()
