"""False alarms under attack, read from their cells."""

from __future__ import annotations

import numpy as np

from ..plan import ModelPlan
from ..suite.resolved import DetectorPart
from .alarms import Alarms
from .finished import Finished


def alarms_of(found: Finished, model_plan: ModelPlan, part: DetectorPart) -> Alarms:
    """Return what was found for a detector, or why there is nothing where it was planned."""
    key = model_plan.alarms.get(part.label)
    if key is None:
        return Alarms()
    if reason := found.reason(key):
        return Alarms(reason=reason)
    made = found.store.load(key)
    radius = made[f"norm:{found.plan.suite.threat.norm}"].double()
    reached = made["flagged"] & ~made["success"]
    return Alarms(made["row"].numpy(), np.where(reached.numpy(), radius.numpy(), np.inf))
