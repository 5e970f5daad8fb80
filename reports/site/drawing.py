"""Line charts as SVG that pages hold: no script, and the page's style sheet gives the colours, in print too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

# Colours of lines in the style sheet.
TONES = 7
Place = Callable[[float, float], tuple[float, float]]
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 40


@dataclass(frozen=True)
class Line:
    """A curve: its points in the units of the axes, where it was not measured none.

    Attributes:
        name: in the legend.
        points: from left to right.
        tone: number of its colour.
        dashed: drawn with a dashed line.
        marks: points with their interval: x, y, low, high.
        note: what a reader sees when pointing at it.
        filled: the area below is tinted.
        band: a tinted range around it: x, low, high.
    """

    name: str
    points: Sequence[tuple[float, float]]
    tone: int = 0
    dashed: bool = False
    marks: Sequence[tuple[float, float, float | None, float | None]] = ()
    note: str = ""
    filled: bool = False
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Chart:
    """A line chart.

    Attributes:
        title: what it shows, for who cannot see it, and for its file.
        x_title: below the axis.
        y_title: beside it.
        x_ticks: place and label.
        y_ticks: place and label.
        x_range: ends of the axis.
        y_range: ends of the axis.
        lines: the curves.
        guides: x of dotted vertical lines, and their label.
        diagonal: a dotted line from corner to corner: chance.
        heading: above the axes.
        notes: words in it: the x that they stand right of, the y that they are centred at, the text.
    """

    title: str
    x_title: str
    y_title: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    lines: Sequence[Line]
    guides: Sequence[tuple[float, str]] = ()
    diagonal: bool = False
    heading: str = ""
    notes: Sequence[tuple[float, float, str]] = ()


def drawn(chart: Chart, width: int = 380, height: int = 280) -> Markup:
    """Return a chart as an ``svg`` element; texts are escaped, and what is not finite is left out."""
    from markupsafe import Markup, escape

    top = _TOP + (16 if chart.heading else 0)
    right, bottom = width - _RIGHT, height - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            round(_LEFT + _part(x, chart.x_range) * (right - _LEFT), 1),
            round(bottom - _part(y, chart.y_range) * (bottom - top), 1),
        )

    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(chart.title)}">'
    ]
    if chart.heading:
        parts.append(f'<text class="heading" x="{_LEFT}" y="14">{escape(chart.heading)}</text>')
    for y, label in chart.y_ticks:
        level = at(chart.x_range[0], y)[1]
        parts.append(f'<path class="grid" d="M{_LEFT} {level}H{right}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{level + 4:.1f}" text-anchor="end">{escape(label)}</text>')
    for x, label in chart.x_ticks:
        place = at(x, chart.y_range[0])[0]
        parts.append(f'<path class="tick" d="M{place} {bottom}v4"/>')
        parts.append(f'<text x="{place}" y="{bottom + 16}" text-anchor="middle">{escape(label)}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>')
    parts.append(
        f'<text x="{(_LEFT + right) / 2:.0f}" y="{height - 6}" text-anchor="middle">{escape(chart.x_title)}</text>'
        f'<text transform="translate(12 {(top + bottom) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(chart.y_title)}</text>"
    )
    if chart.diagonal:
        (x0, y0), (x1, y1) = at(chart.x_range[0], chart.y_range[0]), at(chart.x_range[1], chart.y_range[1])
        parts.append(f'<path class="guide" d="M{x0} {y0}L{x1} {y1}"/>')
    for x, label in chart.guides:
        place = at(x, chart.y_range[0])[0]
        parts.append(f'<path class="guide" d="M{place} {top}V{bottom}"><title>{escape(label)}</title></path>')
    for line in chart.lines:
        parts += _line(line, at, bottom)
    for x, y, text in chart.notes:
        left, level = at(x, y)
        parts.append(f'<text class="words" x="{left + 6:.1f}" y="{level + 4:.1f}">{escape(text)}</text>')
    parts.append("</svg>")
    return Markup("".join(parts))  # noqa: S704 - every text is escaped above


def _line(line: Line, place: Place, bottom: float) -> list[str]:
    from markupsafe import escape

    points = [place(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)]
    tone = f"t{line.tone % TONES}" + (" dashed" if line.dashed else "")
    path = "".join(f"{'L' if i else 'M'}{x} {y}" for i, (x, y) in enumerate(points))
    made = []
    edges = [(place(x, low), place(x, high)) for x, low, high in line.band if math.isfinite(x + low + high)]
    if len(edges) > 1:
        around = "L".join(f"{x} {y}" for x, y in [*(e[0] for e in edges), *(e[1] for e in reversed(edges))])
        made.append(f'<path class="area {tone}" d="M{around}Z"/>')
    if line.filled and points:
        made.append(f'<path class="area {tone}" d="{path}L{points[-1][0]} {bottom}L{points[0][0]} {bottom}Z"/>')
    if len(points) > 1:
        made.append(f'<path class="line {tone}" d="{path}"><title>{escape(line.note or line.name)}</title></path>')
    for x, y, low, high in line.marks:
        if not (math.isfinite(x) and math.isfinite(y)):
            continue
        cx, cy = place(x, y)
        if low is not None and high is not None:
            span = f"M{cx} {place(x, low)[1]}V{place(x, high)[1]}"
            made.append(f'<path class="whisker {tone}" d="{span}"/>')
        about = escape(line.note or line.name)
        made.append(f'<circle class="mark {tone}" cx="{cx}" cy="{cy}" r="4"><title>{about}</title></circle>')
    return made


def _part(value: float, ends: tuple[float, float]) -> float:
    low, high = ends
    return min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.5


def percent_ticks() -> list[tuple[float, str]]:
    """Return the ticks of an axis of shares."""
    return [(step / 4, f"{25 * step}%") for step in range(5)]


def round_ticks(low: float, high: float, most: int = 5) -> list[tuple[float, str]]:
    """Return about ``most`` round numbers between two ends."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return []
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    first = math.ceil(low / step)
    return [(n * step, f"{n * step:.4g}") for n in range(first, min(math.floor(high / step), first + 20) + 1)]
