"""Where cells are computed. An engine takes tasks and gives results back; only the run's owner writes.

A task is a value: its cells name their inputs by key and carry whatever else they need. Together with the surroundings
of the run (:class:`~aftershock.harness.run.context.Context`, a value, too) it can be computed in any process that
sees the run directory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ...core.errors import UsageError
from ...core.registry import did_you_mean
from ...plan.cells import Cell

DECIDES_NO_NUMBER = True


@dataclass(frozen=True)
class Task:
    """Cells of one group, which are computed together, and whose inputs are stored.

    Attributes:
        number: what its outcome is known by.
    """

    number: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True, eq=False)
class Output:
    """What computing one cell gave: tensors for its artifact, and small JSON values for the ledger."""

    key: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one task, by number: outputs of its cells, or the exception that stopped it."""

    task: int
    outputs: tuple[Output, ...] = ()
    error: BaseException | None = None


# Computes a task, and tells now and then the share that is done.
Compute = Callable[[Task, Callable[[float], None]], Sequence[Output]]


class Engine(Protocol):
    """Computes tasks, in any order and place.

    Attributes:
        slots: maximum number of tasks held at once.
    """

    slots: int

    def submit(self, task: Task) -> None:
        """Take a task."""

    def next(self, on_progress: Callable[[int, float], None]) -> Outcome:
        """Wait for the outcome of a task that was submitted; only called while there is one.

        Args:
            on_progress: called now and then with the number of a task and the share of it that is done.
        """


def engine_of(name: str) -> Callable[[Compute], Engine]:
    """Return what makes the engine of a name; raises :class:`UsageError` for an unknown one."""
    if name == "local":
        from .local import LocalEngine

        return LocalEngine
    raise UsageError(f"There is no engine {name!r}{did_you_mean(name, ['local'])}; there is 'local'.")
