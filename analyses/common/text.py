"""Numbers with their intervals, as sentences, curves and tables show them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from ...harness.statistics.intervals import Estimate
from ..findings import Claim, Series, Value

DECIDES_NO_NUMBER = True

Style = Literal["solid", "dashed", "dotted"]


def known(value: float | None) -> float | None:
    """A number for a curve or a table; ``None`` where there is none."""
    return None if value is None or not math.isfinite(value) else float(value)


def ends(found: Estimate) -> tuple[float | None, float | None, float | None]:
    """A number and the ends of its interval for a table or a claim."""
    return known(found.value), known(found.low), known(found.high)


def with_interval(found: Estimate, digits: int = 2, unit: str = "", factor: float = 1.0, sign: str = "") -> str:
    """``1.23 [1.10, 1.36]``; the number alone where it has no interval; with the sign ``+`` also above 0."""
    value, low, high = (f"{factor * end:{sign}.{digits}f}" for end in found.ends)
    return f"{value}{unit}" if known(found.low) is None else f"{value}{unit} [{low}, {high}]"


def percent(found: Estimate) -> str:
    """A share for a sentence."""
    return with_interval(found, 1, " %", 100)


def side(found: Estimate, of: float = 0.0) -> Literal["above", "below", "either"]:
    """On which side of a number an interval lies."""
    return "above" if found.low > of else "below" if found.high < of else "either"


def methods(found: Iterable[Estimate | None]) -> str:
    """How the intervals of a table or a figure were made, for its caption: ``95 % intervals (Wilson)``."""
    names = dict.fromkeys(one.method for one in found if one is not None and one.method)
    return f"95 % intervals ({'; '.join(names)})" if names else "no intervals"


def series(name: str, values: Sequence[Estimate | None], style: Style = "solid", band: bool = True) -> Series:
    """A curve, with its intervals or without; ``None`` where there is no number."""
    y, low, high = zip(*((None,) * 3 if v is None else ends(v) for v in values), strict=True)
    return Series(name, list(y), list(low) if band else (), list(high) if band else (), style)


def no_untrained(reason: str) -> list[Claim]:
    """That there is no untrained network to compare with, where there is a reason why."""
    text = f"There is no untrained network to compare with: {reason}"
    return [Claim("no-untrained-network", verdict=reason, sentence=text)] if reason else []


def span(counts: Sequence[int]) -> str:
    """A number of images, or from what to what."""
    fewest, most = min(counts), max(counts)
    return str(fewest) if fewest == most else f"{fewest} to {most}"


def number(value: Value) -> float:
    """A number in a table's row; NaN for a text or nothing."""
    return float(value) if isinstance(value, int | float) else math.nan
