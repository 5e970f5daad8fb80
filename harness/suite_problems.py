"""The mistakes of a suite: what is wrong, and in which line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .errors import UsageError
from .params import bind
from .registry import Registry
from .suite import Part
from .toml_lines import locate

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
        self._places: set[tuple[str | int, ...]] = set()
        # Sources of plugins that could not be loaded, empty where there is no file: names may be theirs.
        self.lost: list[str] = []
        # What perturbations are called whose entries are wrong; `None` for one that has no name at all.
        self.doubtful: set[str | None] = set()

    def add(self, location: Sequence[str | int], text: str) -> None:
        problem = Problem(locate(self.text, location), text)
        self._places.add(tuple(location))
        # One mistake in an entry with a list of budgets is met once per budget.
        if problem not in self.problems:
            self.problems.append(problem)

    def wrong_at(self, *location: str | int) -> bool:
        """Whether a mistake at a key, or within its value, was noted."""
        return any(place[: len(location)] == location for place in self._places)

    def part(self, kind: str, registry: Registry, entry: Any, location: tuple[str | int, ...]) -> Any:
        """The factory that an entry names, or ``None`` after noting what is wrong."""
        if not isinstance(entry.name, str):
            # Noted where the shape of the file was read.
            return None
        try:
            return registry.get(entry.name)
        except UsageError as error:
            if not self.may_be_lost(entry.name, str(error)):
                self.add((*location, "name"), str(error))
        except (Exception, SystemExit) as error:
            self.add((*location, "name"), f"{kind} {entry.name!r} could not be loaded: {error}")
        return None

    def may_be_lost(self, name: str | None, said: str) -> bool:
        """Whether a name is unknown only because the plugin that has it could not be loaded."""
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
        skip: tuple[str, ...] = (),
    ) -> dict[str, Any] | None:
        """The parameters as ``factory`` asks for them, or ``None`` after noting what is wrong."""
        try:
            values, problems = bind(factory, params, skip)
        except (Exception, SystemExit) as error:
            self.add(location, f"{where}: its parameters cannot be read: {told(error)}")
            return None
        for name, text in problems.items():
            self.add((*location, name), f"{where}: {text}")
        return None if problems else values

    def made(self, make: Callable[[Part], T], part: Part, where: str, location: tuple[str | int, ...]) -> T | None:
        """Construct the part once: its own checks speak before any work starts."""
        try:
            return make(part)
        except (Exception, SystemExit) as error:
            self.add(location, f"{where}: {told(error)}")
        return None


def told(error: BaseException) -> str:
    """Our own sentences as they are, others with their type."""
    if isinstance(error, SystemExit):
        return f"it tried to end the program (sys.exit({error.code!r}))"
    if isinstance(error, UsageError | ValueError):
        return str(error)
    return f"{type(error).__name__}: {error}"
