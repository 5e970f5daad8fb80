"""``aftershock plan``: what a run would take, as text for a person or as JSON with every cell."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from ...reports.text_tables import TextTable, plain
from .console import rounded

if TYPE_CHECKING:
    from ..run.preview import PlannedCell, Preview

_MIB = 2**20
# Rows of one table: more of them are in --json.
_MOST = 20
_BASES = {
    "measured": "measured on this machine",
    "similar": "typical costs, corrected by what this machine took for cells of their kind",
    "typical": "typical costs of the built-in suites",
}


def as_json(found: Preview) -> str:
    """Return a plan as JSON, with every cell by name."""
    return json.dumps(asdict(found), indent=1, ensure_ascii=False)


def as_text(found: Preview) -> Iterator[str]:
    """Yield the lines of a plan: what it is about, what it takes, and where the time goes."""
    missing = [cell for cell in found.cells if cell.state == "to compute"]
    sizes = ", ".join(f"{name} {size:,}" for name, size in found.images.items())
    parts = ((found.models, "model"), (found.perturbations, "perturbation"), (found.detectors, "detector"))
    counts = ", ".join(_counted(things, what) for things, what in (*parts, (found.seeds, "seed")))
    yield f"{found.suite}: {counts}"
    yield f"Data:   {found.dataset}, {sizes} images"
    yield from found.notes
    there = {state: sum(cell.state == state for cell in found.cells) for state in ("in the run", "in the cache")}
    already = "".join(f", {count:,} {state}" for state, count in there.items() if count)
    yield f"Cells:  {len(found.cells):,}: {len(missing):,} to compute{already}"
    spread = f", most likely {rounded(found.low, True)} to {rounded(found.high, True)}" if missing else ""
    workers = f"{found.workers} worker{'s' if found.workers > 1 else ''}"
    yield f"Time:   about {rounded(found.seconds, True)} with {workers}{spread}"
    if missing:
        passes = _short(sum(cell.passes for cell in missing))
        yield f"Passes: about {passes} of single images, a backward one counted twice"
    yield f"Memory: about {found.memory / 2**30:.1f} GiB;  disk: about {_bytes(found.disk)}"
    bases = {basis: sum(c.seconds for c in missing if c.basis == basis) for basis in _BASES}
    total = sum(bases.values())
    for basis, seconds in bases.items():
        if total and seconds / total >= 0.005:
            yield f"  {seconds / total:4.0%} of the time: {_BASES[basis]}"
    if missing:
        yield ""
        yield from _grouped("kind", found.cells, lambda cell: cell.kind)
        yield ""
        yield from _grouped("detector", found.cells, lambda cell: cell.detector or "(several)")
    yield ""
    named = next((c for c in found.cells if c.kind == "perturb"), found.cells[0])
    yield f"A cell is called, for example, {named.name}."
    yield "--only takes any part of such a name, or a pattern; --json has all of them."


def _grouped(title: str, cells: Iterable[PlannedCell], group: Callable[[PlannedCell], str]) -> Iterator[str]:
    """Yield a table of cells in groups, the dearest first; seconds and passes are of what has to be computed."""
    groups: dict[str, list[PlannedCell]] = {}
    for cell in cells:
        groups.setdefault(group(cell), []).append(cell)
    rows: list[tuple[float, tuple[str, ...]]] = []
    for name, own in groups.items():
        missing = [cell for cell in own if cell.state == "to compute"]
        seconds, passes = sum(cell.seconds for cell in missing), sum(cell.passes for cell in missing)
        there = len(own) - len(missing)
        cells_of = (name, f"{len(own):,}", f"{there:,}" if there else "")
        rows.append((seconds, (*cells_of, _short(sum(c.images for c in own)), _short(passes), f"{seconds:,.1f}")))
    rows.sort(key=lambda row: -row[0])
    titles: tuple[str, ...] = (title, "cells", "there", "images", "passes", "seconds")
    shown = [text for _, text in rows[:_MOST]]
    if not any(text[2] for text in shown):
        titles, shown = (*titles[:2], *titles[3:]), [(*text[:2], *text[3:]) for text in shown]
    yield from plain(TextTable(titles, tuple(shown)))
    if len(rows) > _MOST:
        yield f"and {len(rows) - _MOST} more, {sum(seconds for seconds, _ in rows[_MOST:]):,.0f} seconds: --json"


def _counted(things: Sequence[object], what: str) -> str:
    return f"{len(things)} {what}{'s' if len(things) != 1 else ''}"


def _short(count: float) -> str:
    """``9,500``, ``12k``, ``3.4M``; nothing for none."""
    if count < 1e4:
        return f"{count:,.0f}" if count >= 0.5 else ""
    for size, sign in ((1e9, "G"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.1f}{sign}"
    return f"{count / 1e3:.0f}k"


def _bytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / _MIB:.0f} MiB"
