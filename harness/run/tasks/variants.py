"""Variants of the evaluate images: those that the run's secret decides, and those that are the same in every run."""

from __future__ import annotations

from ....attacks.benign.variants import reencoded, shadows
from ...core.seeds import Draws
from ...plan.cells import VariantJob
from ..work import Output
from .task_context import TaskContext


def compute_variant(context: TaskContext, key: str, job: VariantJob) -> Output:
    """Make variants of the first evaluate images."""
    images, _, positions = context.clean("evaluate", 0, job.stop)
    if job.how == "shadow":
        made = shadows(images, Draws(job.seed, positions.tolist()), job.levels)
    else:
        made = reencoded(images)
    return Output(key, {"images": made.float()}, {"rows": len(made)})
