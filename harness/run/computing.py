"""Computing the cells of a run that is planned."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..core.content_keys import FileDigests
from ..evaluation.finished import Finished
from ..plan import Plan, lost_perturbations
from ..plan.cells import Cell
from ..store.cache import SHARDS
from ..store.run_directory import Store, unwritable
from ..store.secrets import RunSecret
from ..suite.resolved import Suite
from .context import Context
from .engines.make import make_engine
from .events import ENDED, Event
from .expected import Expectation
from .opening import Opened, open_run
from .options import Options
from .rates import Rates
from .runner import Runner, choose
from .tasks import TaskContext, compute
from .work import Engine
from .workers.folder import remove_abandoned
from .workers.pool import POOL
from .workers.process import Allowance


@dataclass(frozen=True, eq=False)
class Computed:
    """What became of the cells.

    Attributes:
        finished: what there is to read.
        chosen: keys of the cells that this call was to compute.
        lost: labels of the perturbations that analyses went without, by key of the model.
    """

    finished: Finished
    chosen: Collection[str]
    lost: Mapping[str, Sequence[str]]

    @property
    def plan(self) -> Plan:
        """What was planned in the end."""
        return self.finished.plan

    @property
    def failed(self) -> dict[str, str]:
        """Reasons of cells that failed, by name."""
        return self._by_name(self.finished.summary.failed)

    @property
    def skipped(self) -> dict[str, str]:
        """Reasons of cells that cannot work here, by name."""
        return self._by_name(self.finished.summary.skipped)

    def _by_name(self, reasons: Mapping[str, str]) -> dict[str, str]:
        return {str(self.plan.cells[key].name): reason for key, reason in reasons.items()}


@contextmanager
def computed_run(
    suite: Suite, place: Path, root: Path, cache: Path, digests: FileDigests, options: Options,
    interim: Callable[[Opened], Callable[[Callable[[], Computed]], None]] = lambda opened: lambda finished: None,
) -> Iterator[tuple[Opened, Computed]]:  # fmt: skip
    """Open a run and compute what is missing of it; processes of plugins, which tables ask too, end with the block.

    Args:
        suite: resolved.
        place: the run directory.
        root: of the data sets.
        cache: shared with other runs.
        digests: remembers the digests of large files.
        options: of the run.
        interim: returns, for an opened run, what is called after each cell with what gives all that is finished.

    Raises:
        UsageError: for a mistake in the suite or the options.
        AftershockError: if the run directory cannot be written.
    """
    POOL.allow(Allowance.of(suite.limits, output=options.debug))
    # Of shards that were killed.
    remove_abandoned(cache / SHARDS)
    secret = RunSecret(place, cache, options.fresh, options.shard is not None)
    opened = open_run(suite, root, digests, options, secret.find)
    with Store(place, cache, options.fresh) as store:
        opened = _settled(opened, secret, place, options)
        with open_engine(opened, store, options) as engine:
            rates = Rates.read(cache)
            expectation = Expectation(opened.plan, opened.dataset, opened.device.type, opened.weights, rates)
            computed = compute_cells(opened, store, engine, options, expectation, interim(opened))
            _remember(computed, store, expectation, rates.faded(), cache)
            yield opened, computed


def _settled(opened: Opened, secret: RunSecret, place: Path, options: Options) -> Opened:
    """Keep the secret in the run directory, which is held; plan again where it has another one by now."""
    try:
        kept = secret.keep(opened.secret)
    except OSError as error:
        raise unwritable(place, error) from error
    if kept == opened.secret:
        return opened
    planned = partial(opened.make_plan, secret=kept)
    plan = planned()
    return replace(opened, secret=kept, make_plan=planned, plan=plan, cells=choose(plan.cells, options.only))


@contextmanager
def open_engine(opened: Opened, store: Store, options: Options) -> Iterator[Engine]:
    """Hold an engine with what its cells need; it ends with all processes that were started.

    Raises:
        UsageError: if the suite cannot be computed as the caller chose.
    """
    suite, plan = opened.suite, opened.plan
    parts = {model_plan.key: model_plan.part for model_plan in plan.models}
    worker_context = Context(
        suite, opened.root.resolve(), Path(store.folder).resolve(), plan.sets, str(opened.device), parts, opened.weights
    )
    context = TaskContext(
        suite,
        opened.dataset,
        plan.sets,
        store,
        opened.device,
        parts,
        opened.weights,
        options.on_message,
        worker_context,
    )
    try:
        engine = make_engine(
            options.engine, worker_context, store, partial(compute, context), options.on_message, options.debug
        )
        try:
            yield engine
        finally:
            engine.close()
    finally:
        context.close()


def _remember(computed: Computed, store: Store, expectation: Expectation, rates: Rates, cache: Path) -> None:
    """Keep what cells took, for the next run's estimates; a run in which nothing was computed says nothing."""
    keys = computed.finished.summary.computed
    for key in keys:
        cell = computed.plan.cells[key]
        record = store.record(key)
        like, typical = expectation.like(cell), expectation.typical(cell)
        rates.add(like, cell.kind, cell.images, record.seconds, typical, record.size)
    if keys:
        rates.write(cache)


def compute_cells(
    opened: Opened, store: Store, engine: Engine, options: Options, expected: Callable[[Cell], float],
    interim: Callable[[Callable[[], Computed]], None] = lambda finished: None,
) -> Computed:  # fmt: skip
    """Work through the plan; where perturbations failed, plan the analyses that read them again, without those.

    Args:
        opened: the run.
        store: of its cells.
        engine: computes them.
        options: of the run.
        expected: how long a cell is expected to take, in seconds.
        interim: called after each cell with what gives all that is finished.

    Raises:
        AftershockError: if the run directory cannot be written.
    """
    plan, cells = opened.plan, opened.cells

    def watched(event: Event) -> None:
        options.on_progress(event)
        if event.kind in ENDED:
            interim(lambda: Computed(Finished(plan, store, runner.summary, opened.dataset), list(cells), {}))

    runner = _runner(cells, store, engine, replace(options, on_progress=watched), expected)
    summary = runner.run()
    lost = lost_perturbations(plan, summary.done, summary.ended)
    if lost:
        plan = opened.make_plan(lost=lost)
        cells, first = choose(plan.cells, options.only), cells
        left = {key: cell for key, cell in cells.items() if key not in first}
        later = _runner(left, store, engine, options, expected).run()
        summary = summary.then(later, plan.cells)
    # What --only left out but an earlier call in this directory finished belongs to the tables.
    held = store.done()
    left_out = (cell for cell in plan.cells.values() if cell.key not in cells and cell.key in held)
    summary.done.update(cell.key for cell in left_out if store.find(cell.key, cell.name) is not None)
    return Computed(Finished(plan, store, summary, opened.dataset), list(cells), lost)


def _runner(
    cells: Mapping[str, Cell], store: Store, engine: Engine, options: Options, expected: Callable[[Cell], float]
) -> Runner:
    return Runner(
        cells, store, engine, expected, options.on_progress, options.debug, options.interrupt, options.shard
    )  # fmt: skip
