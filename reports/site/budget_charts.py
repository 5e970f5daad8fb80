"""Budget curves as charts of pages about one detector or one attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10
from typing import Any

from .drawing import Chart, Line, drawn, percent_ticks

_TICKS = 7


def budget_chart(
    data: Mapping[str, Any] | None, detector: int, measure: int, title: str, y_title: str, attack: str = ""
) -> dict[str, Any] | None:
    """Return a chart and its legend (name, tone, dashed); ``None`` where no attack has several budgets.

    Args:
        data: as :func:`~.budgets.curve_data` gives it; its first norm is drawn.
        detector: place of the detector among the data's.
        measure: place of the measure.
        title: for the figure's file and for who cannot see it.
        y_title: beside the axis.
        attack: the only attack that is drawn; empty: all are.
    """
    if data is None:
        return None
    face, lines, legend = data["norms"][0], [], []
    for norm, own, number, points in data["series"]:
        name, knows = data["attacks"][number]
        if norm or own != detector or (attack and name != attack):
            continue
        shares = [(point[0], *point[2 + measure]) for point in points]
        known = [(log10(x), value, low, high) for x, value, low, high in shares if x > 0 and value is not None]
        if len(known) > 1:
            lines.append(Line(name, [(x, y) for x, y, *_ in known], number, not knows, known))
            legend.append((f"{name} (knows the detector)" if knows else name, number, not knows))
    if not lines:
        return None
    ticks = [(log10(x), text) for x, text in face["ticks"] if x > 0]
    low, high = min(x for x, _ in ticks), max(x for x, _ in ticks)
    pad = (high - low) * 0.05 or 0.1
    guides = [(log10(face["threat"]), "the threat model's budget")] if face["threat"] else []
    x_title = " ".join(t for t in ("budget,", face["name"], face["unit"], "(log scale)") if t)
    chart = Chart(title, x_title, y_title, _spaced(ticks), percent_ticks(), (low - pad, high + pad), (0.0, 1.0), lines,
                  guides)  # fmt: skip
    return {"svg": drawn(chart, 460, 320), "legend": legend}


def _spaced(ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    step = -(-len(ticks) // _TICKS)
    return list(reversed(ticks))[:: step or 1]
