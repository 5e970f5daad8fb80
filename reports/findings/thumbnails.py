"""Small pictures of findings for the front page: the first figure without words, as SVG or PNG in the page itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..read.run_directory import quantity
from .figures import colour_range, data_address, drawn, picture

if TYPE_CHECKING:
    from markupsafe import Markup
    from torch import Tensor

    from ...analyses.findings import Findings, HeatMaps, Lines, Pictures, Points

WIDTH, HEIGHT = 240, 112
_EDGE = 6
# The colours of style.css (--scale-*): dark to light where values have an order, two hues where zero is the middle.
SEQUENTIAL = ((38, 24, 74), (62, 76, 138), (38, 130, 142), (74, 183, 120), (190, 217, 74), (253, 231, 120))
DIVERGING = ((176, 88, 20), (230, 162, 98), (240, 240, 240), (116, 169, 214), (24, 94, 162))


def thumbnail(findings: Findings) -> Markup | None:
    """Return a picture of the first figure that has something to show; ``None`` without one."""
    from markupsafe import Markup

    from ...analyses.findings import HeatMaps, Lines, Points

    for figure in findings.figures[:8]:
        if isinstance(figure, Lines):
            inside = _lines(figure)
        elif isinstance(figure, HeatMaps):
            inside = _heatmaps(figure)
        elif isinstance(figure, Points):
            inside = _points(figure)
        else:
            inside = _pictures(figure)
        if inside:
            text = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">{inside}</svg>'
            return Markup(text)  # noqa: S704 - numbers, colours and base64 only
    return None


def _lines(figure: Lines) -> str:
    data = drawn(figure).data
    if not data:
        return ""
    curves: list[list[float | None]] = [s["y"] for s in data["series"][:8]]
    known = [y for curve in curves for y in curve if y is not None]
    low, high = data["y_range"] or (min(known, default=0.0), max(known, default=1.0))
    at = list(range(len(data["x"]))) if data["categorical"] or None in data["x"] else data["x"]
    x, y = _scale(at, WIDTH), _scale([low, high], HEIGHT)
    made = []
    for i, curve in enumerate(curves):
        dash = {"dashed": ' stroke-dasharray="5 4"', "dotted": ' stroke-dasharray="1.5 4"'}.get(
            data["series"][i]["style"], ""
        )
        path, pen = "", "M"
        for position, value in zip(at, curve, strict=True):
            if value is None:
                pen = "M"
                continue
            path += f"{pen}{x(position):.1f} {HEIGHT - y(min(max(value, low), high)):.1f}"
            pen = "L"
        made.append(f'<path d="{path}" fill="none" stroke="var(--series-{i % 7})" stroke-width="2"{dash}/>')
    return "".join(made)


def _scale(values: Sequence[float], length: int) -> _Scale:
    return _Scale(min(values), max(values), length)


class _Scale:
    def __init__(self, low: float, high: float, length: int) -> None:
        self._low, self._span, self._length = low, (high - low) or 1.0, length

    def __call__(self, value: float) -> float:
        share = (value - self._low) / self._span
        return _EDGE + (share if math.isfinite(share) else 0.5) * (self._length - 2 * _EDGE)


def _heatmaps(figure: HeatMaps) -> str:
    panels = [p.values.float() for p in figure.panels[:64] if p.values.numel()]
    if not panels:
        return ""
    chosen = [panels[i] for i in sorted({0, len(panels) // 2, len(panels) - 1})][-2:]
    low, high = colour_range(figure)
    side = HEIGHT - 2 * _EDGE
    left = (WIDTH - len(chosen) * side - (len(chosen) - 1) * 10) / 2
    return "".join(
        f'<image x="{left + i * (side + 10):.0f}" y="{_EDGE}" width="{side}" height="{side}" '
        f'preserveAspectRatio="none" style="image-rendering:pixelated" href="{_coloured(v, low, high)}"/>'
        for i, v in enumerate(chosen)
    )


def _coloured(values: Tensor, low: float, high: float) -> str:
    import torch
    from PIL import Image

    rows, columns = (torch.linspace(0, n - 1, min(n, 100)).round().long() for n in values.shape)
    small = values[rows][:, columns]
    colours = torch.tensor(DIVERGING if low < 0 < high else SEQUENTIAL, dtype=torch.float32)
    share = ((small.double() - low) / (high - low)).clamp(0, 1).nan_to_num(0.0).float() * (len(colours) - 1)
    below = share.floor().long().clamp(max=len(colours) - 2)
    part = (share - below)[..., None]
    rgb = colours[below] * (1 - part) + colours[below + 1] * part
    alpha = torch.isfinite(small).float()[..., None] * 255
    return data_address(Image.fromarray(torch.cat([rgb, alpha], -1).round().to(torch.uint8).numpy()))


def _points(figure: Points) -> str:
    import torch

    at = figure.coordinates.float()[:, :2]
    finite = torch.isfinite(at).all(1)
    at, group = at[finite], figure.group[finite]
    if not len(at):
        return ""
    chosen = torch.linspace(0, len(at) - 1, min(len(at), 250)).long()
    places, groups = at[chosen].double().tolist(), group[chosen].tolist()
    x, y = _scale([p[0] for p in places], WIDTH), _scale([p[1] for p in places], HEIGHT)
    return "".join(
        f'<circle cx="{x(a):.1f}" cy="{HEIGHT - y(b):.1f}" r="2.4" fill="var(--series-{g % 10})"/>'
        for (a, b), g in zip(places, groups, strict=True)
    )


def _pictures(figure: Pictures) -> str:
    rows, columns, _, height, width = figure.images.shape
    if not figure.images.numel() or quantity(height / width) is None:
        return ""
    down, across = min(rows, 2), min(columns, 4 if rows > 1 else 2)
    side = (HEIGHT - 2 * _EDGE - 4 * (down - 1)) / down
    left = (WIDTH - across * side - (across - 1) * 4) / 2
    made = ""
    for r in range(down):
        for c in range(across):
            address = picture(figure.images[r, c])
            if address:
                made += (
                    f'<image x="{left + c * (side + 4):.1f}" y="{_EDGE + r * (side + 4):.1f}" width="{side:.1f}" '
                    f'height="{side:.1f}" style="image-rendering:pixelated" href="{address}"/>'
                )
    return made
