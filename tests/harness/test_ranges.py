"""Ranges in annotations: what a constructor refuses, what it converts, and how that is said."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import pytest
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.parameters import bind
from aftershock.harness.core.ranges import (
    Count,
    Fraction,
    NotNegative,
    Portion,
    Positive,
    Ranged,
    Share,
    fitting,
    wanted,
)
from annotated_types import Ge

ALLOWED: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "Count": (Count, [1, 7], [0, -1, 1.0, True, "1", None, math.nan]),
    "Positive": (Positive, [1e-9, 3], [0, -1.0, math.inf, math.nan, True, "1"]),
    "NotNegative": (NotNegative, [0, 0.0, 2], [-1e-9, math.inf]),
    "Share": (Share, [0.5], [0, 1, 1.0, -0.1]),
    "Portion": (Portion, [0, 1, 0.5], [1.1, -0.1]),
    "Fraction": (Fraction, [1, 0.5], [0, 1.1]),
    "word": (Literal["a", "b"], ["a"], ["c", 1, None]),
    "maybe": (Count | None, [None, 2], [0, "x"]),
    "either": (Literal[0] | Annotated[int, Ge(2)], [0, 2], [1, 0.0, False]),
    "list": (list[Count], [[1, 2], []], [[0], "12", 3]),
    "tuple": (tuple[Count, ...], [(1, 2), [3]], [(1, -1)]),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_fits_and_what_does_not(name: str) -> None:
    annotation, good, bad = ALLOWED[name]
    for value in good:
        assert fitting("x", value, annotation) == value
    for value in bad:
        with pytest.raises(UsageError, match=r"x = .*: give "):
            fitting("x", value, annotation)


def test_whole_numbers_become_floats_where_floats_are_asked_for() -> None:
    assert type(fitting("x", 3, Positive)) is float
    assert type(fitting("x", 3, Count)) is int


class Part(Ranged):
    """Has ranges."""

    def __init__(self, steps: Count = 3, rate: Positive | None = None, kind: Kind = "fast", other: Any = 0) -> None:
        self.given = (steps, rate, kind, other)


# Defined after the class that names it.
Kind = Literal["fast", "slow"]


class Heir(Part):
    """A subclass with a constructor of its own."""

    def __init__(self, depth: Count = 1, **more: Any) -> None:
        super().__init__(**more)
        self.depth = depth


def test_a_constructor_holds_its_callers_to_its_annotations() -> None:
    assert Part(steps=2, rate=1, other=-1).given == (2, 1.0, "fast", -1)
    assert Heir(2, steps=5).given[0] == 5
    for wrong in ({"steps": 0}, {"rate": -1.0}, {"kind": "fas"}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Part(**wrong)
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Heir(**wrong)
    with pytest.raises(UsageError, match="depth"):
        Heir(0)
    with pytest.raises(TypeError, match="unknown"):
        Part(unknown=1)  # type: ignore[call-arg]


def test_a_suite_is_told_the_same() -> None:
    values, problems = bind(Part, {"steps": 0, "kind": "x", "rate": "1/2"})
    assert values == {"rate": 0.5}
    assert problems["steps"].endswith(f"give {wanted(Count)}") and problems["kind"].endswith(f"give {wanted(Kind)}")
    with pytest.raises(UsageError, match=wanted(Count)):
        Part(steps=0)
