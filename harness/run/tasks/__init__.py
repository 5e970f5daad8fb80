"""Computing cells: one function per kind, each from stored inputs to an output. Nothing here writes."""

from __future__ import annotations

from .dispatch import compute
from .task_context import TaskContext, open_task_context

__all__ = ["TaskContext", "compute", "open_task_context"]
