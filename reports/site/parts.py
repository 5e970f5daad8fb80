"""Parts of suites: their parameters, and what built-in ones say of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...harness.core.part_descriptions import builtin_parts
from ..read.run_directory import Run, mapping, objects, words


@dataclass(frozen=True)
class Part:
    """What is known of a part of a suite: its name there, parameters, and what it says of itself."""

    label: str
    name: str = ""
    params: Sequence[tuple[str, str]] = ()
    summary: str = ""
    paper: str = ""
    facts: Sequence[tuple[str, str]] = ()


def parts_of(runs: Sequence[Run], kind: str) -> dict[str, Part]:
    """Return the parts of a kind (``detectors``, ``perturbations``) in the suites of some runs, by label.

    A perturbation with several budgets, or made against several detectors, is one part of its group's label.
    """
    found: dict[str, Part] = {}
    for run in runs:
        resolved = objects(mapping(run.facts.get("resolved")).get(kind)) or objects(run.suite.get(kind))
        for entry in resolved:
            name = words(entry.get("name"))
            label = words(entry.get("group")) or words(entry.get("label")) or name
            own = {k: v for k, v in entry.items() if k not in ("name", "label", "params", "group", "against")}
            given = {**mapping(entry.get("params")), **own}
            params = [(words(k), _value(v)) for k, v in given.items() if _value(v)]
            said = builtin_parts().get(kind, {}).get(name, {})
            facts = [(k, str(said[k])) for k in ("norm", "box", "library", "family", "surrogate") if said.get(k)]
            part = Part(label, name, params, str(said.get("summary", "")), str(said.get("paper", "")), facts)
            found[label] = part if label not in found else replace(found[label], params=_joined(found[label], part))
    return found


def _joined(first: Part, second: Part) -> list[tuple[str, str]]:
    """Return the parameters of two parts of one group, which differ in their budgets, say."""
    values = {key: value.split(", ") for key, value in first.params}
    for key, value in second.params:
        own = values.setdefault(key, [])
        own += [] if value in own else [value]
    return [(key, ", ".join(own)) for key, own in values.items()]


def _value(value: object) -> str:
    return ", ".join(words(v) for v in value) if isinstance(value, list) else words(value)
