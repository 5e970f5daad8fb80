"""Parameters of a suite against the signatures of what they configure."""

from __future__ import annotations

import datetime as dt
import math
from typing import Literal

import pytest
from aftershock.harness.core.parameters import bind, parameters, parse_number
from hypothesis import given
from hypothesis import strategies as st


def part(  # type: ignore[no-untyped-def]  # an author's parameter without annotation
    eps: float, steps: int = 10, name: str = "x", norm: Literal["linf", "l2"] = "linf", both: float | None = None,
    either: int | float = 1, text_or_number: str | float = "all", flag: bool = False, taps: tuple[str, ...] = (),
    plain=None,
) -> None:  # fmt: skip
    """A part with every kind of parameter."""


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("8/255", 8 / 255),
        (" 8 / 255 ", 8 / 255),
        ("0.5/2", 0.25),
        ("0.03", 0.03),
        (3, 3.0),
        (0.1, 0.1),
        ("1e-3", 1e-3),
        (-2, -2.0),
    ],
)
def test_numbers_and_fractions(text: object, number: float) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize(
    "value",
    [
        "",
        "8/",
        "/255",
        "8/0",
        "8/255/2",
        "a/b",
        "eight",
        "nan",
        "inf",
        "-inf",
        math.nan,
        math.inf,
        True,
        None,
        [],
        "0x10/2",
        "8//255",
    ],
)
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"number|zero"):
        parse_number(value)


@given(st.text(max_size=12))
def test_any_text_is_a_finite_number_or_refused(text: str) -> None:
    try:
        assert math.isfinite(parse_number(text))
    except ValueError as error:
        assert str(error)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_float_is_itself(value: float) -> None:
    assert parse_number(value) == value
    assert parse_number(repr(value)) == value


def test_values_are_converted() -> None:
    given_values = {
        "eps": "8/255", "steps": 3, "both": "1/2", "either": "4/2", "text_or_number": "last:2", "norm": "l2",
        "taps": ["a", "b"], "flag": True, "plain": {"anything": 1},
    }  # fmt: skip
    bound, problems = bind(part, given_values)
    assert problems == {}
    assert bound == {
        "eps": 8 / 255, "steps": 3, "both": 0.5, "either": 2, "text_or_number": "last:2", "norm": "l2",
        "taps": ("a", "b"), "flag": True, "plain": {"anything": 1},
    }  # fmt: skip
    assert isinstance(bound["either"], int)
    assert bind(part, {"eps": 1})[0] == {"eps": 1.0}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("eps", "eight", "8/255"),
        ("eps", math.nan, "not a finite number"),
        ("eps", "inf", "not a finite number"),
        ("eps", True, "truth value"),
        ("eps", [0.1], "a budget is one number"),
        ("eps", {"eps": 0.1}, "a budget is one number"),
        ("steps", 2.5, "whole number"),
        ("steps", "many", "whole number"),
        ("steps", True, "truth value"),
        ("steps", "10", "whole number"),
        ("steps", 10.0, "whole number"),
        ("both", [1], "number"),
        ("taps", [1], "text"),
        ("taps", "a", "array"),
        ("flag", 1, "true or false"),
        ("flag", "yes", "true or false"),
        ("plain", {"a": [1, math.nan]}, "finite numbers"),
        ("plain", dt.date(2020, 1, 1), "finite numbers"),
        ("plain", object(), "finite numbers"),
        ("both", math.inf, "not a finite number"),
        ("norm", "l3", "linf or l2"),
        ("name", 3, "text"),
        ("flag", "perhaps", "true or false"),
        ("epss", 1, "did you mean 'eps'"),
        ("self", 1, "it takes: eps"),
    ],
)
def test_mistakes_name_the_parameter_and_what_is_wrong(name: str, value: object, said: str) -> None:
    bound, problems = bind(part, {"eps": 0.1, name: value})
    assert list(problems) == [name]
    assert said in problems[name]
    assert name not in bound


class Careless:
    """Annotations that a plugin's author left out or got wrong."""

    def __init__(  # type: ignore[no-untyped-def]
        self, eps, large_eps: str = "", steps=10, rate=0.5, keep=False, mode="fast", tried: NoSuchName = 1,  # type: ignore[name-defined]  # noqa: F821
        width: int = 3,
    ) -> None: ...  # fmt: skip


@pytest.mark.parametrize(
    ("values", "bound"),
    [
        ({"eps": "8/255"}, {"eps": 8 / 255}),
        ({"eps": 1}, {"eps": 1.0}),
        ({"eps": 0.1, "large_eps": "1/2"}, {"eps": 0.1, "large_eps": 0.5}),
        ({"eps": 0.1, "steps": 3, "rate": "1/4"}, {"eps": 0.1, "steps": 3, "rate": 0.25}),
        ({"eps": 0.1, "keep": True, "mode": 3}, {"eps": 0.1, "keep": True, "mode": 3}),
        ({"eps": 0.1, "tried": "anything", "width": 4}, {"eps": 0.1, "tried": "anything", "width": 4}),
    ],
)
def test_budgets_and_numbers_need_no_annotation(values: dict[str, object], bound: dict[str, object]) -> None:
    assert bind(Careless, values) == (bound, {})


@pytest.mark.parametrize(
    "wrong",
    [
        {"eps": "much"}, {"eps": True}, {"eps": [0.1]}, {"eps": math.inf}, {"large_eps": "large"}, {"steps": "many"},
        {"steps": True}, {"rate": []}, {"keep": 1}, {"keep": "no"}, {"mode": math.nan}, {"width": "4"},
    ],
)  # fmt: skip
def test_what_is_no_number_is_refused_without_an_annotation(wrong: dict[str, object]) -> None:
    assert set(bind(Careless, {"eps": 0.1, **wrong})[1]) == set(wrong)


def test_all_mistakes_at_once_and_the_missing_ones() -> None:
    _, problems = bind(part, {"steps": "x", "norm": "l7", "stepz": 1})
    assert set(problems) == {"steps", "norm", "stepz", "eps"}
    assert "missing" in problems["eps"]


def test_what_the_harness_gives_is_not_the_suites_to_set() -> None:
    def model(shape: tuple[int, int, int], classes: int, width: int = 8) -> None: ...

    assert list(parameters(model, ("shape", "classes"))) == ["width"]
    _, problems = bind(model, {"shape": [1, 2, 3]}, ("shape", "classes"))
    assert "it takes: width" in problems["shape"]


def test_open_ended_parts_take_anything() -> None:
    def open_ended(a: int = 1, **more: object) -> None: ...

    assert bind(open_ended, {"a": 2, "b": [1]}) == ({"a": 2, "b": [1]}, {})
    assert set(bind(open_ended, {"a": 2, "b": math.inf})[1]) == {"b"}


def test_classes_are_read_by_their_constructor() -> None:
    class Part:
        def __init__(self, width: int, depth: int = 2) -> None: ...

    assert list(parameters(Part)) == ["width", "depth"]
    assert bind(Part, {"width": 3}) == ({"width": 3}, {})
