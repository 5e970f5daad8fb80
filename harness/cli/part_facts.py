"""What a part says of itself in its signature, docstring and class: for ``aftershock show KIND NAME`` and the docs.

Texts are Markdown, with code in backticks.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from typing import Any, Literal

from ..core.parameters import group_of
from ..core.parameters import parameters as known
from ..core.ranges import says_more, wanted


def markdown(text: str) -> str:
    """Return a docstring's text: roles and doubled backticks become code."""
    return re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text).replace("``", "`")


def arguments(part: type) -> dict[str, str]:
    """Return what a class's docstring says of each parameter."""
    text = inspect.getdoc(part) or ""
    section = re.search(r"^Args:\n((?:[ ]{4}.*\n?|\n)*)", text, re.MULTILINE)
    found: dict[str, str] = {}
    for name, said in re.findall(r"^    (\w+): ((?:.*)(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE):
        found[name] = markdown(" ".join(said.split()))
    return found


def choices(annotation: Any) -> tuple[Any, ...]:
    """Return the values of a ``Literal``, otherwise none."""
    return typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()


def type_text(annotation: Any) -> str:
    """Return a type in words."""
    if choices(annotation):
        return ", ".join(f"`{c}`" for c in choices(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(type_text(a) for a in typing.get_args(annotation) if a is not type(None))
    if says_more(annotation):
        return wanted(annotation).removeprefix("a ")
    name = annotation.__name__ if isinstance(annotation, type) and not typing.get_args(annotation) else str(annotation)
    return re.sub(r"[\w.]+\.(\w+)", r"\1", name).replace(" | ", " or ")


def default_text(default: Any) -> str:
    """Return a default as a suite writes it."""
    if isinstance(default, str):
        return f'`"{default}"`'
    if isinstance(default, list | tuple):
        return "`[" + ", ".join(f'"{d}"' if isinstance(d, str) else str(d) for d in default) + "]`"
    if isinstance(default, bool) or default is None:
        return {True: "`true`", False: "`false`", None: "not set"}[default]
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def parameter_rows(part: Any, table: str = "") -> list[tuple[str, str, str, str]]:
    """Return a row for each parameter that a suite may set: name, type or choices, default, meaning.

    Those of a named part stand as ``sampler.steps``.
    """
    said, rows = arguments(part), []
    for name, p in known(part).items():
        group = group_of(p.annotation)
        if group is not None:
            rows += parameter_rows(group, f"{name}.")
            continue
        default = "required" if p.default is p.empty else default_text(p.default)
        rows.append((f"`{table}{name}`", type_text(p.annotation), default, said.get(name, "")))
    return rows


def variants(part: type) -> list[tuple[str, Any]]:
    """Return instances of a detector: by default, then one for every choice of every parameter that has choices."""
    found: list[tuple[str, Any]] = [("", part())]
    for name, p in known(part).items():
        found += [(f'{name} = "{c}"', part(**{name: c})) for c in choices(p.annotation) if c != p.default]
    return found


def reads(detector: Any) -> str:
    """Return what an instance reads beside the logits."""
    parts = []
    for need in detector.needs:
        what = {"bits": "ReLU bits", "pooled": f"pooled maps ({need.statistic})", "full": "activations"}
        units = f", at most {need.units} units a layer" if need.units else ""
        taps = need.taps if isinstance(need.taps, str) else ", ".join(need.taps)
        parts.append(f"{what[need.representation]}, `{taps}`{units}")
    if detector.views:
        parts.append("a view" if len(detector.views) == 1 else f"{len(detector.views)} views")
    if detector.gradients:
        parts.append("an input gradient")
    return "; ".join(parts) or "logits"


def learns(part: type) -> str:
    """Return from which images it learns, by default and with which choice otherwise."""
    if fits_nothing(part):
        return "nothing"
    (_, first), *others = variants(part)
    words = {True: "perturbed and clean images", False: "clean images"}
    other = [how for how, one in others if one.supervised != first.supervised]
    with_ = f"; {words[not first.supervised]} with " + ", ".join(f"`{how}`" for how in other) if other else ""
    return words[first.supervised] + with_


def fits_nothing(part: type) -> bool:
    """Return whether nothing is learned."""
    # Said in the docstring; the score is then a formula in what one image shows.
    return "nothing is fitted" in (inspect.getdoc(part) or "").lower()


def surrogates(part: type) -> str:
    """Return the kind of surrogate by default, and where a choice changes it."""
    (_, first), *others = variants(part)
    kinds: dict[str, list[str]] = {}
    for how, one in others:
        if one.surrogate_kind != first.surrogate_kind:
            kinds.setdefault(one.surrogate_kind, []).append(f"`{how}`")
    return str(first.surrogate_kind) + "".join(f"; {k} with {', '.join(hows)}" for k, hows in kinds.items())
