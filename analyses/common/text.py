"""Numbers with their intervals, as sentences, curves and tables show them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from ..findings import Claim, Series, Value

DECIDES_NO_NUMBER = True

Interval = tuple[float, float | None, float | None]
Style = Literal["solid", "dashed", "dotted"]


def known(value: float | None) -> float | None:
    """A number for a curve or a table; ``None`` where there is none."""
    return None if value is None or not math.isfinite(value) else float(value)


def ends(interval: Interval) -> tuple[float | None, float | None, float | None]:
    """A number and the ends of its interval for a table or a claim."""
    value, low, high = interval
    return known(value), known(low), known(high)


def with_interval(interval: Interval, digits: int = 2, unit: str = "", factor: float = 1.0) -> str:
    """``1.23 [1.10, 1.36]``; the number alone where it has no interval."""
    value, low, high = interval
    text = f"{factor * value:.{digits}f}{unit}"
    if known(low) is None or low is None or high is None:
        return text
    return f"{text} [{factor * low:.{digits}f}, {factor * high:.{digits}f}]"


def side(interval: Interval, of: float = 0.0) -> Literal["above", "below", "either"]:
    """On which side of a number an interval lies."""
    _, low, high = interval
    if low is not None and low > of:
        return "above"
    return "below" if high is not None and high < of else "either"


def series(name: str, values: Sequence[Interval], style: Style = "solid", band: bool = True) -> Series:
    """A curve, with its intervals or without."""
    y, low, high = ([known(v) for v in column] for column in zip(*values, strict=True))
    return Series(name, y, low if band else (), high if band else (), style)


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
