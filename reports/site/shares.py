"""What ``attacks.csv`` says of one model: shares of images with their intervals, by attack, budget and detector.

Everything is the mean over seeds. The interval of a share is Wilson's 95 % interval for the number of images that it is
a share of, within one seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...harness.statistics.intervals import wilson
from ..read.run_directory import Row
from ..threats import budget
from .flags import BEYOND, Flag
from .leaderboard import ABLATION, SPACE, percent
from .matrices_and_curves import mean

MEASURES = {
    "undetected": "undetected_success_at_fpr_5",
    "success": "success_rate",
    "detection": "flagged_at_fpr_5",
}
_MOST = 1e12  # images; a table from an untrusted source may hold any number


@dataclass(frozen=True)
class Share:
    """A share of ``n`` images with its 95 % interval; ``None`` where it was not measured."""

    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def text(self) -> str:
        """``61.2 %``, or a dash."""
        return percent(self.value)

    @property
    def interval(self) -> str:
        """``95 % interval 54.0 % to 68.1 %``, or nothing."""
        return "" if self.low is None else f"95{SPACE}% interval {percent(self.low)} to {percent(self.high)}"

    def rounded(self) -> list[float | None]:
        """Value, low and high as short JSON numbers."""
        return [None if v is None else round(v, 5) for v in (self.value, self.low, self.high)]


def share(rows: Sequence[Row], measure: str, suffix: str = "") -> Share:
    """Return one of :data:`MEASURES` of one condition and detector over its seeds."""
    value = mean(r.number(MEASURES[measure] + suffix) for r in rows)
    if value is None or not 0 <= value <= 1:
        return Share()
    success = mean(r.number("success_rate" + suffix) for r in rows) if measure == "detection" else 1.0
    n = (mean(r.number("n") for r in rows) or 0.0) * (success or 0.0)
    return Share(value, *wilson(value, n)) if 1 <= n < _MOST else Share(value)


@dataclass(frozen=True)
class Conditions:
    """The rows of ``attacks.csv`` for one model.

    Attributes:
        rows: the rows.
        order: detectors as the leaderboard has them.
        doubts: the flags of every perturbation, by label.
    """

    rows: Sequence[Row]
    order: Sequence[str]
    doubts: Mapping[str, Sequence[Flag]] = field(default_factory=dict)

    def own(self) -> list[Row]:
        """Rows without transfer: attacks that know no detector against all, the others against the one they know."""
        return [r for r in self.rows if r.text("against") in ("", r.text("detector"))]

    def detectors(self) -> list[str]:
        """Detectors with a row, in the leaderboard's order; without the row ``none``."""
        known = dict.fromkeys(r.text("detector") for r in self.own())
        first = [d for d in self.order if d in known]
        return [d for d in [*first, *(d for d in known if d not in self.order)] if d and d != ABLATION]

    def flags(self, rows: Sequence[Row]) -> list[Flag]:
        """The sanity flags of the perturbations of some rows, each once; a curve may go beyond the threat model."""
        found = dict.fromkeys(f for r in rows for f in self.doubts.get(r.text("perturbation"), ()))
        return [f for f in found if f.key != BEYOND]


def images(rows: Sequence[Row]) -> int:
    """Return how many images were attacked, the mean over seeds."""
    return int(min(mean(r.number("n") for r in rows) or 0.0, _MOST))


def group_of(row: Row) -> str:
    """Return the label before budgets were expanded."""
    return row.text("group") or row.text("perturbation")


def by_budget(rows: Sequence[Row]) -> list[tuple[float, list[Row]]]:
    """Return rows with a budget, from the smallest to the largest."""
    found: dict[float, list[Row]] = {}
    for row in rows:
        eps = row.number("eps")
        if eps is not None and eps > 0:
            found.setdefault(eps, []).append(row)
    return sorted(found.items())


def written(norm: str, eps: float) -> str:
    """Return a budget as the page writes it: ``L∞ ≤ 8/255``."""
    return budget(norm, f"{eps:.9g}")
