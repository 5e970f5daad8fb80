"""Computing tasks in another process than the owner's: what it opens, and how it says what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from ...core.interrupts import contained
from ...core.process_state import guarded
from ...core.registry import plugin_host
from ..context import Context
from ..tasks import compute, open_task_context
from ..work import Compute, Result, Task
from ..workers.channel import error_message
from ..workers.pool import POOL
from ..workers.process import Allowance

DECIDES_NO_NUMBER = True


@dataclass(frozen=True)
class Failure:
    """An exception as another process is told of it.

    Attributes:
        text: in one line.
        types: names of its class and of those it inherits from.
        notes: added to it.
        fatal: it concerns every task: what they need could not be opened.
    """

    text: str
    types: tuple[str, ...]
    notes: tuple[str, ...] = ()
    fatal: bool = False

    @staticmethod
    def of(error: BaseException, fatal: bool = False) -> Failure:
        """Return what there is to tell of an exception."""
        text, types = error_message(error)
        return Failure(text, tuple(types), tuple(getattr(error, "__notes__", ())), fatal)


@contextmanager
def opened(context: Context, on_message: Callable[[str], None]) -> Iterator[Compute]:
    """Open the data, the plugins and the stored cells of a run, and hold them.

    Args:
        context: what the run's owner tells.
        on_message: called with sentences that a person should see.
    """
    with guarded():
        POOL.allow(Allowance.of(context.suite.limits))
        for path in context.suite.plugins:
            plugin_host().open_file(path)
        task_context = open_task_context(context, on_message)
    try:
        yield partial(compute, task_context)
    finally:
        task_context.close()


def results_of(compute: Compute, task: Task, on_progress: Callable[[float], None]) -> Sequence[Result] | Failure:
    """Compute a task; return what its cells gave, or what went wrong."""
    try:
        with contained():
            return [Result.of(output) for output in compute(task, on_progress)]
    except Exception as error:
        return Failure.of(error)
