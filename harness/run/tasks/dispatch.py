"""Which function computes which kind of cell."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...core.batches import smaller_batches
from ...core.errors import AftershockError
from ...core.model_state import one_thread
from ...core.process_state import guarded, noted
from ...core.seeds import derive_seed, forked_rng
from ...plan.cells import (
    AlarmJob,
    AnalysisJob,
    ControlJob,
    DerivedJob,
    ExtraJob,
    FitJob,
    ModelJob,
    PastAllJob,
    PerturbJob,
    PreparationJob,
    RadiusJob,
    RehearsalJob,
    ScoreJob,
    TraceJob,
    VariantJob,
)
from ..work import Output, Task
from .adaptive import compute_adaptive
from .alarms import compute_alarms
from .analyses import compute_analysis, compute_preparation
from .detectors import compute_fit, compute_scores
from .past_all import compute_past_all
from .perturbations import compute_control, compute_derived, compute_perturbed
from .radii import compute_radius
from .rehearsal import compute_rehearsal
from .task_context import TaskContext
from .traces import compute_extra, compute_traces
from .variants import compute_variant

# Values of an image below which one thread is faster than several (the digits have 64, MNIST 784).
SMALL_IMAGE = 512

_COMPUTE: dict[type, Callable[[TaskContext, str, Any], Output]] = {
    ModelJob: lambda context, key, job: context.make_model(key, job),
    RehearsalJob: compute_rehearsal,
    AlarmJob: compute_alarms,
    PastAllJob: compute_past_all,
    PerturbJob: lambda context, key, job: _perturb(context, key, job),
    RadiusJob: compute_radius,
    VariantJob: compute_variant,
    DerivedJob: compute_derived,
    ControlJob: compute_control,
    ExtraJob: compute_extra,
    FitJob: compute_fit,
    ScoreJob: compute_scores,
    PreparationJob: compute_preparation,
    AnalysisJob: compute_analysis,
}


def _perturb(context: TaskContext, key: str, job: PerturbJob) -> Output:
    if job.target is None:
        return compute_perturbed(context, key, job)
    return compute_adaptive(context, key, job, job.target)


def compute(context: TaskContext, task: Task, on_progress: Callable[[float], None]) -> list[Output]:
    """Compute the cells of a task; several at once only for traces of the same images.

    Long cells call ``on_progress`` now and then with the share that is done. Whatever a cell does to the
    process's state is undone at its end, and each begins with random numbers of its own.

    Raises:
        AftershockError: if state that numbers depend on was left changed outside the calls of a part, each of which is
            guarded itself: what the harness computed after that cannot be trusted.
    """
    context.on_progress, cells = on_progress, task.cells
    start = time.perf_counter()
    together = isinstance(cells[0].job, TraceJob)
    small = math.prod(context.dataset.shape) < SMALL_IMAGE
    seeded = forked_rng(derive_seed(0, "cell", cells[0].group))
    with guarded() as left, seeded, one_thread(small), smaller_batches(task.halvings):
        if together:
            outputs = compute_traces(context, cells)
        else:
            outputs = [_COMPUTE[type(cell.job)](context, cell.key, cell.job) for cell in cells]
    context.tidy()
    if left.numbers:
        raise AftershockError(
            f"the process's {', '.join(left.all)} changed while this was computed, so its numbers cannot be trusted: "
            "code that needs another state has to put the old one back (a `with` block does)"
        )
    seconds = (time.perf_counter() - start) / len(cells)
    return [replace(output, seconds=output.seconds or seconds, values=noted(output.values, left)) for output in outputs]
