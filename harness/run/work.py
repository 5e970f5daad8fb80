"""Where cells are computed. An engine takes tasks and gives results back; only the run's owner writes.

A task is a value: its cells name their inputs by key and carry whatever else they need. Together with the surroundings
of the run (:class:`~aftershock.harness.run.context.Context`, a value, too) it can be computed in any process that
sees the run directory. What comes back are artifacts by digest, which the owner puts into its directory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ..plan.cells import Cell
from ..store.artifacts import Artifact

DECIDES_NO_NUMBER = True


@dataclass(frozen=True)
class Task:
    """Cells of one group, which are computed together, and whose inputs are stored.

    Attributes:
        number: what its outcome is known by.
        halvings: how often the usual batches of images are halved, as whoever computed it before ran out of memory.
    """

    number: int
    cells: tuple[Cell, ...]
    halvings: int = 0


@dataclass(frozen=True, eq=False)
class Output:
    """What computing one cell gave: tensors for its artifact, and small JSON values for the ledger."""

    key: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Result:
    """An output as it is stored and sent."""

    key: str
    artifact: Artifact
    values: Mapping[str, Any]
    seconds: float

    @staticmethod
    def of(output: Output) -> Result:
        """Return the result of an output; raises what :meth:`Artifact.of` does."""
        return Result(output.key, Artifact.of(output.tensors), output.values, output.seconds)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one task, by number: results of its cells, or the exception that stopped it.

    Outputs are made into results when they are stored, one after the other.
    """

    task: int
    results: tuple[Result | Output, ...] = ()
    error: BaseException | None = None


# Computes a task, and tells now and then the share that is done.
Compute = Callable[[Task, Callable[[float], None]], Sequence[Output]]


class Engine(Protocol):
    """Computes tasks, in any order and place.

    Attributes:
        slots: how many tasks it wants to hold at once.
    """

    slots: int

    def submit(self, task: Task) -> None:
        """Take a task."""

    def next(self, on_progress: Callable[[int, float], None], seconds: float | None = None) -> Outcome | None:
        """Wait for the outcome of a task that was submitted; only called while there is one.

        Args:
            on_progress: called now and then with the number of a task and the share of it that is done.
            seconds: after which an engine that computes elsewhere returns ``None``, if there is no outcome.
        """

    def close(self) -> None:
        """End what it started; tasks that it holds are lost."""
