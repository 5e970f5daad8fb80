"""The conformance kits: whether a part keeps the contract of its kind, rule by rule."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...detectors.base.detector import Detector
from ..core.errors import UsageError
from ..core.registry import PartKind
from . import analyses, datasets, detectors, models, perturbations
from .kit import Finding, Kit, name_of

__all__ = [
    "KITS",
    "ConformanceWarning",
    "Finding",
    "PartKind",
    "check_detector",
    "check_part",
    "parametrize_with_checks",
    "parametrize_with_detector_checks",
]

KITS: Mapping[str, Kit[Any]] = {
    kit.kind: kit for kit in (detectors.KIT, perturbations.KIT, analyses.KIT, models.KIT, datasets.KIT)
}  # fmt: skip


class ConformanceWarning(UserWarning):
    """A part does not follow a recommendation."""


def check_part(
    kind: PartKind,
    part: Any,
    params: Mapping[str, Any] | None = None,
    only: Iterable[str] | None = None,
    on_check: Callable[[str], None] = lambda name: None,
    debug: bool = False,
) -> list[Finding]:
    """Examine a part by the rules of its kind, on a small CNN and scikit-learn's digits; most take seconds.

    Args:
        kind: ``detector``, ``perturbation``, ``analysis``, ``model`` or ``dataset``.
        part: a registered name; a class (of a perturbation, also a plain function); an instance (of a detector: not
            fitted; it is copied); of a model or a data set, the function that makes it.
        params: for anything but an instance.
        only: names of checks; by default all (``aftershock check`` lists them).
        on_check: called with each check's name when it begins.
        debug: raise what the part raises.

    Returns:
        one finding per check, in order. Its ``status`` is ``failed`` for a broken rule, ``warning`` for an ignored
        recommendation.

    Raises:
        UsageError: if there is no such kind, part or check, or it cannot be made with these parameters.
    """
    if kind not in KITS:
        raise UsageError(f"There is no kind {kind!r}: choose {', '.join(KITS)}.")
    return KITS[kind].examine(part, params, only, on_check, debug)


def check_detector(
    detector: str | Detector | type[Detector],
    params: Mapping[str, Any] | None = None,
    only: Iterable[str] | None = None,
    on_check: Callable[[str], None] = lambda name: None,
) -> list[Finding]:
    """Examine a detector: :func:`check_part` of that kind."""
    return check_part("detector", detector, params, only, on_check)


def parametrize_with_checks(kind: PartKind, parts: Iterable[Any]) -> Callable[..., Any]:
    """Return a pytest decorator: one test per part and check; its arguments are named for the kind, and ``check``.

    ::

        @parametrize_with_checks("perturbation", [MyAttack(eps=0.1), "my-noise"])
        def test_contract(perturbation, check):
            check(perturbation)

    ``check`` raises ``AssertionError`` with the rule that is broken and what to do, warns of a recommendation that is
    not followed (:class:`ConformanceWarning`), or skips with the reason.

    Args:
        kind: as for :func:`check_part`.
        parts: as for :func:`check_part`.
    """
    import pytest

    if kind not in KITS:
        raise UsageError(f"There is no kind {kind!r}: choose {', '.join(KITS)}.")
    kept: list[tuple[Any, Any]] = []
    cases = [
        pytest.param(part, _TestedCheck(kind, name, kept), id=f"{name_of(part)}-{name}")
        for part in parts
        for name in KITS[kind].checks
    ]
    return pytest.mark.parametrize((kind, "check"), cases)


def parametrize_with_detector_checks(detectors: Iterable[str | Detector | type[Detector]]) -> Callable[..., Any]:
    """Return a pytest decorator: :func:`parametrize_with_checks` of detectors, with ``detector`` and ``check``."""
    return parametrize_with_checks("detector", detectors)


@dataclass(frozen=True)
class _TestedCheck:
    """A check as a test.

    Attributes:
        kind: as for :func:`check_part`.
        name: the check's.
        kept: parts, and what the checks of each examine: made once, as for a part that is examined by all of them.
    """

    kind: PartKind
    name: str
    kept: list[tuple[Any, Any]]

    def __call__(self, part: Any) -> None:
        import pytest

        kit = KITS[self.kind]
        found = [context for known, context in self.kept if known is part]
        if not found:
            found = [kit.context(part, {})]
            self.kept.append((part, found[0]))
        (finding,) = kit.examine_context(found[0], only=[self.name])
        if finding.status == "skipped":
            pytest.skip(finding.detail)
        if finding.status == "failed":
            raise AssertionError(str(finding))
        if finding.status == "warning":
            warnings.warn(str(finding), ConformanceWarning, stacklevel=2)
