"""The figures of an analysis as a page draws them: plain data for the page's script, and PNG images.

Every limit here is about a run from an untrusted source, which must not make a page that no browser opens; what is
left out is said under the figure, and lies in ``arrays.safetensors``.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..read.run_directory import quantity, words

if TYPE_CHECKING:
    from torch import Tensor

    from ...analyses.findings import Figure, HeatMaps, Lines, Pictures, Points

PANELS = 64
SIDE = 256  # rows and columns of a drawn matrix: more than a panel has pixels
SERIES = 64
POSITIONS = 5000
GROUPS = 200
DOTS = 20_000
STEPS = 200_000
IMAGES = 1500
IMAGE_SIDE = 160
SHEET = 64 * 10**6  # pixels


@dataclass(frozen=True)
class Drawn:
    """A figure for the template.

    Attributes:
        kind: lines, heatmaps, points or pictures.
        title: its heading.
        caption: under it.
        data: what the page's script draws, JSON; empty where there is nothing for it to draw.
        rows: of pictures: a label, and an image's address and description for each column (``None``: a gap).
        columns: their labels.
        size: width and height that a picture is shown with, in CSS pixels.
        pixelated: a picture is enlarged so far that its pixels should stay squares.
        notes: what is not drawn, and why.
    """

    kind: str
    title: str
    caption: str
    data: dict[str, Any] = field(default_factory=dict)
    rows: list[tuple[str, list[tuple[str, str] | None]]] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    pixelated: bool = True
    notes: list[str] = field(default_factory=list)


def drawn(figure: Figure) -> Drawn:
    """Return a figure as the page needs it."""
    from ...analyses.findings import HeatMaps, Lines, Points

    if isinstance(figure, Lines):
        return _lines(figure)
    if isinstance(figure, HeatMaps):
        return _heatmaps(figure)
    if isinstance(figure, Points):
        return _points(figure)
    return _pictures(figure)


def _first(kept: int, there: int, what: str) -> list[str]:
    return [f"The first {kept:,} of {there:,} {what} are drawn."] if there > kept else []


def _lines(figure: Lines) -> Drawn:
    categorical = any(isinstance(x, str) for x in figure.x)
    x = [words(v) if categorical else quantity(v) for v in figure.x[:POSITIONS]]
    ends = figure.y_range
    y_range = [quantity(v) for v in ends] if ends else []
    data = {
        "kind": "lines",
        "categorical": categorical,
        "x": x,
        "x_title": words(figure.x_title),
        "y_title": words(figure.y_title),
        "y_range": y_range if len(y_range) == 2 and None not in y_range and y_range[0] != y_range[1] else None,
        "series": [
            {"name": words(s.name), "style": s.style,
             **{k: [quantity(v) for v in getattr(s, k)[:POSITIONS]] for k in ("y", "low", "high")}}
            for s in figure.series[:SERIES]
        ],
    }  # fmt: skip
    notes = _first(SERIES, len(figure.series), "curves") + _first(POSITIONS, len(figure.x), "positions")
    there = bool(x) and any(v is not None for s in data["series"] for v in s["y"])  # type: ignore[attr-defined]
    return Drawn("lines", words(figure.title), words(figure.caption), data if there else {}, notes=notes)


def colour_range(figure: HeatMaps) -> tuple[float, float]:
    """Ends of the colour scale: the figure's, or those of its values where it names none that can be used."""
    import torch

    low, high = (quantity(v) for v in (figure.low, figure.high))
    if low is None or high is None or low >= high:
        finite = [v[torch.isfinite(v)] for v in (p.values.float() for p in figure.panels)]
        known = [v for v in finite if len(v)]
        if low is None or high is None:
            low = min((float(v.min()) for v in known), default=0.0)
            high = max((float(v.max()) for v in known), default=1.0)
        if low >= high:
            low, high = min(low, high) - 0.5, max(low, high) + 0.5
    return low, high


def _heatmaps(figure: HeatMaps) -> Drawn:
    low, high = colour_range(figure)
    panels, notes = [], _first(PANELS, len(figure.panels), "panels")
    averaged = False
    for panel in figure.panels[:PANELS]:
        rows, columns = panel.values.shape
        if not rows or not columns:
            notes.append(f"“{words(panel.name)}” is empty.")
            continue
        small, down, across = _reduced(panel.values.float())
        averaged |= down > 1 or across > 1
        panels.append(
            {"name": words(panel.name), "z": _packed(small), "rows": rows, "columns": columns, "dy": down, "dx": across}
        )
    if averaged:
        notes.append(f"Matrices of more than {SIDE} rows or columns are drawn as means of blocks.")
    ticks = sorted({(p, words(label)) for p, label in figure.ticks[:POSITIONS] if 0 <= p < 10**6})
    data = {"kind": "heatmaps", "panels": panels, "low": low, "high": high, "ticks": ticks}
    return Drawn("heatmaps", words(figure.title), words(figure.caption), data if panels else {}, notes=notes)


def _reduced(values: Tensor) -> tuple[Tensor, int, int]:
    """At most ``SIDE`` rows and columns: means of blocks, and how many rows and columns a block has."""
    import torch

    down, across = (math.ceil(n / SIDE) for n in values.shape)
    if down == across == 1:
        return values, 1, 1
    rows, columns = (math.ceil(n / block) for n, block in zip(values.shape, (down, across), strict=True))
    padded = torch.full((rows * down, columns * across), math.nan)
    padded[: values.shape[0], : values.shape[1]] = values
    return padded.reshape(rows, down, columns, across).nanmean(dim=(1, 3)), down, across


def _packed(values: Tensor) -> dict[str, str]:
    """Return numbers as plotly's typed array: float32, exactly; what is not finite is a gap."""
    import torch

    finite = torch.where(torch.isfinite(values), values, math.nan).contiguous()
    raw = finite.numpy().astype("<f4").tobytes()
    shape = {"shape": ",".join(str(n) for n in values.shape)} if values.ndim > 1 else {}
    return {"dtype": "f4", "bdata": base64.b64encode(raw).decode("ascii"), **shape}


def _points(figure: Points) -> Drawn:
    import torch

    coordinates, group = figure.coordinates.float(), figure.group
    dimensions = coordinates.shape[1]
    finite = torch.isfinite(coordinates).all(1)
    notes = [] if bool(finite.all()) else [f"{int((~finite).sum()):,} points have no finite place."]
    coordinates, group = coordinates[finite], group[finite]
    if len(coordinates) > DOTS:
        notes.append(f"{DOTS:,} of {len(coordinates):,} points are drawn, evenly chosen.")
        chosen = torch.linspace(0, len(coordinates) - 1, DOTS).long()
        coordinates, group = coordinates[chosen], group[chosen]
    notes += _first(GROUPS, len(figure.groups), "groups")
    groups = [
        {"name": words(name), "at": [_packed(c) for c in coordinates[group == i].T], "n": int((group == i).sum())}
        for i, name in enumerate(figure.groups[:GROUPS])
    ]
    tracks = figure.tracks.float()
    if len(tracks) and tracks.shape[2] != dimensions:
        notes.append(f"The tracks have {tracks.shape[2]} coordinates instead of {dimensions} and are not drawn.")
        tracks = tracks[:0]
    most = max(1, STEPS // max(1, tracks.shape[1]))
    notes += _first(most, len(tracks), "tracks")
    by_name: dict[str, list[Tensor]] = {}
    for i, track in enumerate(tracks[:most]):
        by_name.setdefault(words(figure.track_names[i]) if i < len(figure.track_names) else "track", []).append(track)
    gap = torch.full((1, dimensions), math.nan)
    paths = [
        {"name": name, "at": [_packed(c) for c in torch.cat([part for t in own for part in (t, gap)][:-1]).T],
         "ends": [_packed(c) for c in torch.stack([t[-1] for t in own]).T]}
        for name, own in by_name.items() if len(own[0])
    ]  # fmt: skip
    data = {
        "kind": "points",
        "dimensions": dimensions,
        "axes": [words(a) for a in [*figure.axes, "", "", ""][:dimensions]],
        "groups": [g for g in groups if g["n"]],
        "tracks": paths,
    }
    return Drawn(
        "points", words(figure.title), words(figure.caption), data if data["groups"] or paths else {}, notes=notes
    )


def _pictures(figure: Pictures) -> Drawn:
    rows, columns, _, height, width = figure.images.shape
    title, caption = words(figure.title), words(figure.caption)
    if not figure.images.numel():
        return Drawn("pictures", title, caption)
    across = min(columns, IMAGES)
    down = min(rows, max(1, IMAGES // across))
    notes = _first(down, rows, "rows") + _first(across, columns, "columns")
    largest = max(height, width)
    factor = max(1, round(96 / largest)) if largest <= 96 else 112 / largest
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    column_labels, row_labels = _labels(figure.column_labels, across), _labels(figure.row_labels, down)
    made: list[tuple[str, list[tuple[str, str] | None]]] = []
    for r in range(down):
        line: list[tuple[str, str] | None] = []
        for c in range(across):
            where = ", ".join(t for t in (row_labels[r], column_labels[c]) if t)
            address = picture(figure.images[r, c])
            line.append((address, where or f"row {r + 1}, column {c + 1}") if address else None)
        made.append((row_labels[r], line))
    shown = column_labels if any(column_labels) else []
    return Drawn("pictures", title, caption, {}, made, shown, size, largest <= 96, notes)


def _labels(labels: Sequence[str], length: int) -> list[str]:
    return [words(labels[i]) if i < len(labels) else "" for i in range(length)]


def picture(image: Tensor) -> str:
    """A (channels, height, width) image as a ``data:`` address, its pixels as they are; empty if it is all NaN."""
    from PIL import Image

    colours = _rgba(image)
    if not colours[..., 3].any():
        return ""
    opened = Image.fromarray(colours)
    if max(opened.size) > IMAGE_SIDE:
        opened.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    return data_address(opened)


def data_address(image: Any) -> str:
    """Return a Pillow image as a ``data:`` address."""
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _rgba(image: Tensor) -> Any:
    """uint8 (height, width, 4); pixels without a number are transparent."""
    import torch

    values = image.float()
    there = ~torch.isnan(values).any(0)
    rgb = (values.nan_to_num(0.0, 1.0, 0.0).clamp(0, 1) * 255).round().to(torch.uint8).expand(3, -1, -1)
    return torch.cat([rgb, (there * 255).to(torch.uint8)[None]]).permute(1, 2, 0).contiguous().numpy()


def sheet(figure: Figure) -> bytes | None:
    """Return a figure of pictures as one PNG file, enlarged without smoothing so that digits can be read.

    Images stand with gaps between them; where all do not fit into 64 million pixels, the last rows and columns are
    left out.

    Returns:
        ``None`` where there is no pixel.
    """
    from PIL import Image

    from ...analyses.findings import Pictures

    if not isinstance(figure, Pictures) or not figure.images.numel():
        return None
    rows, columns, _, height, width = figure.images.shape
    factor = max(1, 112 // max(height, width))
    while factor > 1 and rows * columns * height * width * factor**2 > SHEET / 4:
        factor -= 1
    gap = max(2, factor)
    step_y, step_x = height * factor + gap, width * factor + gap
    columns = max(1, min(columns, SHEET // (step_x * step_y)))
    rows = max(1, min(rows, SHEET // (step_x * step_y * columns)))
    whole = Image.new("RGBA", (columns * step_x - gap, rows * step_y - gap))
    for r in range(rows):
        for c in range(columns):
            one = Image.fromarray(_rgba(figure.images[r, c]))
            whole.paste(
                one.resize((width * factor, height * factor), Image.Resampling.NEAREST), (c * step_x, r * step_y)
            )
    stream = io.BytesIO()
    whole.save(stream, "PNG", optimize=True)
    return stream.getvalue()
