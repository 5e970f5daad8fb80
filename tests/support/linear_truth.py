"""What the best attack on a linear model with a linear detector gains, in closed form."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.optimize import minimize_scalar

Vector = np.ndarray[tuple[int], np.dtype[np.float64]]


def most_gain(w: Vector, v: Vector, slack: float, eps: float, norm: Literal["linf", "l2"]) -> float:
    """Return the most that w·d gains for a change d within the budget that keeps v·d at most ``slack``.

    By duality: the least over l >= 0 of eps |w - l v|_q + l slack, with q = 1 for L-inf and 2 for L2. Minus infinity
    where no change within the budget does.
    """
    dual = 1 if norm == "linf" else 2
    if slack < -eps * np.linalg.norm(v, dual):
        return -np.inf

    def bound(multiplier: float) -> float:
        return float(eps * np.linalg.norm(w - multiplier * v, dual) + multiplier * slack)

    if norm == "linf":
        # Convex and piecewise linear: the least value is at 0 or where a term changes its sign.
        with np.errstate(divide="ignore", invalid="ignore"):
            corners = w / v
        return min(bound(m) for m in (0.0, *corners[np.isfinite(corners) & (corners > 0)]))
    top = 1e4 * np.linalg.norm(w) / np.linalg.norm(v)
    found = minimize_scalar(bound, bounds=(0, top), method="bounded", options={"xatol": 1e-12 * top, "maxiter": 2000})
    return min(bound(0.0), float(found.fun))
