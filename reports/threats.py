"""How norms and budgets are written: on pages, on the console and in exports alike."""

from __future__ import annotations

from .text_tables import DASH

NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}


def budget(norm: str, eps: str) -> str:
    """``L∞ ≤ 8/255``: a long decimal that is a whole number of 255ths is written as one."""
    try:
        value = float(eps)
    except ValueError:
        shown = eps
    else:
        levels = value * 255
        whole = 0.5 < levels < 255.5 and abs(levels - round(levels)) < 1e-3
        short = float(f"{value:.3g}") == value  # it was written as 0.2, and not as 51/255
        shown = f"{round(levels)}/255" if whole and norm == "linf" and not short else f"{value:.3g}"
    name = NORMS.get(norm, norm)
    if name and not shown:
        return f"{name}, minimised"
    return f"{name} ≤ {shown}" if shown and name else name or shown or DASH
