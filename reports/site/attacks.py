"""Two more views of ``attacks.csv``: what 8-bit rounding changes, and which part of an attack won."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..read.run_directory import Row
from ..threats import budget
from .flags import Flag
from .leaderboard import ABLATION
from .matrices_and_curves import grouped
from .shares import Conditions, Share, group_of, share, written

# The kinds of parts of a worst-case attack, as their names in attacks.csv begin; unknown names stay as they are.
PARTS = {
    "selective": "selective PGD",
    "orthogonal": "orthogonal PGD",
    "joint": "joint PGD",
    "margin": "PGD on the classifier alone",
    "feature-matching": "feature matching",
    "search": "search on the true score",
    "decision": "search on the alarm",
    "oblivious": "start: an attack that knows only the model",
    "start": "start: an attack that knows only the model",
    "none": "none",
}


def kind_of(part: str) -> str:
    """Return the kind of a part, which its name begins with: ``joint`` of ``joint-student-halving``."""
    return next((kind for kind in PARTS if part == kind or part.startswith(f"{kind}-")), part)


@dataclass(frozen=True)
class Pair:
    """A share before and after 8-bit rounding."""

    before: Share
    after: Share

    @property
    def change(self) -> float | None:
        """After minus before."""
        if self.before.value is None or self.after.value is None:
            return None
        return self.after.value - self.before.value

    @property
    def points(self) -> str:
        """The change in percentage points, with its sign."""
        return "" if self.change is None else signed(self.change)

    @property
    def left(self) -> float:
        """Where the line between the two begins, in per cent."""
        return 100 * min(self.before.value or 0.0, self.after.value or 0.0)

    @property
    def length(self) -> float:
        """How long that line is, in per cent."""
        return 100 * abs(self.change or 0.0)


def signed(change: float) -> str:
    """``−3.1``: percentage points."""
    shown = f"{100 * abs(change):.1f}"
    return shown if float(shown) == 0 else f"{'+' if change > 0 else '−'}{shown}"


@dataclass(frozen=True)
class RoundedRow:
    """One attack against one detector before and after rounding: success, detection, undetected success."""

    label: str
    adaptive: bool
    pairs: Sequence[Pair]
    flags: Sequence[Flag]


@dataclass(frozen=True)
class Rounding:
    """8-bit rounding of one model: a table per detector, and the largest changes in words."""

    tables: Sequence[tuple[str, Sequence[RoundedRow]]]
    summary: str


ROUNDED = (("success", "Success"), ("detection", "Detection"), ("undetected", "Undetected success"))


def rounding(conditions: Conditions) -> Rounding | None:
    """Success, detection and undetected success before and after 8 bits; ``None`` where nothing was rounded."""
    tables = []
    for detector in [*conditions.detectors(), ABLATION]:
        rows = []
        for (label,), every in grouped(conditions.own(), "perturbation").items():
            own = [r for r in every if r.text("detector") == detector and r.number("success_rate_8bit") is not None]
            if own:
                pairs = [Pair(share(own, m), share(own, m, "_8bit")) for m, _ in ROUNDED]
                if detector == ABLATION:
                    pairs = [pairs[0]]
                rows.append(RoundedRow(label, bool(own[0].text("against")), pairs, conditions.flags(own)))
        if rows:
            tables.append((detector, rows))
    return Rounding(tables, _rounding_summary(tables)) if tables else None


def _rounding_summary(tables: Sequence[tuple[str, Sequence[RoundedRow]]]) -> str:
    largest = []
    for place, (_, name) in enumerate(ROUNDED):
        changes = [(change, row.label, detector) for detector, rows in tables for row in rows
                   if place < len(row.pairs) and (change := row.pairs[place].change) is not None]  # fmt: skip
        if not changes:
            continue
        change, label, detector = max(changes, key=lambda c: abs(c[0]))
        where = label if place == 0 or label.endswith(f"@{detector}") else f"{label}, {detector}"
        largest.append(f"{name.lower()} {signed(change)} points ({where})" if change else f"{name.lower()} none")
    return f"Largest changes: {'; '.join(largest)}." if largest else ""


@dataclass(frozen=True)
class Bar:
    """Which part of one attack won: parts with count, share and the index of their colour; ``left`` were not fooled."""

    detector: str
    budget: str
    total: int
    parts: Sequence[tuple[str, int, float, int]]
    left: int
    flags: Sequence[Flag]


@dataclass(frozen=True)
class Winners:
    """The parts of one attack: its name, legend, a bar for every detector at one budget, and all bars."""

    attack: str
    legend: Sequence[tuple[str, int]]
    at: str
    bars: Sequence[Bar]
    every: Sequence[Bar]


def winners(conditions: Conditions, threat: tuple[str, float | None]) -> list[Winners]:
    """Return which parts of the attacks won, per attack, detector and budget; empty where the table does not say.

    Args:
        threat: norm and budget that the ranking is about: these bars are shown first, or else the largest budget's.
    """
    found = []
    attacks: dict[tuple[str, str], list[Row]] = {}
    for row in conditions.rows:
        attacks.setdefault((row.text("norm"), group_of(row)), []).append(row)
    for (norm, attack), rows in attacks.items():
        names = list(dict.fromkeys(kind_of(part) for r in rows for part in r.counts("parts")))
        if not names:
            continue
        names.sort(key=lambda part: list(PARTS).index(part) if part in PARTS else len(PARTS))
        bars = [(eps, bar) for eps, bar in _bars(conditions, rows, names) if bar.total]
        budgets = sorted({eps for eps, _ in bars})
        if not budgets:
            continue
        at = next((b for b in budgets if norm == threat[0] and threat[1] and math.isclose(b, threat[1], rel_tol=1e-4)),
                  budgets[-1])  # fmt: skip
        place = [*conditions.detectors(), ABLATION]
        bars.sort(key=lambda b: (place.index(b[1].detector) if b[1].detector in place else len(place), b[0]))
        shown = [bar for eps, bar in bars if eps == at]
        legend = [(PARTS.get(part, part), i) for i, part in enumerate(names)]
        found.append(Winners(attack, legend, shown[0].budget, shown, [bar for _, bar in bars]))
    return found


def _bars(conditions: Conditions, rows: Sequence[Row], names: Sequence[str]) -> list[tuple[float, Bar]]:
    bars = []
    for _, own in grouped(rows, "perturbation", "against").items():
        against = own[0].text("against")
        counts: dict[str, int] = {}
        total = 0
        for _, same in grouped(own, "seed").items():
            # The same count may stand in every detector's row of one attack: it is taken once per seed.
            with_parts = sorted((r for r in same if r.counts("parts")), key=lambda r: r.text("detector") != against)
            if with_parts:
                for part, count in with_parts[0].counts("parts").items():
                    counts[kind_of(part)] = counts.get(kind_of(part), 0) + count
                total += int(with_parts[0].number("n") or 0)
        total = max(total, sum(counts.values()))
        eps = own[0].number("eps")
        parts = [(PARTS.get(p, p), counts[p], counts[p] / total, i) for i, p in enumerate(names) if counts.get(p)]
        limit = written(own[0].text("norm"), eps) if eps is not None else budget(own[0].text("norm"), "")
        bars.append((eps or 0.0, Bar(against or ABLATION, limit, total, parts, total - sum(counts.values()),
                                     conditions.flags(own))))  # fmt: skip
    return bars
