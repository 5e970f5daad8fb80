"""What the harness asks of a part, as soon as it is made: a mistake of a plugin is reported before any work is done.

Attributes of a part may be properties that raise, or hold anything: whatever a plan, a table or a page reads is
checked.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...attacks.base.kinds import Effort
from ..core.errors import UsageError
from ..core.registry import ANALYSES, DETECTORS, PERTURBATIONS
from ..tracing.traces import Need
from .resolved import Part

if TYPE_CHECKING:
    from ...analyses.base import Analysis
    from ...analyses.standing import StandingAnalysis
    from ...attacks.base.perturbation import Perturbation
    from ...detectors.base.detector import Detector

DECIDES_NO_NUMBER = True

_KINDS = ("noise", "corruption", "attack", "adaptive")
_COSTS = ("low", "medium", "high")
_SURROGATES = ("exact", "relaxed", "straight-through", "none")


def make_perturbation(part: Part) -> Perturbation:
    """Return a perturbation as a suite's entry describes it, checked.

    Raises:
        UsageError: for an attribute that is not as :class:`~...attacks.base.perturbation.Perturbation` describes it.
        Exception: whatever its constructor and its properties raise.
    """
    return checked_perturbation(PERTURBATIONS.get(part.name)(**part.params))


def checked_perturbation(made: object) -> Perturbation:
    """Return an instance whose attributes are what the harness reads.

    Raises:
        UsageError: for one that is not as its base class describes it.
        Exception: whatever its properties raise.
    """
    from ...attacks.base.perturbation import NORMS, Perturbation, PerturbationInfo

    if not isinstance(made, Perturbation):
        raise UsageError(f"{made!r:.60} is not a perturbation: derive its class from aftershock.attacks.Perturbation")
    _info(made.info, PerturbationInfo, ("title", "family"), ("library", "paper", "summary"))
    info = made.info
    _one_of("info.kind", info.kind, _KINDS)
    _one_of("info.norm", info.norm, (*NORMS, None))
    _one_of("info.cost", info.cost, _COSTS)
    for flag in ("gradients", "stochastic", "one_step", "minimises"):
        _truth(f"info.{flag}", getattr(info, flag))
    _one_of("norm", made.norm, (*NORMS, None))
    for name in ("eps", "large_eps"):
        _budget(name, getattr(made, name, None), made.norm)
    _text("family", made.family, False)
    if made.images is not None and (type(made.images) is not int or made.images < 1):
        raise UsageError(f"images = {made.images!r}: give None or a whole number of at least 1")
    _truth("learnable", made.learnable)
    for file in _all("source_files()", made.source_files(), Path, "pathlib.Path"):
        if not file.is_file():
            raise UsageError(f"source_files() names {file}, which is not a file")
    covered = made.covers([0, 1])
    if not isinstance(covered, list) or len(covered) != 2 or not all(isinstance(c, bool) for c in covered):
        raise UsageError(f"covers([0, 1]) gave {covered!r:.60} instead of two truth values in a list")
    if made.effort is not None and not isinstance(made.effort, Effort):
        raise UsageError(f"effort = {made.effort!r:.60}: give None or an Effort")
    return made


def make_detector(part: Part) -> Detector:
    """Return a detector as a suite's entry describes it, not fitted, checked.

    Raises:
        UsageError: for an attribute that is not as :class:`~...detectors.base.detector.Detector` describes it.
        Exception: whatever its constructor and its properties raise.
    """
    return checked_detector(DETECTORS.get(part.name)(**part.params))


def checked_detector(made: object) -> Detector:
    """Return an instance whose attributes are what the harness reads.

    Raises:
        UsageError: for one that is not as its base class describes it.
        Exception: whatever its properties raise.
    """
    from ...detectors.base.detector import Detector, DetectorInfo
    from ..tracing.extra_passes import Ascent, InputGradient, View

    if not isinstance(made, Detector):
        raise UsageError(f"{made!r:.60} is not a detector: derive its class from aftershock.detectors.Detector")
    _info(made.info, DetectorInfo, ("title",), ("paper", "summary"))
    _needs(made.needs)
    for name in _all("made_of", made.made_of, str, "text"):
        DETECTORS.entry(name)
    for flag in ("supervised", "randomised"):
        _truth(f"info.{flag}", getattr(made.info, flag))
        _truth(flag, getattr(made, flag))
    _one_of("info.surrogate", made.info.surrogate, _SURROGATES)
    _one_of("surrogate_kind", made.surrogate_kind, _SURROGATES)
    views = _all("views", made.views, View, "View")
    gradients = _all("gradients", made.gradients, InputGradient, "InputGradient")
    names: list[str] = []
    for view in views:
        if view.ascent is None:
            continue
        if not isinstance(view.ascent, Ascent) or not callable(view.ascent.objective):
            raise UsageError(f"the view {view.name!r} has ascent = {view.ascent!r:.60}: give None or an Ascent")
    for extra, call in (*((v, v.transform) for v in views), *((g, g.objective) for g in gradients)):
        _text("the name of a view or gradient", extra.name, False)
        if not callable(call):
            raise UsageError(f"{extra.name!r} in views or gradients has {call!r:.60} where a function is wanted")
        names.append(extra.name)
    if len(set(names)) < len(names):
        raise UsageError(f"views and gradients have a name twice: {', '.join(names)}")
    return made


def make_analysis(part: Part) -> Analysis[Any]:
    """Return an analysis as a suite's entry describes it, checked.

    Raises:
        UsageError: for an attribute that is not as :class:`~...analyses.base.Analysis` describes it.
        Exception: whatever its constructor and its properties raise.
    """
    return checked_analysis(ANALYSES.get(part.name)(**part.params))


def checked_analysis(made: object) -> Analysis[Any]:
    """Return an instance whose attributes are what the harness reads.

    Raises:
        UsageError: for one that is not as its base class describes it.
        Exception: whatever its properties raise.
    """
    from ...analyses.base import Analysis, AnalysisInfo

    if not isinstance(made, Analysis):
        raise UsageError(f"{made!r:.60} is not an analysis: derive its class from aftershock.analyses.base.Analysis")
    _info(made.info, AnalysisInfo, ("title",), ("paper", "summary"))
    _needs(made.needs)
    _truth("reads_perturbed", made.reads_perturbed)
    return made


def standing_analyses() -> dict[str, StandingAnalysis[Any, Any]]:
    """Return the analyses that are part of every run, by name."""
    built_in = {name: ANALYSES.get(name) for name in ANALYSES.builtins}
    return {name: analysis() for name, analysis in built_in.items() if is_standing(analysis)}


def is_standing(analysis: object) -> bool:
    """Return whether an analysis is part of every run."""
    from ...analyses.standing import StandingAnalysis

    return isinstance(analysis, type) and issubclass(analysis, StandingAnalysis)


def _info(info: object, kind: type, needed: Collection[str], rest: Collection[str]) -> None:
    if not isinstance(info, kind):
        raise UsageError(f"info = {info!r:.60}: give a {kind.__name__}")
    for name in (*needed, *rest):
        _text(f"info.{name}", getattr(info, name), name in rest)


def _needs(needs: object) -> None:
    for need in _all("needs", needs, Need, 'Need("bits"), Need("pooled") or Need("full")'):
        known = isinstance(need.taps, str) or (
            isinstance(need.taps, tuple) and all(isinstance(t, str) for t in need.taps)
        )
        units = need.units is None or (type(need.units) is int and need.units > 0)
        if not known or not units:
            raise UsageError(f"needs holds {need!r:.100}: taps are text or a tuple of it, units a whole number above 0")


def _all(name: str, found: object, kind: type, wanted: str) -> list[Any]:
    if isinstance(found, str) or not isinstance(found, Iterable):
        raise UsageError(f"{name} = {found!r:.60}: give a tuple of {wanted}")
    items = list(found)
    wrong = [item for item in items if not isinstance(item, kind)]
    if wrong:
        raise UsageError(f"{name} holds {wrong[0]!r:.60}: write {wanted}")
    return items


def _text(name: str, value: object, may_be_empty: bool) -> None:
    if not isinstance(value, str) or not (value or may_be_empty):
        raise UsageError(f"{name} = {value!r:.60}: give text")


def _truth(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise UsageError(f"{name} = {value!r:.60}: give True or False")


def _one_of(name: str, value: object, known: Collection[object]) -> None:
    # By identity and type too: values of other types may compare equal, or not be hashable.
    if not any(type(value) is type(k) and value == k for k in known):
        raise UsageError(f"{name} = {value!r:.60}: choose {' or '.join(map(repr, known))}")


def _budget(name: str, value: object, norm: str | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise UsageError(f"{name} = {value!r:.60}: give None or a finite number that is not negative, such as 8/255")
    if norm == "linf" and value > 1:
        raise UsageError(f"{name} = {value!r}: images lie in [0, 1], so an L-inf budget is at most 1 (is it 8/255?)")
