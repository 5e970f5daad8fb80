"""Checks of parameters that several perturbations share; each raises one clear sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from ...harness.core.errors import UsageError

T = TypeVar("T", bound=str)


def budget(eps: float, norm: str = "linf") -> float:
    """``eps`` as a float, if it is finite, not negative and, for L-inf, at most 1 (images lie in [0, 1])."""
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not math.isfinite(eps) or eps < 0:
        raise UsageError(f"eps = {eps!r}: give a finite number that is not negative, such as 8/255.")
    if norm == "linf" and eps > 1:
        raise UsageError(f"eps = {eps!r}: images lie in [0, 1], so an L-inf budget is at most 1 (is it 8/255?).")
    return float(eps)


def whole(name: str, value: int, minimum: int) -> int:
    """``value``, if it is a whole number of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise UsageError(f"{name} = {value!r}: give a whole number of at least {minimum}.")
    return value


def number(name: str, value: float, minimum: float = 0.0, exclusive: bool = False) -> float:
    """``value`` as a float, if it is finite and at least (``exclusive``: above) ``minimum``."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value < minimum or (exclusive and value == minimum):
        raise UsageError(
            f"{name} = {value!r}: give a finite number {'above' if exclusive else 'of at least'} {minimum:g}."
        )
    return float(value)


def choice(name: str, value: T, known: Sequence[T]) -> T:
    """``value``, if it is one of ``known``."""
    if value not in known:
        raise UsageError(f"{name} = {value!r}: choose {' or '.join(known)}.")
    return value
