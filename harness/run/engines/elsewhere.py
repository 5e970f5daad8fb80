"""Computing tasks in another process than the owner's: what it opens, and how it says what went wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from ...core.errors import AftershockError
from ...core.interrupts import contained
from ...core.process_state import guarded
from ...core.registry import ANALYSES, DETECTORS, PERTURBATIONS, Registry, StandIn, plugin_host
from ...suite.instances import make_detector
from ...suite.resolved import Suite
from ..context import Context
from ..tasks import compute, open_task_context
from ..work import Compute, Result, Task
from ..workers.channel import error_message
from ..workers.pool import POOL
from ..workers.process import Allowance, raised

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

    def error(self) -> AftershockError:
        """Return the exception for the owner; one that concerns every task says so."""
        found = raised({"error": self.text, "types": self.types, "notes": self.notes})
        return AftershockError(f"A worker could not open the run: {found}") if self.fatal else found


class Shares:
    """Tells shares of a task, not too often.

    Args:
        tell: called with a share.
        seconds: between two of them at least.
    """

    def __init__(self, tell: Callable[[float], None], seconds: float) -> None:
        self._tell, self._seconds, self._last = tell, seconds, time.monotonic()

    def __call__(self, share: float) -> None:
        """Tell the share that is done."""
        now = time.monotonic()
        if now - self._last >= self._seconds:
            self._last = now
            self._tell(share)


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


def results_of(
    compute: Compute,
    task: Task,
    on_progress: Callable[[float], None],
    give: Callable[[Result], Result] = lambda result: result,
) -> Sequence[Result] | Failure:
    """Compute a task; return what its cells gave, each as ``give`` makes it when it is ready, or what went wrong."""
    try:
        with contained():
            return [give(Result.of(output)) for output in compute(task, on_progress)]
    except Exception as error:
        return Failure.of(error)


def plugin_labels(suite: Suite) -> frozenset[str]:
    """Return the labels of the parts whose code is a plugin's; a detector that is made of one counts, too.

    Their tasks are computed by one worker: what scores a detector in a fresh process stops all others of its plugin,
    and a worker knows only those that it started.
    """
    detectors = {part.label: (part.name, *make_detector(part).made_of) for part in suite.detectors}
    foreign = {label for label, names in detectors.items() if any(_is_plugin(DETECTORS, name) for name in names)}
    foreign |= {part.label for part in suite.perturbations if _is_plugin(PERTURBATIONS, part.name)}
    foreign |= {part.label for part in suite.analyses if _is_plugin(ANALYSES, part.name)}
    return frozenset(foreign)


def _is_plugin(registry: Registry, name: str) -> bool:
    return isinstance(registry.entry(name).target, StandIn)


def runs_plugin(task: Task, labels: Collection[str]) -> bool:
    """Return whether a task calls code of a part with one of these labels."""
    for cell in task.cells:
        target = getattr(cell.job, "target", None)
        parts = (getattr(cell.job, "part", None), getattr(cell.job, "detector", None), getattr(target, "part", None))
        if any(part is not None and part.label in labels for part in parts):
            return True
    return False
