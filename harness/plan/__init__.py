"""From a suite to cells: a plain list in which every cell comes after its inputs, and the map of what is where.

The plan knows names and keys, never results: which images fool a model is found out when its cells are computed.
"""

from __future__ import annotations

from .draft import stored_need
from .lost import lost_perturbations
from .plan import ModelPlan, Plan
from .planner import make_plan
from .sets import Sets

DECIDES_NO_NUMBER = True

__all__ = ["ModelPlan", "Plan", "Sets", "lost_perturbations", "make_plan", "stored_need"]
