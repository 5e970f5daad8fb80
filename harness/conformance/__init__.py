"""The conformance kit: whether a detector keeps the contract, rule by rule, on the command line and in pytest."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ...detectors.base.detector import Detector
from ..core.errors import UsageError
from ..core.parameters import bind
from ..core.registry import DETECTORS
from .detectors import CHECKS, Broken, Check, NotApplicable, Patient
from .fixture import World, make_world

# Examined whatever the ones before them found.
FIRST = ("info", "needs", "fits")

__all__ = ["CHECKS", "Check", "Finding", "World", "check_detector", "make_world", "parametrize_with_detector_checks"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: the check's.
        status: passed, failed or skipped.
        rule: what must hold.
        detail: what was broken, why it was skipped, or what was measured.
        mend: how to repair it; empty unless it failed.
    """

    name: str
    status: Literal["passed", "failed", "skipped"]
    rule: str
    detail: str = ""
    mend: str = ""

    def __str__(self) -> str:
        if self.status == "failed":
            return f"{self.name}: {self.detail}. The rule: {self.rule} To mend it: {self.mend}"
        return f"{self.name}: {self.status}{f' ({self.detail})' if self.detail else ''}"


def check_detector(
    detector: str | Detector | type[Detector],
    params: dict[str, Any] | None = None,
    only: Iterable[str] | None = None,
    tell: Callable[[str], None] = lambda name: None,
) -> list[Finding]:
    """Examine a detector on a small CNN and scikit-learn's digits; most take seconds.

    Args:
        detector: a registered name, a class, or an instance that has not been fitted (it is copied).
        params: for a name or a class.
        only: names of checks, by default all (see ``CHECKS``).
        tell: called with each check's name when it begins.

    Returns:
        one finding per check, in order.

    Raises:
        UsageError: if there is no such detector or check, or it cannot be made with these parameters.
    """
    wanted = list(CHECKS) if only is None else list(only)
    unknown = [name for name in wanted if name not in CHECKS]
    if unknown:
        raise UsageError(f"There is no check {unknown[0]!r}; there are {', '.join(CHECKS)}.")
    patient = Patient(_maker(detector, params or {}), make_world())
    findings: list[Finding] = []
    unfit = ""
    for name in wanted:
        check = CHECKS[name]
        tell(name)
        if unfit and name not in FIRST:
            findings.append(Finding(name, "skipped", check.rule, unfit))
            continue
        finding = _examine(check, patient)
        if name in ("needs", "fits", "scores") and finding.status == "failed":
            unfit = f"it needs a detector that passes `{name}`"
        findings.append(finding)
    return findings


def parametrize_with_detector_checks(detectors: Iterable[str | Detector | type[Detector]]) -> Callable[..., Any]:
    """A pytest decorator: one test per detector and check, with arguments ``detector`` and ``check``.

    ::

        @parametrize_with_detector_checks([MyDetector(layers="all")])
        def test_contract(detector, check):
            check(detector)

    ``check`` raises ``AssertionError`` with the rule that was broken and how to mend it, or skips with the reason.
    """
    import pytest

    cases = [
        pytest.param(detector, _TestedCheck(name), id=f"{_name(detector)}-{name}")
        for detector in detectors
        for name in CHECKS
    ]
    return pytest.mark.parametrize(("detector", "check"), cases)


@dataclass(frozen=True)
class _TestedCheck:
    name: str

    def __call__(self, detector: str | Detector | type[Detector]) -> None:
        import pytest

        (finding,) = check_detector(detector, only=[self.name])
        if finding.status == "skipped":
            pytest.skip(finding.detail)
        if finding.status == "failed":
            raise AssertionError(str(finding))


def _maker(detector: str | Detector | type[Detector], params: dict[str, Any]) -> Callable[[], Detector]:
    if isinstance(detector, Detector):
        return lambda: copy.deepcopy(detector)
    factory = DETECTORS.get(detector) if isinstance(detector, str) else detector
    if not isinstance(factory, type) or not issubclass(factory, Detector):
        raise UsageError(f"{_name(detector)} is no Detector: derive it from aftershock.detectors.Detector.")
    bound, problems = bind(factory, params)
    if problems:
        raise UsageError(f"The detector {_name(detector)} is wrong: {'; '.join(problems.values())}.")
    factory(**bound)
    return lambda: factory(**bound)


def _name(detector: str | Detector | type[Detector]) -> str:
    if isinstance(detector, str):
        return detector
    return detector.__name__ if isinstance(detector, type) else type(detector).__name__


def _examine(check: Check, patient: Patient) -> Finding:
    try:
        detail = check.examine(patient) or ""
    except Broken as broken:
        return Finding(check.name, "failed", check.rule, str(broken), check.mend)
    except NotApplicable as reason:
        return Finding(check.name, "skipped", check.rule, str(reason))
    except Exception as error:  # whatever a plugin raises is a finding
        what = f"it raised {type(error).__name__}: {' '.join(str(error).split()) or '(no text)'}"
        return Finding(check.name, "failed", check.rule, what, check.mend)
    return Finding(check.name, "passed", check.rule, detail)
