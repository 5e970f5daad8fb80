"""Parameters of a suite's entries, validated against the signature of the thing that they configure."""

from __future__ import annotations

import inspect
import math
import re
import sys
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from . import ranges
from .content_keys import canonical
from .errors import UsageError
from .registry import did_you_mean

T = TypeVar("T")
_FRACTION = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*/\s*([0-9]+(?:\.[0-9]+)?)\s*")


def parse_number(value: object) -> float:
    """Return a finite number from a number or a string such as ``"8/255"`` or ``"0.03"``.

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


class SelfBinding(ABC):
    """A factory that checks and converts parameters by itself, as a stand-in for one in another process does."""

    @abstractmethod
    def bind(self, values: Mapping[str, Any], skip: tuple[str, ...] = ()) -> tuple[dict[str, Any], dict[str, str]]:
        """As :func:`bind`."""


def parameters(factory: Callable[..., Any], skip: tuple[str, ...] = ()) -> dict[str, inspect.Parameter]:
    """The parameters that a suite may set on a class or function, by name (``skip``: those the harness gives)."""
    return {
        name: p
        for name, p in signature_of(factory).parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name not in skip and name != "self"
    }


def signature_of(factory: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a class or function, with annotations evaluated as far as their names are known."""
    try:
        return inspect.signature(factory, eval_str=True)
    except NameError:
        # An annotation names what is imported for type checkers only: those that can be read still count.
        plain = inspect.signature(factory)
        names = vars(sys.modules.get(getattr(factory, "__module__", "")) or types)
        return plain.replace(
            parameters=[p.replace(annotation=_evaluated(p.annotation, names)) for p in plain.parameters.values()]
        )


def _evaluated(annotation: Any, names: Mapping[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, dict(names))  # noqa: S307 (code of a module that is imported already)
    except NameError:
        return Any


def bind(
    factory: Callable[..., Any] | SelfBinding, values: Mapping[str, Any], skip: tuple[str, ...] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """Check and convert ``values`` for ``factory``.

    Numbers, whole numbers, truth values and text are not converted into each other; a fraction such as ``"8/255"`` is
    a number. A budget (``eps``, ``..._eps``) becomes one whatever its annotation. Without an annotation, a number as
    the default asks for a number and a truth value for a truth value.

    Returns:
        the keyword arguments (only those that were given), and the problems by parameter name.
    """
    if isinstance(factory, SelfBinding):
        return factory.bind(values, skip)
    known = parameters(factory, skip)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature_of(factory).parameters.values())
    bound: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for name, value in values.items():
        if name not in known and not open_ended:
            names = ", ".join(known) or "none"
            problems[name] = f"there is no parameter {name!r}{did_you_mean(name, known)}; it takes: {names}"
            continue
        try:
            bound[name] = _converted(name, value, _wanted(known.get(name)))
        except ValueError as error:
            problems[name] = f"{name} = {_shortened(value)}: {error}"
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in values:
            problems[name] = f"the parameter {name!r} is missing"
    return bound, problems


def is_budget(name: str) -> bool:
    """Return whether a parameter is a budget by its name."""
    return name == "eps" or name.endswith("_eps")


def _wanted(parameter: inspect.Parameter | None) -> Any:
    """Return the type that a parameter asks for: its annotation, else what its default is."""
    if parameter is None:
        return Any
    if parameter.annotation is not parameter.empty:
        return parameter.annotation
    if isinstance(parameter.default, bool):
        return bool
    return int | float if isinstance(parameter.default, int | float) else Any


def _converted(name: str, value: object, annotation: Any) -> Any:
    """``value`` as a parameter asks for it.

    Raises:
        ValueError: if it cannot be that, or has no form in a content key.
    """
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

    if isinstance(value, bool) and _alternatives(annotation) & {int, float} and bool not in _alternatives(annotation):
        raise ValueError("a number is wanted, not a truth value")
    if is_budget(name) and value is not None:
        if isinstance(value, list | tuple | Mapping):
            raise ValueError('a budget is one number, such as 0.03 or "8/255"')
        value = parse_number(value)
        if not _alternatives(annotation) & {int, float}:
            return value
    if _means_number(annotation, value):
        value = parse_number(value)
        if int in _alternatives(annotation) and value.is_integer():
            value = int(value)
    try:
        text = canonical(value)
        # Read as JSON: its lists are tuples and sets where those are asked for, its numbers never truth values.
        loose = None if _is_model(annotation) else ConfigDict(arbitrary_types_allowed=True)
        found = TypeAdapter(annotation, config=loose).validate_json(text, strict=True)
        canonical(found)
    except ValidationError as error:
        item = error.errors()[0]
        instead = ranges.wanted(annotation) if ranges.says_more(annotation) else wanted(item)
        raise ValueError(str(item["msg"]) if instead is None else f"give {instead}") from error
    except PydanticUserError:
        return value
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            "give finite numbers, text, true or false, and lists or tables of them: nothing else can be part of a "
            "content key"
        ) from error
    return found


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _alternatives(annotation: Any) -> set[Any]:
    if typing.get_origin(annotation) is typing.Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return set().union(*(_alternatives(a) for a in typing.get_args(annotation)))
    return {annotation} if isinstance(annotation, type) else set()


def _means_number(annotation: Any, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, str | float | int) or float not in _alternatives(annotation):
        return False
    return not (isinstance(value, str) and str in _alternatives(annotation))


def _is_model(annotation: Any) -> bool:
    return hasattr(annotation, "model_validate")


# What is wanted where something else was given, by pydantic's name for the error.
_WANTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a table",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "too_short": "a list with at least {min_length} of them",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
}


def wanted(item: Any) -> str | None:
    """Return what to give in place of a value that pydantic refused; ``None`` where only its own message says it.

    Args:
        item: of ``ValidationError.errors()``.
    """
    words = _WANTED.get(item["type"])
    return None if words is None else words.format(**item.get("ctx", {}))


def group_of(annotation: Any) -> type[Any] | None:
    """The class of a named part of parameters: ``Annotated[dict[str, Any] | None, Sampler]``; ``None`` for others."""
    found = getattr(annotation, "__metadata__", ())
    return next((kind for kind in found if isinstance(kind, type)), None)


def grouped(kind: type[T], name: str, values: Mapping[str, Any] | None) -> T:
    """Return a named part of a part's parameters, from its table in a suite.

    Args:
        kind: a dataclass whose fields are the parameters, ranges in their annotations.
        name: of the table.
        values: as given; ``None`` for the defaults.

    Raises:
        UsageError: for everything that is wrong with them.
    """
    bound, problems = bind(kind, values or {})
    if problems:
        raise UsageError("; ".join(f"{name}: {problem}" for problem in problems.values()) + ".")
    return kind(**bound)
