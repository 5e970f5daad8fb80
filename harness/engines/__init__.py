"""Where cells are computed. An engine takes tasks and gives results back; only the run's owner writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ..errors import UsageError
from ..registry import did_you_mean


@dataclass(frozen=True, eq=False)
class Output:
    """What computing one cell gave: tensors for its artifact, and small JSON values for the ledger."""

    key: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one task: outputs of its cells, or the exception that stopped it."""

    task: int
    outputs: tuple[Output, ...] = ()
    error: BaseException | None = None


class Engine(Protocol):
    """Computes tasks, in any order and place.

    Attributes:
        slots: how many tasks it wants to hold at once.
    """

    slots: int

    def submit(self, task: int, work: Callable[[], Sequence[Output]]) -> None:
        """Take a task whose inputs are stored."""

    def outcomes(self) -> Iterator[Outcome]:
        """Give outcomes until every submitted task has one; more may be submitted in between."""


def make_engine(name: str) -> Engine:
    """The engine of a name; raises :class:`UsageError` for an unknown one."""
    if name == "local":
        from .local import LocalEngine

        return LocalEngine()
    raise UsageError(f"There is no engine {name!r}{did_you_mean(name, ['local'])}; there is 'local'.")
