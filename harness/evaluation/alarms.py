"""False alarms under attack: how small a change makes a detector flag an image that the model is right about."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..statistics.detection import MIN_IMAGES

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Alarms:
    """What was found for one detector, model and seed.

    Attributes:
        rows: int (n,), the rows of the evaluate set that were looked at: the model is right about them, and the
            detector lets them pass.
        radius: float (n,), the measured size of the smallest change that was found after which the model is still right
            and the image is flagged, in the threat's norm; infinite where none was found.
        reason: why there are none; empty where there are, or where no search was planned.
    """

    rows: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    radius: FloatArray = field(default_factory=lambda: np.zeros(0, np.float64))
    reason: str = ""

    def share(self, eps: float) -> float | None:
        """Return the share of images with a false alarm within a budget; ``None`` from fewer than 30."""
        return float(within_reach(self.radius, eps).mean()) if len(self.rows) >= MIN_IMAGES else None


def within_reach(radius: FloatArray, eps: float) -> BoolArray:
    """Return which measured sizes keep to a budget, float32 rounding allowed for."""
    return np.asarray(radius <= eps * (1 + 1e-4) + 1e-6)
