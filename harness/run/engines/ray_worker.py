"""What runs on the nodes of a Ray cluster: actors that compute one task after the other, and one that takes news."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...core.cell_names import CellName
from ...core.code_digests import code_digest
from ...core.content_keys import versions
from ...core.errors import UsageError
from ...core.files import file_digest
from ...store.artifacts import Artifact
from ...store.run_directory import Store
from ..context import Context
from ..work import Result, Task
from ..workers.folder import WorkFolder, remove_abandoned
from .elsewhere import Failure, Shares, opened, results_of

DECIDES_NO_NUMBER = True

# Shares are told no more often than that, in seconds.
_OFTEN = 1.0
# Bytes of cells that a worker keeps which does not see the run directory; then it begins anew.
_KEPT = 4 * 2**30


@dataclass(frozen=True)
class Surroundings:
    """What must be the same wherever cells of one run are computed.

    Attributes:
        code: digest of the code that computes.
        versions: of the libraries that numbers depend on.
    """

    code: str
    versions: Mapping[str, str]

    @staticmethod
    def here() -> Surroundings:
        """Return those of this process."""
        return Surroundings(
            code_digest("harness.run.tasks.dispatch"),
            versions("torch", "torchvision", "numpy", "scipy", "scikit-learn"),
        )

    def difference(self, other: Surroundings) -> str:
        """Return in what another process differs, in words; empty where it does not."""
        differ = [
            f"{name} {other.versions[name]} instead of {version}"
            for name, version in self.versions.items()
            if other.versions[name] != version
        ]
        if self.code != other.code:
            differ.append("another version of Aftershock")
        return " and ".join(differ)


@dataclass(frozen=True, eq=False)
class Opening:
    """What an actor is told first.

    Attributes:
        context: surroundings of the tasks.
        threads: that it may compute with.
        surroundings: those of the owner.
        files: sha256 of files that it must find at the same paths.
        folders: that it must find, too.
        proof: a file in the run directory with random content, and the digest of that: who can read it sees the run
            directory; ``None`` to send everything that is read.
        news: the actor that takes what a person should know.
    """

    context: Context
    threads: int
    surroundings: Surroundings
    files: Mapping[Path, str]
    folders: Sequence[Path]
    proof: tuple[Path, str] | None
    news: Any


@dataclass(frozen=True)
class Ready:
    """An actor that has opened the run.

    Attributes:
        node: Ray's number of the node, in hexadecimal digits, and
        name: what a person knows it by.
        shared: it sees the run directory.
    """

    node: str
    name: str
    shared: bool


@dataclass(frozen=True, eq=False)
class Carried:
    """A finished cell that goes where the run directory is not seen.

    Attributes:
        artifact: without its bytes.
        data: a reference to these in Ray's object store; ``None`` where there are none.
    """

    key: str
    name: CellName
    values: Mapping[str, Any]
    seconds: float
    artifact: Artifact
    data: Any


@dataclass(frozen=True, eq=False)
class Report:
    """What became of a task; the bytes of artifacts travel beside it.

    Attributes:
        results: of its cells.
        failure: what went wrong instead.
        missing: inputs that the worker does not have and that did not come either: nothing was computed.
        texts: sentences that a person should see.
        emptied: the cells that it was sent so far are gone.
    """

    results: Sequence[Result] = ()
    failure: Failure | None = None
    missing: Sequence[str] = ()
    texts: Sequence[str] = ()
    emptied: bool = False


def read_by(task: Task) -> list[str]:
    """Return the keys of the cells that computing a task may read."""
    return list(dict.fromkeys(key for cell in task.cells for key in cell.inputs))


class News:
    """Takes what workers tell, until the owner asks for it."""

    def __init__(self) -> None:
        self._told: list[tuple[int, float] | str] = []
        self._some = asyncio.Event()

    async def tell(self, told: tuple[int, float] | str) -> None:
        """Take the share of a task that is done, by number, or a sentence."""
        self._told.append(told)
        self._some.set()

    async def take(self) -> list[tuple[int, float] | str]:
        """Wait until there is something; return it."""
        await self._some.wait()
        self._some.clear()
        told, self._told = self._told, []
        return told


class CarriedCells:
    """Cells that came with tasks, in a folder of this process's own that looks like a run directory."""

    def __init__(self, limit: int = _KEPT) -> None:
        remove_abandoned()
        self._limit, self._size = limit, 0
        self._work = WorkFolder()
        self.folder = self._work.place
        self._store = Store(self.folder)
        self._keys: set[str] = set()

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Return those of some keys that are not here."""
        return [key for key in keys if key not in self._keys]

    def put(self, key: str, name: CellName, artifact: Artifact, values: Mapping[str, Any], seconds: float) -> None:
        """Keep a cell; raises what :meth:`Store.put` does."""
        self._store.put(key, name, artifact, values, seconds)
        self._keys.add(key)
        self._size += artifact.size

    def empty_if_full(self) -> bool:
        """Begin anew where more is kept than may be; return whether that was so."""
        if self._size <= self._limit:
            return False
        self._store.close()
        self._store, self._size = Store(self.folder, fresh=True), 0
        self._keys.clear()
        return True

    def close(self) -> None:
        """Remove the folder."""
        self._store.close()
        self._work.remove()


class RayWorker:
    """Opens a run once and computes tasks of it, one at a time, so that models stay loaded."""

    def __init__(self) -> None:
        self._held = ExitStack()
        self._cells: CarriedCells | None = None
        self._texts: list[str] = []
        self._shares = lambda number, share: None

    def open(self, opening: Opening) -> Ready | Failure:
        """Open the run, or say what is not as it is where the run's owner is."""
        import ray

        here = ray.get_runtime_context().get_node_id()
        name = f"{ray.util.get_node_ip_address()} ({here[:6]})"
        try:
            torch.set_num_threads(opening.threads)
            _require_same(opening, name)
            shared = opening.proof is not None and _reads(*opening.proof)
            context = opening.context
            if not shared:
                self._cells = self._held.enter_context(closing(CarriedCells()))
                context = replace(context, folder=self._cells.folder)
            tell = opening.news.tell.remote

            def on_message(text: str) -> None:
                self._texts.append(text)
                tell(text)

            self._compute = self._held.enter_context(opened(context, on_message))
            self._tell = tell
        except Exception as error:
            return Failure.of(error, fatal=True)
        return Ready(here, name, shared)

    def compute(self, task: Task, carried: Sequence[Carried]) -> list[Any]:
        """Return a report, and the bytes of the artifact of each cell of the task."""
        report, data = self._computed(task, carried)
        emptied = self._cells is not None and self._cells.empty_if_full()
        texts, self._texts = self._texts, []
        return [replace(report, texts=texts, emptied=emptied), *(data.get(cell.key, b"") for cell in task.cells)]

    def close(self) -> None:
        """End what was started."""
        self._held.close()

    def _computed(self, task: Task, carried: Sequence[Carried]) -> tuple[Report, Mapping[str, bytes]]:
        if self._cells is not None:
            lacking = _taken(self._cells, task, carried)
            if lacking:
                return Report(missing=lacking), {}
        found = results_of(self._compute, task, Shares(lambda share: self._tell((task.number, share)), _OFTEN))
        if isinstance(found, Failure):
            return Report(failure=found), {}
        if self._cells is not None:
            names = {cell.key: cell.name for cell in task.cells}
            for result in found:
                if result.key in names:
                    self._cells.put(result.key, names[result.key], result.artifact, result.values, result.seconds)
        sent = [replace(result, artifact=replace(result.artifact, data=b"")) for result in found]
        return Report(sent), {result.key: result.artifact.data for result in found}


def _reads(path: Path, digest: str) -> bool:
    """Return whether this process reads the content of a file."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == digest
    except OSError:
        return False


def _require_same(opening: Opening, node: str) -> None:
    """Raise ``UsageError`` where files or code of this node are not those of the owner."""
    differs = opening.surroundings.difference(Surroundings.here())
    if differs:
        raise UsageError(f"node {node} has {differs}: install the same on every node.")
    everywhere = "data, weights and code of parts must be at the same paths on every node."
    for path in opening.folders:
        if not path.is_dir():
            raise UsageError(f"node {node} has no folder {path}: {everywhere}")
    for path, digest in opening.files.items():
        if not os.access(path, os.R_OK):
            raise UsageError(f"node {node} cannot read {path}: {everywhere}")
        if file_digest(path) != digest:
            raise UsageError(f"{path} of node {node} differs from that of the run's owner: copy it there.")


def _taken(cells: CarriedCells, task: Task, carried: Sequence[Carried]) -> list[str]:
    """Keep what came with a task; return the keys of inputs that are not here."""
    import ray

    for cell in carried:
        # One after the other: only one is in memory at a time.
        if cells.missing([cell.key]):
            try:
                data = b"" if cell.data is None else ray.get(cell.data)
            except ray.exceptions.RayError:
                # Lost with the node that held it; the owner still has it.
                continue
            cells.put(cell.key, cell.name, replace(cell.artifact, data=data), cell.values, cell.seconds)
    return cells.missing(read_by(task))
