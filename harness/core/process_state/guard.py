"""Recording a process's state and putting it back, around code of others."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..registry import PACKAGE
from . import patches, python_probes, torch_probes
from .probe import Probe

DECIDES_NO_NUMBER = True

# Functions come first: the others are read and written with them.
PROBES = (patches.PROBE, *torch_probes.PROBES, *python_probes.PROBES)
# How torch computes: cheap enough for every step of an attack.
ARITHMETIC = torch_probes.PROBES
_LONGEST = 5


# Of a cell's values: what the code of its part left changed.
CHANGED = "changed_state"
# Of a row, followed by a colon and what was changed.
CHANGED_FLAG = "changed-state"


@dataclass
class Changes:
    """What a block of code left changed; all of it was put back.

    Attributes:
        numbers: what later numbers could depend on.
        others: what could disturb others without changing a number.
    """

    numbers: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    @property
    def all(self) -> list[str]:
        """Both, each once, and no more than a person reads."""
        found = list(dict.fromkeys([*self.numbers, *self.others]))
        return found if len(found) <= _LONGEST else [*found[: _LONGEST - 1], f"{len(found) - _LONGEST + 1} more"]


@contextmanager
def guarded(probes: Sequence[Probe] = PROBES) -> Iterator[Changes]:
    """Put the state of the process back at the end of a block, also on an error.

    In the process of a plugin :data:`ARITHMETIC` is enough: no other code runs there.

    The value is filled when the block ends. A library that is imported for the first time may set warnings, variables
    of the environment and the like, and torch replaces functions of its own when it imports its compiler: that is put
    back without a word.
    """
    changes = Changes()
    before = [(probe, probe.read()) for probe in probes]
    imported = len(sys.modules)
    try:
        yield changes
    finally:
        for probe, value in before:
            names = probe.changed(value)
            if not names:
                continue
            probe.write(value)
            new = {name.partition(".")[0] for name in list(sys.modules)[imported:]}
            if probe.effect == "numbers":
                changes.numbers += [n for n in names if n.partition(".")[0] not in new - {PACKAGE}]
            elif probe.effect == "disturbs" and not new:
                changes.others += names


def own_code(part: object) -> bool:
    """Return whether a part's class is of this package."""
    return type(part).__module__.partition(".")[0] == PACKAGE


@contextmanager
def guarded_part(part: object) -> Iterator[Changes]:
    """Like :func:`guarded` around a call of a part's method; parts of this package need none besides their cell's."""
    if own_code(part):
        yield Changes()
        return
    with guarded() as changes:
        yield changes


def noted(values: Mapping[str, Any], *changes: Changes) -> Mapping[str, Any]:
    """Return a cell's values with what was changed while it was computed, and as they are where nothing was."""
    names = dict.fromkeys([*values.get(CHANGED, ()), *(name for found in changes for name in found.all)])
    return {**values, CHANGED: list(names)} if names else values
