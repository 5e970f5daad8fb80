"""The mistakes of a suite: what is wrong, and in which line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

from ..core.errors import UsageError, described
from ..core.interrupts import PartEndedError, contained
from ..core.parameters import bind
from ..core.process_state import guarded
from ..core.registry import REGISTRIES, Registry, did_you_mean
from .resolved import Part
from .toml_lines import locate

DECIDES_NO_NUMBER = True

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """One mistake in a suite: where (line 0: unknown) and what."""

    line: int
    text: str


class SuiteError(UsageError):
    """Everything that is wrong with a suite."""

    def __init__(self, where: str, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda p: p.line))
        lines = [f"{where}:{p.line}: {p.text}" if p.line else f"{where}: {p.text}" for p in self.problems]
        super().__init__("\n".join(lines))


class Checker:
    """Collects mistakes with their lines while a suite is resolved."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self._places: set[tuple[str | int, ...]] = set()
        # Sources of plugins that could not be loaded, empty where there is no file: names may be theirs.
        self.lost: list[str] = []
        # What perturbations are called whose entries are wrong; `None` for one that has no name at all.
        self.doubtful: set[str | None] = set()

    @contextmanager
    def noted(self, what: str, of_others: bool = False) -> Iterator[None]:
        """Undo and note what a block does to the process, where it may run code of others.

        Args:
            what: whose code it is, for a person.
            of_others: it may, whatever is registered; by default it may where a part is that is not built in.
        """
        if not (of_others or any(registry.has_foreign for registry in REGISTRIES.values())):
            yield
            return
        with guarded() as changes:
            yield
        if changes.all:
            self.notes.append(f"The {what} changed the process ({', '.join(changes.all)}) when it was made: undone.")

    def add(self, location: Sequence[str | int], text: str) -> None:
        problem = Problem(locate(self.text, location), text)
        self._places.add(tuple(location))
        # One mistake in an entry with a list of budgets is met once per budget.
        if problem not in self.problems:
            self.problems.append(problem)

    def wrong_at(self, *location: str | int) -> bool:
        """Return whether a mistake at a key, or within its value, was noted."""
        return any(place[: len(location)] == location for place in self._places)

    def part(self, kind: str, registry: Registry, entry: Any, location: tuple[str | int, ...]) -> Any:
        """Return the factory that an entry names, or ``None`` after noting what is wrong."""
        if not isinstance(entry.name, str):
            # Noted where the shape of the file was read.
            return None
        try:
            with self.noted(f"{kind} {entry.name!r}"), contained():
                return registry.get(entry.name)
        except PartEndedError as error:
            self.add((*location, "name"), f"{kind} {entry.name!r} could not be loaded: {error}")
        except UsageError as error:
            if not self.may_be_lost(entry.name, str(error)):
                self.add((*location, "name"), str(error))
        except Exception as error:
            self.add((*location, "name"), f"{kind} {entry.name!r} could not be loaded: {error}")
        return None

    def may_be_lost(self, name: str | None, said: str) -> bool:
        """Return whether a name is unknown only because the plugin that has it could not be loaded."""
        return name is not None and any(
            f'"{name}"' in source or f"'{name}'" in source if source else "did you mean" not in said
            for source in self.lost
        )

    def bound(
        self,
        factory: Any,
        params: Mapping[str, Any],
        where: str,
        location: tuple[str | int, ...],
        entry: BaseModel,
        skip: tuple[str, ...] = (),
    ) -> dict[str, Any] | None:
        """Return the parameters as ``factory`` asks for them, or ``None`` after noting what is wrong."""
        try:
            with self.noted(where), contained():
                values, problems = bind(factory, params, skip)
        except Exception as error:
            self.add(location, f"{where}: its parameters cannot be read: {error_text(error)}")
            return None
        for name, text in problems.items():
            # A parameter may be a misspelt key of the entry itself.
            meant = "" if "did you mean" in text or name not in params else did_you_mean(name, type(entry).model_fields)
            self.add((*location, name), f"{where}: {text}{meant if 'no parameter' in text else ''}")
        return None if problems else values

    def made(self, make: Callable[[Part], T], part: Part, where: str, location: tuple[str | int, ...]) -> T | None:
        """Construct the part once: its own checks speak before any work starts."""
        try:
            with self.noted(where), contained():
                return make(part)
        except Exception as error:
            text = error_text(error)
            # A complaint about a value that the suite gives is about that key.
            named = re.match(r"(\w+) = ", text)
            about = (named[1],) if named and named[1] in part.params else ()
            self.add((*location, *about), f"{where}: {text}")
        return None


def error_text(error: Exception) -> str:
    """Our own sentences as they are, others with their type."""
    text = described(error)
    return text.removeprefix("ValueError: ") if isinstance(error, ValueError) else text
