"""Parameters of a suite's entries, validated against the signature of the thing that they configure."""

from __future__ import annotations

import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from .registry import did_you_mean

_FRACTION = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*/\s*([0-9]+(?:\.[0-9]+)?)\s*")


def parse_number(value: object) -> float:
    """A finite number from a number or a string such as ``"8/255"`` or ``"0.03"``.

    Raises:
        ValueError: for anything else, NaN and infinity included; the text says what was expected.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f'{value!r} is neither a number nor a fraction such as "8/255"')
    if isinstance(value, str):
        fraction = _FRACTION.fullmatch(value)
        if fraction:
            if float(fraction[2]) == 0:
                raise ValueError(f"{value!r} divides by zero")
            return float(fraction[1]) / float(fraction[2])
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f'{value!r} is neither a number nor a fraction such as "8/255"') from None
    else:
        number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def parameters(factory: Callable[..., Any], skip: tuple[str, ...] = ()) -> dict[str, inspect.Parameter]:
    """The parameters that a suite may set on a class or function, by name (``skip``: those the harness gives)."""
    found = inspect.signature(factory, eval_str=True).parameters
    return {
        name: p
        for name, p in found.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name not in skip and name != "self"
    }


def bind(
    factory: Callable[..., Any], values: Mapping[str, Any], skip: tuple[str, ...] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """Check and convert ``values`` for ``factory``.

    Returns:
        the keyword arguments (only those that were given), and the problems by parameter name.
    """
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

    known = parameters(factory, skip)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(factory).parameters.values())
    bound: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for name, value in values.items():
        if name not in known:
            if open_ended:
                bound[name] = value
                continue
            names = ", ".join(known) or "none"
            problems[name] = f"there is no parameter {name!r}{did_you_mean(name, known)}; it takes: {names}"
            continue
        annotation = known[name].annotation
        if annotation is inspect.Parameter.empty:
            bound[name] = value
            continue
        try:
            if isinstance(value, bool) and _takes_number(annotation) and bool not in _alternatives(annotation):
                raise ValueError("a number is wanted, not a truth value")
            if _means_number(annotation, value):
                value = parse_number(value)
                if _takes_int(annotation) and value.is_integer():
                    value = int(value)
            strict = ConfigDict(strict=False, arbitrary_types_allowed=True)
            bound[name] = TypeAdapter(annotation, config=None if _is_model(annotation) else strict).validate_python(
                value
            )
        except ValidationError as error:
            problems[name] = f"{name} = {value!r}: {error.errors()[0]['msg']}"
        except ValueError as error:
            problems[name] = f"{name} = {value!r}: {error}"
        except PydanticUserError:
            bound[name] = value
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in values:
            problems[name] = f"the parameter {name!r} is missing"
    return bound, problems


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _means_number(annotation: Any, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, str | float | int) or not _takes_float(annotation):
        return False
    return not (isinstance(value, str) and _takes_str(annotation))


def _takes_float(annotation: Any) -> bool:
    return float in _alternatives(annotation)


def _takes_number(annotation: Any) -> bool:
    return _takes_float(annotation) or _takes_int(annotation)


def _takes_int(annotation: Any) -> bool:
    return int in _alternatives(annotation)


def _takes_str(annotation: Any) -> bool:
    return str in _alternatives(annotation)


def _is_model(annotation: Any) -> bool:
    return hasattr(annotation, "model_validate")
