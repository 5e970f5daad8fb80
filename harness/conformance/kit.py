"""What the kits of all kinds share: rules and recommendations, and what examining a part by them finds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch

from ..core.errors import UsageError, described
from ..core.interrupts import contained
from ..core.parameters import bind
from ..core.registry import Registry

C = TypeVar("C")

Level = Literal["rule", "recommendation"]
Status = Literal["passed", "failed", "warning", "skipped"]

_TRACEBACK = "Find what raised it: `aftershock --debug check ...` shows the traceback."
_ITSELF = "The part says so itself: change its parameters, or its code."


class Broken(Exception):
    """A rule is broken.

    Args:
        text: what is broken.
        fix: what to do, where that is not what the check says.
    """

    def __init__(self, text: str, fix: str = "") -> None:
        super().__init__(text)
        self.fix = fix


class NotApplicable(Exception):
    """The check does not apply to this part, or cannot be done here; the text gives the reason."""


@dataclass(frozen=True)
class Check(Generic[C]):
    """One rule, or one recommendation.

    Attributes:
        name: a short name.
        rule: what must hold (of a recommendation: should hold), as a sentence.
        fix: what to do about a part that breaks it.
        examine: raises :class:`Broken` or :class:`NotApplicable`; may return what it measured.
        level: a part that breaks a rule fails; one that ignores a recommendation gets a warning.
        gate: the checks after it need it: where it fails they are skipped.
    """

    name: str
    rule: str
    fix: str
    examine: Callable[[C], str | None]
    level: Level = "rule"
    gate: bool = False


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: the check's.
        status: ``passed``; ``failed`` (a broken rule); ``warning`` (an ignored recommendation); or ``skipped``.
        rule: what must or should hold.
        detail: what is broken, why it was skipped, or what was measured.
        fix: what to do; empty unless something is broken.
        level: ``rule`` or ``recommendation``.
    """

    name: str
    status: Status
    rule: str
    detail: str = ""
    fix: str = ""
    level: Level = "rule"

    def __str__(self) -> str:
        if self.fix:
            return f"{self.name}: {self.detail}. The {self.level}: {self.rule} What to do: {self.fix}"
        return f"{self.name}: {self.status}{f' ({self.detail})' if self.detail else ''}"


@dataclass(frozen=True)
class Kit(Generic[C]):
    """The checks of one kind of part.

    Attributes:
        kind: the singular, as on the command line.
        checks: by name, in order.
        context: from a part and its parameters to what the checks examine; raises :class:`UsageError` for something
            that is not such a part, or parameters that it does not take.
    """

    kind: str
    checks: Mapping[str, Check[C]]
    context: Callable[[Any, Mapping[str, Any]], C]

    def examine(
        self, part: Any, params: Mapping[str, Any] | None = None, only: Iterable[str] | None = None,
        on_check: Callable[[str], None] = lambda name: None, debug: bool = False,
    ) -> list[Finding]:  # fmt: skip
        """Return one finding per check, in order; see :func:`~aftershock.check_part`."""
        return self.examine_context(self.context(part, params or {}), only, on_check, debug)

    def examine_context(
        self, context: C, only: Iterable[str] | None = None, on_check: Callable[[str], None] = lambda name: None,
        debug: bool = False,
    ) -> list[Finding]:  # fmt: skip
        """Return one finding per check, in order, of what :attr:`context` made of a part."""
        wanted = list(self.checks) if only is None else list(only)
        unknown = [name for name in wanted if name not in self.checks]
        if unknown:
            raise UsageError(f"There is no check {unknown[0]!r}; there are {', '.join(self.checks)}.")
        findings: list[Finding] = []
        closed = ""
        for name in wanted:
            check = self.checks[name]
            on_check(name)
            if closed:
                findings.append(Finding(name, "skipped", check.rule, closed, level=check.level))
                continue
            finding = _examined(check, context, debug)
            if check.gate and finding.status == "failed":
                closed = f"it needs a {self.kind} that passes `{name}`"
            findings.append(finding)
        return findings


def by_name(checks: Iterable[Check[C]]) -> Mapping[str, Check[C]]:
    """Return checks by their names."""
    return {check.name: check for check in checks}


def _examined(check: Check[C], context: C, debug: bool) -> Finding:
    failed: Status = "failed" if check.level == "rule" else "warning"
    try:
        with contained():
            detail = check.examine(context) or ""
    except Broken as broken:
        return Finding(check.name, failed, check.rule, str(broken), broken.fix or check.fix, check.level)
    except NotApplicable as reason:
        return Finding(check.name, "skipped", check.rule, str(reason), level=check.level)
    except UsageError as error:
        return Finding(check.name, failed, check.rule, str(error).rstrip("."), _ITSELF, check.level)
    except Exception as error:  # whatever a part raises is a finding
        if debug:
            raise
        return Finding(check.name, failed, check.rule, f"it raised {described(error)}", _TRACEBACK, check.level)
    return Finding(check.name, "passed", check.rule, detail, level=check.level)


def say_what_is_missing(info: object, names: Sequence[str] = ("paper", "summary")) -> None:
    """Raise :class:`Broken` for an ``info`` that leaves some texts empty."""
    empty = [name for name in names if not str(getattr(info, name, "")).strip()]
    if empty:
        raise Broken(f"info lacks {' and '.join(empty)}")


def process_state() -> dict[str, Any]:
    """Return the state of the process that code of a part may not change, by what people call it."""
    return {
        "torch's global generator": torch.get_rng_state().tolist(),
        "NumPy's global generator": str(np.random.get_state()),
        "Python's global generator": random.getstate(),
        "torch's default dtype": torch.get_default_dtype(),
        "whether gradients are recorded": torch.is_grad_enabled(),
        "the number of threads": torch.get_num_threads(),
    }


@contextmanager
def unchanged_process(more: Callable[[], Mapping[str, Any]] = dict) -> Iterator[None]:
    """Raise :class:`Broken` at the end of a block that changed the process, which is put back.

    Args:
        more: further state that may not change, by name.
    """
    before = {**process_state(), **more()}
    numpy_state = np.random.get_state()
    try:
        yield
        after = {**process_state(), **more()}
        changed = [name for name, value in before.items() if after[name] != value]
    finally:
        torch.set_rng_state(torch.tensor(before["torch's global generator"], dtype=torch.uint8))
        np.random.set_state(numpy_state)
        random.setstate(before["Python's global generator"])
        torch.set_default_dtype(before["torch's default dtype"])
        torch.set_grad_enabled(before["whether gradients are recorded"])
        torch.set_num_threads(before["the number of threads"])
    if changed:
        raise Broken(f"it changes {' and '.join(changed)}")


def factory_of(
    registry: Registry, part: Any, params: Mapping[str, Any], base: type[Any], imported: str
) -> Callable[[], Any]:
    """Return what makes instances of a part that is a class, or the registered name of one.

    Raises:
        UsageError: for an unknown name, something else, or parameters that it does not take.
    """
    factory = registry.get(part) if isinstance(part, str) else part
    if not isinstance(factory, type) or not issubclass(factory, base):
        raise UsageError(
            f"{name_of(part)} is not {_article(registry.word)} {registry.word}: derive its class from {imported}."
        )
    bound, problems = bind(factory, params)
    if problems:
        given = " (give it with --param NAME=VALUE)" if any("is missing" in text for text in problems.values()) else ""
        raise UsageError(f"The {registry.word} {name_of(part)} is wrong: {'; '.join(problems.values())}{given}.")
    factory(**bound)
    return lambda: factory(**bound)


def name_of(part: Any) -> str:
    """Return what a part is called: its registered name, or that of its class or function."""
    if isinstance(part, str):
        return part
    return str(getattr(part, "__name__", type(part).__name__))


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
