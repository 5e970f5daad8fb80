"""The searches for the smallest perturbations of one model and seed, read from their cells."""

from __future__ import annotations

from ..plan import ModelPlan
from .finished import Finished
from .radii import Radii


def radii_of(found: Finished, model_plan: ModelPlan, detector: str = "") -> Radii:
    """Return what the search against a detector found; without one, what the search that knows none did."""
    key = model_plan.radii.get(detector)
    if key is None:
        return Radii()
    reason = found.reason(key)
    if reason:
        return Radii(reason=reason)
    tensors = found.store.load(key)
    radius, alone = (tensors[name].double().numpy() for name in ("radius", "alone"))
    return Radii(tensors["row"].long().numpy(), radius, alone, float(found.store.values(key)["reach"]))
