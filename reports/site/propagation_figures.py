"""How perturbations propagate, as the front page and the page of a model show it: sentences, a figure, a heat map."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from ..text_tables import TextTable
from .amplification import Amplification, Amplified, Depth, amplification, foremost, readable, sentences, times
from .downloads import Downloads, Link
from .drawing import Chart, Line, drawn, round_ticks
from .groups import Group, fraction

if TYPE_CHECKING:
    from markupsafe import Markup

# Rows of the heat map of attacks that know a detector.
_KNOWING = 40
_ATTACK, _CONTROL = 1, 6
# Pixels: what the axes of a figure leave of its width, what is right of them, the width of a letter.
_MARGINS, _RIGHT, _LETTER = 70, 12, 6.6
# A factor at which the colour is full, in doublings.
_FULL = 2.0


@dataclass(frozen=True)
class Heat:
    """A cell of the heat map: attack over control at one depth.

    Attributes:
        text: the ratio, a dash where there is none.
        title: both means with their ranges.
        tone: colour.
        strength: of the colour, 0 to 20.
        beyond: the ratio is beyond the spread of images.
        parts: the two part here.
    """

    text: str = "–"
    title: str = "not measured"
    tone: str = ""
    strength: int = 0
    beyond: bool = False
    parts: bool = False


@dataclass(frozen=True)
class HeatRow:
    """A row of the heat map."""

    name: str
    href: str
    cells: Sequence[Heat]


@dataclass(frozen=True)
class Propagation:
    """What a page shows of the propagation in a model.

    Attributes:
        title: the model's.
        page: the model's.
        sentences: the first is about the figure.
        about: the perturbation of the figure.
        wide: the figure.
        narrow: the same for narrow screens.
        taps: names of the depths.
        stages: the same depths in words, and how many each: early, middle, late.
        rows: of the heat map.
        knowing: of that of attacks that know a detector.
        more: attacks that know a detector that it leaves out.
        left_out: a sentence about what is not shown; empty where all is.
        files: of the heat map.
    """

    title: str
    page: str
    sentences: Sequence[str]
    about: str
    wide: Markup
    narrow: Markup
    taps: Sequence[str]
    stages: Sequence[tuple[str, int]]
    rows: Sequence[HeatRow]
    knowing: Sequence[HeatRow]
    more: int
    left_out: str
    files: Sequence[Link]


def propagation_of(
    group: Group, title: str, page: str, pages: Mapping[str, str], downloads: Downloads
) -> Propagation | None:
    """Return what pages show of the propagation in a model.

    Args:
        group: the model's rows.
        title: its title.
        page: its page.
        pages: the page of each perturbation.
        downloads: takes the files of the heat map.

    Returns:
        ``None`` where nothing was measured on enough images.
    """
    measured = group.rows("perturbations")
    found = amplification(group.rows("propagation"), {r.text("perturbation"): r.text("kind") for r in measured})
    if found is None:
        return None
    norm, eps = group.threat
    at_budget = {r.text("perturbation") for r in measured
                 if r.text("norm") == norm and eps is not None and fraction(r.text("eps")) == eps}  # fmt: skip
    about = foremost(found, at_budget)
    if about is None:
        return None
    taps = readable(found.taps)
    plain, knowing = ([a for a in found.perturbations if a.knowing == knows] for knows in (False, True))
    stem = page.rpartition("/")[2].removesuffix(".html")
    return Propagation(
        title, page, sentences(found, about), about.perturbation,
        drawn(_chart(about, taps, 1200), 1200, 340), drawn(_chart(about, taps, 380), 380, 300),
        taps, _stages(len(taps)),
        [_heat_row(a, pages) for a in plain], [_heat_row(a, pages) for a in knowing[:_KNOWING]],
        max(0, len(knowing) - _KNOWING), _left_out(found),
        downloads.grid(stem, "amplification", _table(found, taps, title)),
    )  # fmt: skip


def _chart(about: Amplified, taps: Sequence[str], width: int) -> Chart:
    """Return the shift of an attack and of noise by depth, with a mark where they part, for a figure of some width."""
    known = [(float(i), d) for i, d in enumerate(about.depths) if d is not None]
    top = max(max(d.attack.high, d.control.high) for _, d in known) * 1.08 or 1.0
    apart = about.apart
    # Pixels between two depths.
    step = (width - _MARGINS) / (len(taps) - 0.4)
    guides, notes = [], []
    if apart:
        at, text = float(apart[0]), f"they part at {taps[apart[0]]}"
        guides = [(at, text)]
        notes = [(at, top * 0.97, text)] if (len(taps) - 0.7 - at) * step > 6 + _LETTER * len(text) else []
    return Chart(
        f"Relative L2 shift by depth: {about.perturbation} and noise of its norm",
        "depth, from the input to the output", "relative L2 shift",
        _ticks(taps, step), round_ticks(0.0, top),
        (-0.3, len(taps) - 0.7), (0.0, top),
        [
            Line("noise of its norm", [(i, d.control.mean) for i, d in known], _CONTROL, True,
                 band=[(i, d.control.low, d.control.high) for i, d in known]),
            Line(about.perturbation, [(i, d.attack.mean) for i, d in known], _ATTACK,
                 marks=[(i, d.attack.mean, None, None) for i, d in known],
                 band=[(i, d.attack.low, d.attack.high) for i, d in known]),
        ],
        guides=guides, notes=notes,
    )  # fmt: skip


def _ticks(taps: Sequence[str], step: float) -> list[tuple[float, str]]:
    """Return the names that fit beside each other, from the first on."""
    kept, free = [], -math.inf
    for i, tap in enumerate(taps):
        middle, half = i * step, _LETTER * len(tap) / 2
        if middle - half > free and middle + half < (len(taps) - 0.7) * step + _RIGHT:
            kept.append((float(i), tap))
            free = middle + half + _LETTER
    return kept


def _stages(taps: int) -> list[tuple[str, int]]:
    words = ["early" if 3 * i < taps else "middle" if 3 * i < 2 * taps else "late" for i in range(taps)]
    return [(word, len(list(own))) for word, own in groupby(words)]


def _heat_row(found: Amplified, pages: Mapping[str, str]) -> HeatRow:
    at = found.apart[0] if found.apart else -1
    cells = [Heat() if d is None else _heat(d, i == at) for i, d in enumerate(found.depths)]
    return HeatRow(found.perturbation, pages.get(found.perturbation, ""), cells)


def _heat(depth: Depth, parts: bool) -> Heat:
    doublings = math.log2(depth.ratio) if depth.ratio > 0 else -_FULL
    attack, control = depth.attack, depth.control
    title = (
        f"shift {attack.mean:.3g} (5 % to 95 %: {attack.low:.3g} to {attack.high:.3g}), "
        f"noise {control.mean:.3g} ({control.low:.3g} to {control.high:.3g})"
    )
    strength = round(20 * min(abs(doublings) / _FULL, 1.0))
    return Heat(times(depth.ratio), title, "bad" if doublings >= 0 else "good", strength, depth.beyond, parts)


def _left_out(found: Amplification) -> str:
    if not found.left_out:
        return ""
    plain = [a for a in found.left_out if not a.knowing]
    named = "; ".join(f"{a.perturbation}: {a.reason}" for a in plain[:8])
    more = len(found.left_out) - len(plain[:8])
    others = f"{'; ' if named else ''}{more} {'more' if named else 'that know a detector'}" if more else ""
    return f"Left out: {named}{others}."


def _table(found: Amplification, taps: Sequence[str], title: str) -> TextTable:
    rows = [
        (a.perturbation, str(a.images), *("" if d is None else f"{d.ratio:.4g}" for d in a.depths),
         taps[a.apart[0]] if a.apart else "")
        for a in found.perturbations
    ]  # fmt: skip
    caption = f"Relative L2 shift of perturbations over that of noise of their norm, {title}"
    return TextTable(("perturbation", "images", *taps, "beyond the spread from"), tuple(rows), caption=caption)
