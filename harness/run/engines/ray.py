"""The Ray engine: tasks are computed by actors on the nodes of a cluster; what they give comes back to the one writer.

An actor opens the run once and computes one task at a time; a task goes to one that has its model loaded, if it is
idle. Where a node sees the run directory, its actors read inputs there; elsewhere a task carries what they lack.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ...core.errors import AftershockError
from ...core.files import file_digest
from ...store.run_directory import Store
from ..context import Context
from ..events import once
from ..work import Outcome, Task
from .elsewhere import plugin_labels, runs_plugin
from .ray_cluster import Connection
from .ray_objects import SentArtifacts
from .ray_resources import needed_memory, share_out
from .ray_worker import Carried, News, Opening, RayWorker, Ready, Report, Surroundings, read_by

DECIDES_NO_NUMBER = True

# How often a task is tried whose worker or node is lost.
_TRIES = 3
# Workers that end, one after the other, before they have opened the run.
_FAILED_STARTS = 3
# Seconds of waiting without a worker after which that is told.
_PATIENCE = 30.0
# An idle actor ends at once when it is asked to.
_END = 5.0


class RayEngine:
    """Computes tasks on a Ray cluster.

    Args:
        context: surroundings of the tasks.
        store: of the run; only read.
        connection: to the cluster; closed with the engine.
        workers: how many actors compute; ``None`` for as many as there is room for.
        threads: of each; ``None`` for a fair share of the cluster's processors.
        on_message: told sentences that a person should see, each once.
        share: ``never`` to send nodes everything that they read, also where they see the run directory.
    """

    def __init__(
        self,
        context: Context,
        store: Store,
        connection: Connection,
        workers: int | None,
        threads: int | None,
        on_message: Callable[[str], None],
        share: Literal["auto", "never"] = "auto",
    ) -> None:
        self._on_message, self._say = on_message, once(on_message)
        self._waiting: deque[Task] = deque()
        self._tries: Counter[int] = Counter()
        self._failed_starts, self._waited = 0, 0.0
        self._workers: list[_Worker] = []
        self._plugins = plugin_labels(context.suite)
        self._home: _Worker | None = None
        self._connection = connection
        try:
            gpu = context.device.startswith("cuda")
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self._share = share_out(nodes, needed_memory(context.suite), gpu, workers, threads)
            self.slots = self._share.count + (self._share.count + 3) // 4
            self._sent = SentArtifacts(store, nodes)
            # With the owner, and as long as it.
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            self._news = ray.remote(News).options(num_cpus=0, scheduling_strategy=here).remote()
            self._told: Any = self._news.take.remote()
            # Every worker has its graphics processor to itself, and sees no other.
            context = replace(context, device="cuda") if gpu else context
            self._opening = _opening(context, self._share.cpus, store if share == "auto" else None, self._news)
            for _ in range(self._share.count):
                self._start()
        except BaseException:
            self.close()
            raise
        count = self._share.count
        self._say(f"Ray: {count} worker{'s' if count > 1 else ''} with {self._share} on {len(nodes)} node(s).")

    def submit(self, task: Task) -> None:
        """Give a task to a worker that is idle, else let it wait."""
        self._waiting.append(task)
        self._assign()

    def next(self, on_progress: Callable[[int, float], None], seconds: float | None = None) -> Outcome | None:
        """Wait until a task is done, or cannot be done."""
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            self._assign()
            left = 1.0 if until is None else min(1.0, max(0.0, until - time.monotonic()))
            awaited = {worker.awaited: worker for worker in self._workers if worker.awaited is not None}
            with _one_sentence():
                ready, _ = ray.wait([*awaited, *([] if self._told is None else [self._told])], timeout=left)
            if not ready:
                if until is not None and time.monotonic() >= until:
                    return None
                self._wait_on()
            for reference in ready:
                if reference == self._told:
                    self._hear(on_progress)
                    continue
                worker = awaited[reference]
                if worker.task is None:
                    self._opened(worker)
                    continue
                outcome = self._ended(worker, worker.task)
                if outcome is not None:
                    # Workers go on while the owner writes.
                    self._assign()
                    return outcome

    def close(self) -> None:
        """End the actors, and the cluster if it was started for them."""
        with suppress(Exception):
            # Those that keep a folder remove it.
            asked = [w.actor.close.remote() for w in self._workers if w.ready is not None and w.task is None]
            if asked:
                ray.wait(asked, num_returns=len(asked), timeout=_END)
        for actor in [*(worker.actor for worker in self._workers), getattr(self, "_news", None)]:
            with suppress(Exception):
                ray.kill(actor)
        self._workers.clear()
        self._connection.close()

    def _start(self) -> None:
        """Ask for a worker; it may be long before a node has room for it."""
        share = self._share
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "memory": share.memory}
        actor = ray.remote(RayWorker).options(scheduling_strategy="SPREAD", **options).remote()
        self._workers.append(_Worker(actor, actor.open.remote(self._opening)))

    def _assign(self) -> None:
        """Give tasks to workers that are idle."""
        idle = [worker for worker in self._workers if worker.ready is not None and worker.task is None]
        for task in list(self._waiting):
            able = idle
            if runs_plugin(task, self._plugins):
                # All code of plugins runs in one worker.
                if self._home not in self._workers:
                    self._home = idle[0] if idle else None
                able = [worker for worker in idle if worker is self._home]
            if not able:
                continue
            self._waiting.remove(task)
            # One that has the model, else one that has none yet.
            worker = min(able, key=lambda w: (w.fits(task), w.count))
            idle.remove(worker)
            worker.alone = sum(each.ready is not None for each in self._workers) == 1
            worker.give(task, self._sent)

    def _opened(self, worker: _Worker) -> None:
        """Take note of a worker that has opened the run, or could not."""
        try:
            found = ray.get(worker.awaited)
        except ray.exceptions.RayError as error:
            self._workers.remove(worker)
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS:
                raise AftershockError(
                    f"Workers of the Ray cluster end before they have opened the run: {_last_line(error)}"
                ) from error
            self._start()
            return
        if not isinstance(found, Ready):
            raise found.error()
        self._failed_starts, self._waited = 0, 0.0
        worker.ready, worker.awaited = found, None
        for other in self._workers:
            other.alone = False
        if not found.shared:
            self._sent.needed = True
            self._say(f"Node {found.name} does not see the run directory: it is sent what its cells read.")

    def _ended(self, worker: _Worker, task: Task) -> Outcome | None:
        """Return the outcome of a task that a worker is done with; ``None`` where it is tried again."""
        try:
            report: Report = ray.get(worker.results[0])
            data = ray.get(worker.results[1:])
        except ray.exceptions.OutOfMemoryError:
            return self._out_of_memory(task, worker)
        except ray.exceptions.RayTaskError as error:
            # What the actor gave could not be sent, say; it goes on.
            worker.take()
            return Outcome(task.number, error=AftershockError(_last_line(error)))
        except ray.exceptions.RayError:
            self._replace(worker)
            return self._again(task, worker)
        references = worker.results[1:]
        worker.take()
        for text in report.texts:
            self._say(text)
        if report.missing:
            worker.held.difference_update(report.missing)
            self._sent.forget(report.missing)
            self._waiting.appendleft(task)
            return None
        if report.emptied:
            worker.held.clear()
        if report.failure is not None:
            return Outcome(task.number, error=report.failure.error())
        by_key = {cell.key: i for i, cell in enumerate(task.cells)}
        results = []
        for result in report.results:
            place = by_key.get(result.key)
            if place is None:
                continue
            results.append(replace(result, artifact=replace(result.artifact, data=data[place])))
            self._sent.keep(result, references[place])
            if not report.emptied:
                worker.held.add(result.key)
        self._tries.pop(task.number, None)
        return Outcome(task.number, tuple(results))

    def _replace(self, worker: _Worker) -> None:
        """Let another worker take the place of one that is gone, or is to be."""
        self._drop(worker)
        self._start()

    def _drop(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        with suppress(Exception):
            ray.kill(worker.actor)

    def _out_of_memory(self, task: Task, worker: _Worker) -> Outcome | None:
        """Compute a task again in half the batches, with one worker less; its failure where that was tried enough.

        Ray ends some of a node's workers, not only the one that took the memory.
        """
        self._tries[task.number] += 1
        what = f"Ray ended it on {worker.place}, whose memory was full"
        if self._tries[task.number] >= _TRIES:
            self._replace(worker)
            return Outcome(task.number, error=AftershockError(
                f"{what}, also with a quarter of the batch: use fewer workers (--workers), or nodes with more memory"
            ))  # fmt: skip
        # Ray may end all of them at once.
        alone = worker.alone or len(self._workers) == 1
        (self._replace if alone else self._drop)(worker)
        fewer = "" if alone else ", with one worker less"
        self._on_message(f"{task.cells[0].name}: {what}; it is computed again in half the batches{fewer}.")
        self._waiting.appendleft(replace(task, halvings=task.halvings + 1))
        return None

    def _again(self, task: Task, worker: _Worker) -> Outcome | None:
        """Let another worker compute a task whose worker is gone; its failure where that was tried often enough."""
        self._tries[task.number] += 1
        self._sent.forget(read_by(task))
        # The cluster notices many seconds later that a whole node is lost.
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        here = worker.ready is not None and worker.ready.node in alive
        what = f"{'its process on ' if here else ''}{worker.place} was lost"
        if self._tries[task.number] >= _TRIES:
            return Outcome(task.number, error=AftershockError(
                f"{what}, the last of {_TRIES} that computed it (too little memory there, or a crash in a library)"
            ))  # fmt: skip
        self._on_message(f"{task.cells[0].name}: {what}, so another worker computes it.")
        self._waiting.appendleft(task)
        return None

    def _hear(self, on_progress: Callable[[int, float], None]) -> None:
        """Take the news of workers."""
        try:
            told = ray.get(self._told)
        except ray.exceptions.RayError:
            # Ended for want of memory, say: results come without it, too.
            self._told = None
            return
        self._told = self._news.take.remote()
        running = {worker.task.number for worker in self._workers if worker.task is not None}
        for each in told:
            if isinstance(each, str):
                self._say(each)
            elif each[0] in running:
                on_progress(*each)

    def _wait_on(self) -> None:
        """Tell once that there is no worker yet."""
        if all(worker.ready is None for worker in self._workers):
            self._waited += 1.0
            if self._waited >= _PATIENCE:
                self._say(f"No node of the Ray cluster has room for a worker with {self._share} yet; waiting.")


class _Worker:
    """An actor as the owner sees it.

    Attributes:
        awaited: what to wait for: that it has opened the run, or its task's report; ``None`` for one that is idle.
        ready: since it has opened the run.
        task: that it computes, and
        results: references to what that gives.
        held: keys of the cells that it has, where it does not see the run directory.
        count: how many tasks it was given.
        alone: there has been no other since it got its task.
    """

    def __init__(self, actor: Any, opening: Any) -> None:
        self.actor, self.awaited = actor, opening
        self.ready: Ready | None = None
        self.task: Task | None = None
        self.results: list[Any] = []
        self.held: set[str] = set()
        self.count, self.alone = 0, False
        # As many as it keeps loaded.
        self._models: deque[str] = deque(maxlen=2)

    @property
    def place(self) -> str:
        """The node on which it is, in words."""
        return f"node {self.ready.name}" if self.ready is not None else "a node"

    def fits(self, task: Task) -> int:
        """Return how well a task suits it: 0 where its model is loaded, 1 where none is, 2 where others are."""
        return 0 if _model(task) in self._models else 1 if not self._models else 2

    def give(self, task: Task, sent: SentArtifacts) -> None:
        """Let it compute a task."""
        carried: Sequence[Carried] = ()
        if self.ready is not None and not self.ready.shared:
            lacking = [key for key in read_by(task) if key not in self.held]
            carried = [sent.carried(key) for key in lacking]
            self.held.update(lacking)
        model = _model(task)
        if model in self._models:
            self._models.remove(model)
        self._models.append(model)
        self.task, self.count = task, self.count + 1
        self.results = self.actor.compute.options(num_returns=1 + len(task.cells)).remote(task, carried)
        self.awaited = self.results[0]

    def take(self) -> None:
        """It is idle."""
        self.task, self.awaited, self.results = None, None, []


def _opening(context: Context, threads: int, store: Store | None, news: Any) -> Opening:
    """Return what actors are told; ``store``: where they may see the run directory."""
    suite = context.suite
    files = [*suite.plugins, *(path for path in context.weights.values() if path is not None)]
    for part in suite.models:
        where = (part.factory or "").rpartition(":")[0]
        if where.endswith(".py"):
            files.append((suite.folder / Path(where).expanduser()).resolve())
    proof = None
    if store is not None:
        content = secrets.token_bytes(32)
        path = store.incoming() / f"seen-{secrets.token_hex(8)}"
        path.write_bytes(content)
        proof = (path, sha256(content).hexdigest())
    digests = {path: file_digest(path) for path in files}
    folders = [context.root] if context.root.is_dir() else []
    return Opening(context, threads, Surroundings.here(), digests, folders, proof, news)


def _model(task: Task) -> str:
    """Return the key of the model that a task computes with."""
    cell = task.cells[0]
    return str(getattr(cell.job, "model", cell.key))


def _last_line(error: Exception) -> str:
    """Return what Ray says of an error, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Say that the cluster itself is gone."""
    try:
        yield
    except ray.exceptions.RayError as error:
        raise AftershockError(f"The Ray cluster is gone: {_last_line(error)}; the same command goes on") from error
