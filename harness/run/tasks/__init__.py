"""Computing cells: one function per kind, each from stored inputs to an output. Nothing here writes."""

from __future__ import annotations

from .dispatch import compute
from .workbench import Workbench, open_bench

__all__ = ["Workbench", "compute", "open_bench"]
