"""Ranges of parameters, stated once: in the annotation of the constructor that takes them.

``epochs: Count = 15`` is a whole number of at least 1, ``Annotated[float, Ge(0)]`` a finite number of at least 0, a
``Literal`` one of its members. Suites are checked against the annotation (:mod:`.parameters`), the tables of the docs
show it, and a class that derives from :class:`Ranged` holds its callers to it.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from annotated_types import BaseMetadata, Ge, Gt, Le, Lt

from .errors import UsageError

DECIDES_NO_NUMBER = True

Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
# Between 0 and 1, both excluded, and from 0 to 1.
Share = Annotated[float, Gt(0), Lt(1)]
Portion = Annotated[float, Ge(0), Le(1)]
# Above 0, at most 1.
Fraction = Annotated[float, Gt(0), Le(1)]

_UNIONS = (typing.Union, types.UnionType)


class Ranged:
    """Base of classes whose constructors take nothing out of the ranges in their annotations.

    Raises:
        UsageError: with the parameter, what was given, and what to give.
    """

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        own = cls.__dict__.get("__init__")
        if inspect.isfunction(own):
            cls.__init__ = ranged(own)  # type: ignore[method-assign]  # the same signature


def ranged(function: Callable[..., None]) -> Callable[..., None]:
    """Wrap a constructor so that it refuses what lies out of the ranges in its annotations.

    Whole numbers become floats where a range of floats is asked for. The annotations are read at the first call, since
    those of a class may name what its module defines later.
    """
    state: list[tuple[inspect.Signature, Mapping[str, Any]]] = []

    @functools.wraps(function)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        if not state:
            state.append((inspect.signature(function), _annotations(function)))
        signature, annotations = state[0]
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError:
            # Python says best what is missing or too much.
            function(self, *args, **kwargs)
            return
        for name, value in bound.arguments.items():
            if name in annotations:
                bound.arguments[name] = fitting(name, value, annotations[name])
        function(*bound.args, **bound.kwargs)

    return checked


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations that say what a parameter may be."""
    try:
        found = typing.get_type_hints(function, include_extras=True)
    except NameError:
        # One of them names what is imported for type checkers only.
        found = {}
        for name, parameter in inspect.signature(function).parameters.items():
            with_names = getattr(function, "__globals__", {})
            try:
                found[name] = eval(str(parameter.annotation), with_names)  # noqa: S307 (code of an imported module)
            except (NameError, SyntaxError):
                continue
    return {name: a for name, a in found.items() if name != "return" and says_more(a)}


def _says(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (Literal, Annotated) or _each(annotation) is not None


def _each(annotation: Any) -> Any:
    """What the items of a list, or of a tuple of any length, have to be; ``None`` where nothing is said of them."""
    arguments = [a for a in typing.get_args(annotation) if a is not Ellipsis]
    several = typing.get_origin(annotation) in (list, tuple) and len(arguments) == 1
    return arguments[0] if several and says_more(arguments[0]) else None


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) in _UNIONS else (annotation,)


def fitting(name: str, value: Any, annotation: Any) -> Any:
    """Return a value as an annotation asks for it.

    Raises:
        UsageError: if it is nothing that the annotation allows.
    """
    for alternative in _alternatives(annotation):
        fits, found = _fits(value, alternative)
        if fits:
            return found
    raise UsageError(f"{name} = {value!r:.60}: give {wanted(annotation)}.")


def _fits(value: Any, annotation: Any) -> tuple[bool, Any]:
    """Return whether a value is what one annotation asks for, and as what it counts; plain types are not looked at."""
    if annotation is type(None):
        return value is None, value
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return any(value == known and type(value) is type(known) for known in typing.get_args(annotation)), value
    if (item := _each(annotation)) is not None:
        if not isinstance(value, list | tuple):
            return False, value
        parts = [next((p for ok, p in (_fits(v, a) for a in _alternatives(item)) if ok), None) for v in value]
        return not any(part is None for part in parts), type(value)(parts)
    if origin is not Annotated:
        plain = annotation if isinstance(annotation, type) else origin
        return not isinstance(plain, type) or isinstance(value, plain), value
    kind, *limits = typing.get_args(annotation)
    if kind in (int, float):
        numbers = int if kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, numbers) or not math.isfinite(value):
            return False, value
        value = kind(value)
    return all(_within(value, limit) for limit in limits), value


def _within(value: Any, limit: Any) -> bool:
    match limit:
        case Ge(least):
            return bool(value >= least)
        case Gt(below):
            return bool(value > below)
        case Le(most):
            return bool(value <= most)
        case Lt(above):
            return bool(value < above)
    return True


def wanted(annotation: Any) -> str:
    """Return what an annotation asks for, in words: ``a whole number of at least 1``."""
    return " or ".join(dict.fromkeys(_words(a) for a in _alternatives(annotation)))


def _words(annotation: Any) -> str:
    if annotation is type(None):
        return "None"
    if (item := _each(annotation)) is not None:
        return f"a list, of each {wanted(item).removeprefix('a ')}"
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return " or ".join(map(str, typing.get_args(annotation)))
    if origin is not Annotated:
        return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(
            annotation, getattr(annotation, "__name__", str(annotation))
        )
    kind, *limits = typing.get_args(annotation)
    base = {int: "a whole number", float: "a finite number"}.get(kind, _words(kind))
    known: list[Any] = [limit for limit in limits if isinstance(limit, BaseMetadata)]
    # A limit of 0 and one of 0.0 are equal, and `Annotated` keeps the one that it met first.
    match known:
        case [Gt(low), Lt(high)]:
            return f"a number between {low:g} and {high:g}, both excluded"
        case [Ge(low), Le(high)]:
            return f"{base} from {low:g} to {high:g}"
        case [Gt(low), Le(high)]:
            return f"{base} above {low:g}, at most {high:g}"
    return " ".join([base, *(_limit(limit) for limit in known)])


def _limit(limit: Any) -> str:
    match limit:
        case Ge(least):
            return f"of at least {least:g}"
        case Gt(below):
            return f"above {below:g}"
        case Le(most):
            return f"of at most {most:g}"
        case Lt(above):
            return f"below {above:g}"
    return ""


def says_more(annotation: Any) -> bool:
    """Return whether an annotation says more than a type."""
    return any(map(_says, _alternatives(annotation)))
