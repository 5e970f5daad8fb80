"""What a run would do, before it does it: its cells, what they are expected to take, and which of them are there."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core.content_keys import FileDigests
from ..core.interrupts import Interrupt, contained
from ..store.cells import Cells
from ..store.secrets import RunSecret

if TYPE_CHECKING:
    from ..plan.cells import Cell
    from ..suite.resolved import Suite
    from .expected import Basis, Expectation

DECIDES_NO_NUMBER = True

State = Literal["to compute", "in the run", "in the cache"]
# By how much estimates are wrong, either way: most are within.
_WITHIN = {"measured": 1.5, "similar": 2.0, "typical": 3.0}
# Seconds of a run besides its cells: processes start, tables and pages are written.
_START, _PAGES = 7.0, 0.004
# Bytes of the process that writes tables and pages, of a worker beside it, and of activations per number of a batch.
_PROCESS, _WORKER, _ACTIVATIONS = 950 * 2**20, 700 * 2**20, 200.0
_PAGES_BYTES = 3 * 2**20


@dataclass(frozen=True)
class PlannedCell:
    """A cell of a run that has not begun.

    Attributes:
        name: what ``--only`` matches.
        kind: what it does.
        part: the perturbation, detector or analysis that it is about; empty for a model's own.
        detector: the one that it is computed for; empty where several or none need it.
        images: how many it handles at most.
        passes: forward passes of single images, a backward one counted as two; typical.
        seconds: expected, of one worker.
        basis: where the seconds come from: ``measured``, ``similar`` or ``typical``.
        stored: expected bytes on the disk.
        state: whether it has to be computed.
    """

    name: str
    kind: str
    part: str
    detector: str
    images: int
    passes: float
    seconds: float
    basis: Basis
    stored: float
    state: State


@dataclass(frozen=True)
class Preview:
    """What a run would do.

    Attributes:
        suite: its name.
        dataset: the name of its data set.
        images: number of images of each set, after ``limit``.
        models, seeds, perturbations, detectors: of the suite.
        cells: those that the run would compute or take over, in the order of the plan.
        seconds: expected until the report is there.
        low, high: between which most such runs end.
        workers: processes that compute.
        memory: expected bytes of all processes together.
        disk: expected bytes of the run directory.
        notes: what a person should know about the suite.
    """

    suite: str
    dataset: str
    images: Mapping[str, int]
    models: Sequence[str]
    seeds: Sequence[int]
    perturbations: Sequence[str]
    detectors: Sequence[str]
    cells: Sequence[PlannedCell]
    seconds: float
    low: float
    high: float
    workers: int
    memory: float
    disk: float
    notes: Sequence[str]


def preview(
    suite: str | Path | Mapping[str, Any] | Suite,
    out: Path | str | None = None,
    *,
    data: Path | str | None = None,
    device: str = "auto",
    plugins: Sequence[Path | str] = (),
    limit: int | None = None,
    only: str | None = None,
    cache: Path | str | None = None,
    workers: int | None = None,
) -> Preview:
    """Return what :func:`aftershock.run` would do with the same arguments.

    Nothing is trained and no weights are loaded; of what it reads, the cache remembers the digests.

    A model that a user's own function makes is made, since its weights decide which cells are there.

    Raises:
        UsageError: for a mistake in the suite or the options, and for data or weights that are missing.
    """
    from ..core.process_state import guarded
    from ..suite.resolve import load_suite
    from ..suite.resolved import Suite
    from .expected import Expectation
    from .opening import open_run
    from .options import EngineChoice, Options
    from .rates import Rates
    from .roots import cache_root, data_root

    root, shared = data_root(data), cache_root(cache)
    notes: list[str] = []
    options = Options(
        device, limit, only, False, EngineChoice(workers=workers), lambda event: None, notes.append, False, Interrupt()
    )
    with contained(), guarded():
        loaded = suite if isinstance(suite, Suite) else load_suite(suite, tuple(Path(p) for p in plugins))
        place = Path(out or Path("runs") / loaded.name)
        secret = RunSecret(place, shared, False, False)
        opened = open_run(loaded, root, FileDigests(shared / "digests.json"), options, secret.find)
    expectation = Expectation(opened.plan, opened.dataset, opened.device.type, opened.weights, Rates.read(shared))
    own, cached = _done(place), _done(shared)
    detectors = {part.label for part in loaded.detectors}
    states: dict[str, State] = {
        key: "in the run" if key in own else "in the cache" if key in cached else "to compute" for key in opened.cells
    }
    cells = [_planned(cell, expectation, detectors, states[key]) for key, cell in opened.cells.items()]
    slots = workers or 1
    missing = {key: cell for key, cell in opened.cells.items() if states[key] == "to compute"}
    seconds = max(sum(map(expectation, missing.values())) / slots, _longest(missing, expectation))
    rest = _START + _PAGES * len(cells) if missing else 1.0
    low, high = _between(cells, seconds)
    values = math.prod(opened.dataset.shape)
    batch = min(256, max(len(opened.plan.sets.of(name)) for name in ("fit", "calibrate", "evaluate")))
    memory = _PROCESS + (slots * _WORKER if slots > 1 else 0) + slots * _ACTIVATIONS * batch * values
    return Preview(
        suite=loaded.name,
        dataset=loaded.data.name,
        images={name: len(opened.plan.sets.of(name)) for name in ("fit", "calibrate", "evaluate")},
        models=[part.label for part in loaded.models],
        seeds=list(loaded.seeds),
        perturbations=[part.label for part in loaded.perturbations],
        detectors=[part.label for part in loaded.detectors],
        cells=cells,
        seconds=seconds + rest,
        low=low + rest,
        high=high + rest,
        workers=slots,
        memory=memory,
        disk=_PAGES_BYTES + sum(cell.stored for cell in cells),
        notes=notes,
    )


def _planned(cell: Cell, expectation: Expectation, detectors: Collection[str], state: State) -> PlannedCell:
    expected, part = expectation.of(cell), cell.name.part
    against = part.rpartition("@")[2]
    detector = part if part in detectors else against if "@" in part and against in detectors else ""
    return PlannedCell(
        str(cell.name), cell.kind, part, detector, cell.images, expectation.passes(cell), expected.seconds,
        expected.basis, expectation.stored(cell), state,
    )  # fmt: skip


def _done(folder: Path) -> set[str]:
    """Return the keys of the cells that a folder has; what is damaged is computed again, which is not looked for."""
    try:
        found = Cells(folder)
        found.refresh()
        return found.done()
    except OSError:
        return set()


def _longest(cells: Mapping[str, Cell], seconds: Expectation) -> float:
    """Return what the longest chain of cells takes that wait for each other."""
    ends: dict[str, float] = {}
    for key, cell in cells.items():
        ends[key] = seconds(cell) + max((ends.get(needed, 0.0) for needed in cell.inputs), default=0.0)
    return max(ends.values(), default=0.0)


def _between(cells: Sequence[PlannedCell], seconds: float) -> tuple[float, float]:
    """Return the ends of the range that is likely: estimates of many cells are wrong together."""
    missing = [cell for cell in cells if cell.state == "to compute"]
    total = sum(cell.seconds for cell in missing)
    if not total:
        return 0.0, 0.0
    low = sum(cell.seconds / _WITHIN[cell.basis] for cell in missing)
    high = sum(cell.seconds * _WITHIN[cell.basis] for cell in missing)
    return seconds * low / total, seconds * high / total
