"""What a suite of 100,000 cells costs besides computing: planning, running, storing, and finding that nothing is to do.

``python docs/studies/large_suite.py [--cells N] [--work FOLDER]``

Thirty detectors, 23 perturbations, three models and three seeds on blank images, in chunks as for 9,000 evaluate
images, and adaptive attacks, are planned; then the runner works through so many cells of the plan with an engine
that computes nothing and returns small scores, 1.7 kB for each cell, into a new run directory and a new cache. CPU
seconds of this process, so that neighbours on the machine do not count; files and bytes are those on the disk.
"""

from __future__ import annotations

import os
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from aftershock.harness.core.content_keys import content_key
from aftershock.harness.data.types import Dataset, ImageSplit
from aftershock.harness.plan import Plan, make_plan
from aftershock.harness.plan.cells import Cell
from aftershock.harness.plan.models import find_weights
from aftershock.harness.run.runner import Runner
from aftershock.harness.run.up_to_date import are_whole
from aftershock.harness.run.work import Outcome, Output, Task
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
    files = [p for p in folder.rglob("*") if p.is_file()]
    most = max(len(list(os.scandir(p))) for p in [folder, *(p for p in folder.rglob("*") if p.is_dir())])
    return len(files), sum(p.stat().st_size for p in files), most


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
            files, size, most = on_disk(folder)
            rows.append(
                (name, f"{files:,} files ({len(cells) / files:.0f} cells each), {size / 1e6:.0f} MB, "
                 f"at most {most:,} entries in a folder")
            )  # fmt: skip
    sys.stdout.write("\n".join(["| what | measured |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in rows), ""]))


if __name__ == "__main__":
    main()
