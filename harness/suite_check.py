"""Reads and checks a suite: every name looked up, every parameter bound, every mistake reported at once with its line.

:mod:`.suite_file` knows the shape of the file; names and parameters are checked here, against the registries and the
signatures of the parts.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .datasets import SIZES
from .errors import UsageError
from .files import is_file
from .params import bind
from .registry import ANALYSES, DATASETS, DETECTORS, PERTURBATIONS, did_you_mean, load_plugin_file
from .suite import DataPart, DetectorPart, LimitsPart, ModelPart, Part, PerturbationPart, Suite, Threat
from .suite_file import (
    LABEL,
    AnalysisEntry,
    DataEntry,
    DetectorEntry,
    ModelEntry,
    PerturbationEntry,
    SuiteFile,
    explain,
    locate,
)
from .trace import Need


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


def builtin_suites() -> dict[str, Path]:
    """The suites that come with the package, by name."""
    folder = Path(str(files("aftershock.harness.suites")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_suite(suite: str | Path | Mapping[str, Any], plugins: Iterable[Path] = ()) -> Suite:
    """Read and check a suite.

    Args:
        suite: a path, the name of a built-in suite, or the mapping itself.
        plugins: local files with registered parts, besides those that the suite names.

    Raises:
        SuiteError: with every mistake at once.
        UsageError: if there is no such suite or a plugin file cannot be loaded.
    """
    if isinstance(suite, Mapping):
        return _check(dict(suite), "", None, tuple(plugins))
    path = Path(suite)
    known = builtin_suites()
    if not is_file(path):
        if str(suite) not in known:
            raise UsageError(
                f"There is no suite file {str(suite)!r} and no built-in suite of that name"
                f"{did_you_mean(str(suite), known)}; built in are {', '.join(known)}."
            )
        path = known[str(suite)]
    try:
        text = path.read_text(encoding="utf-8-sig")
        raw = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"The suite file {path} cannot be read ({error.strerror}).") from error
    except RecursionError as error:
        raise SuiteError(str(path), [Problem(0, "not TOML: nested too deeply")]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        position = re.search(r"at line (\d+)", str(error))
        raise SuiteError(str(path), [Problem(int(position[1]) if position else 0, f"not TOML: {error}")]) from error
    return _check(raw, text, path.resolve(), tuple(plugins))


class _Checker:
    """Collects mistakes with their lines while a suite is resolved."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.problems: list[Problem] = []

    def add(self, location: Sequence[str | int], text: str) -> None:
        problem = Problem(locate(self.text, location), text)
        # One mistake in an entry with a list of budgets is met once per budget.
        if problem not in self.problems:
            self.problems.append(problem)

    def part(self, kind: str, registry: Any, entry: Any, location: tuple[str | int, ...], skip: tuple[str, ...]) -> Any:
        """The factory that an entry names, with its bound parameters, or ``None`` after noting what is wrong."""
        try:
            factory = registry.get(entry.name)
        except UsageError as error:
            self.add((*location, "name"), str(error))
            return None
        except Exception as error:
            self.add((*location, "name"), f"{kind} {entry.name!r} could not be loaded: {error}")
            return None
        return factory

    def bound(
        self,
        factory: Any,
        params: Mapping[str, Any],
        where: str,
        location: tuple[str | int, ...],
        skip: tuple[str, ...],
    ) -> dict[str, Any]:
        values, problems = bind(factory, params, skip)
        for name, text in problems.items():
            self.add((*location, name), f"{where}: {text}")
        return values

    def made(self, factory: Any, params: Mapping[str, Any], where: str, location: tuple[str | int, ...]) -> None:
        """Construct the part once: its own checks speak before any work starts."""
        try:
            made = factory(**params)
            # A plugin's part may be anything: what the plan asks of it is asked here first.
            _ = made.info.kind, made.learnable, made.source_files()
            missing = made.missing()
        except Exception as error:
            missing = _told(error)
        if missing:
            self.add(location, f"{where}: {missing}")


def _check(raw: dict[str, Any], text: str, source: Path | None, plugins: tuple[Path, ...]) -> Suite:
    where = str(source) if source else "suite"
    checker = _Checker(text)
    try:
        parsed = SuiteFile.model_validate(raw)
    except ValidationError as error:
        for item in error.errors():
            checker.add(item["loc"], explain(item))
        raise SuiteError(where, checker.problems) from None
    folder = source.parent if source else Path.cwd()
    own = tuple(folder / name for name in parsed.plugins)
    for number, plugin in enumerate((*own, *plugins)):
        try:
            load_plugin_file(plugin)
        except UsageError as error:
            if number >= len(own):
                raise
            checker.add(("plugins",), str(error))
    data = _data(parsed.data, checker, folder)
    models = [_model(m, i, checker, folder) for i, m in enumerate(parsed.models)]
    placed = [(i, p) for i, e in enumerate(parsed.perturbations) for p in _perturbation(e, i, checker, folder)]
    perturbations = [p for _, p in placed]
    detectors = [_detector(d, i, checker, perturbations) for i, d in enumerate(parsed.detectors)]
    placed = [(i, against) for i, p in placed for against in _against_each(p, detectors)]
    perturbations = [p for _, p in placed]
    analyses = [_analysis(a, i, checker) for i, a in enumerate(parsed.analyses)]
    _unique("models", list(enumerate(models)), checker)
    _unique("perturbations", list(placed), checker)
    _unique("detectors", list(enumerate(detectors)), checker)
    _unique("analyses", list(enumerate(analyses)), checker)
    if checker.problems:
        raise SuiteError(where, checker.problems)
    return Suite(
        name=parsed.name,
        seeds=tuple(dict.fromkeys(parsed.seeds)),
        plugins=(*own, *plugins),
        data=data,
        threat=Threat(parsed.threat.norm, parsed.threat.eps),
        limits=LimitsPart(**parsed.limits.model_dump()),
        models=tuple(models),
        perturbations=tuple(perturbations),
        detectors=tuple(detectors),
        analyses=tuple(analyses),
        source=source,
        raw=raw,
    )


def _told(error: Exception) -> str:
    """Our own sentences as they are, others with their type."""
    if isinstance(error, UsageError | ValueError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _unique(kind: str, parts: Sequence[tuple[int, Part]], checker: _Checker) -> None:
    seen: set[str] = set()
    for index, part in parts:
        where = (kind, index)
        if part.label in seen:
            checker.add(where, f"two {kind} have the label {part.label!r}: give one of them a `label` of its own")
        if kind == "detectors" and part.label == "none":
            checker.add(where, "the label 'none' is kept for the row without a detector: choose another")
        if kind == "perturbations" and part.label == "none":
            checker.add(where, "the label 'none' is kept for clean images: choose another")
        if not LABEL.fullmatch(part.group if isinstance(part, PerturbationPart) else part.label):
            # A label that was given is checked already; a registered name may be anything.
            checker.add(where, f"the name {part.label!r} cannot be a label: give this entry a `label` of its own")
        seen.add(part.label)


def beside(path: str, folder: Path) -> Path:
    """A path of a suite: absolute, or relative to the suite's folder."""
    return Path(path) if Path(path).is_absolute() else folder / path


def _with_paths(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Parameters called ``path`` start beside the suite."""
    if isinstance(params.get("path"), str):
        params["path"] = str(beside(params["path"], folder))
    return params


def _data(entry: DataEntry, checker: _Checker, folder: Path) -> DataPart:
    params: dict[str, Any] = {}
    factory = checker.part("data set", DATASETS, entry, ("data",), ("root",))
    if factory is not None:
        given = _with_paths(entry.params, folder)
        params = checker.bound(factory, given, f"data set {entry.name!r}", ("data",), ("root",))
    part = DataPart(entry.name, entry.name, params, entry.fit, entry.calibrate, entry.evaluate)
    if entry.name in SIZES:
        for size, wrong in part.excess(*SIZES[entry.name]).items():
            checker.add(("data", size), wrong)
    return part


def _model(entry: ModelEntry, index: int, checker: _Checker, folder: Path) -> ModelPart:
    from .model_factories import model_factory

    label = entry.label or entry.name or re.sub(r"[^A-Za-z0-9._-]+", "-", (entry.factory or "").rpartition(":")[2])
    location = ("models", index)
    params: dict[str, Any] = {}
    try:
        factory = model_factory(entry.name, entry.factory, folder)
    except UsageError as error:
        checker.add((*location, "factory" if entry.factory else "name"), str(error))
    else:
        params = checker.bound(factory.signature, entry.params, f"model {label!r}", location, factory.given)
    weights = str(beside(entry.weights, folder)) if entry.weights and is_file(beside(entry.weights, folder)) else None
    return ModelPart(
        entry.name or "", label, params, entry.factory, weights or entry.weights, entry.train_if_missing,
        tuple(entry.tap_modules), entry.bits_per_tap,
    )  # fmt: skip


def _perturbation(entry: PerturbationEntry, index: int, checker: _Checker, folder: Path) -> list[PerturbationPart]:
    label = entry.label or entry.name
    location = ("perturbations", index)
    factory = checker.part("perturbation", PERTURBATIONS, entry, location, ())
    if factory is None:
        return [PerturbationPart(entry.name, label, {}, label)]
    given = _with_paths(entry.params, folder)
    budgets = given.get("eps")
    many = isinstance(budgets, list)
    if budgets == []:
        checker.add((*location, "eps"), f"perturbation {label!r}: the list of eps is empty")
        return [PerturbationPart(entry.name, label, {}, label)]
    parts = []
    for budget in budgets if isinstance(budgets, list) else [budgets]:
        one = {**given, "eps": budget} if many else given
        params = checker.bound(factory, one, f"perturbation {label!r}", location, ())
        if len(params) == len(one):
            checker.made(factory, params, f"perturbation {label!r}", location)
        parts.append(PerturbationPart(entry.name, f"{label}[eps={budget}]" if many else label, params, label))
    return parts


def _against_each(part: PerturbationPart, detectors: Sequence[DetectorPart]) -> list[PerturbationPart]:
    """An adaptive attack once for each detector, everything else as it is."""
    if not _adaptive(part.name):
        return [part]
    return [replace(part, label=f"{part.label}@{d.label}", against=d.label) for d in detectors]


def _adaptive(name: str) -> bool:
    try:
        info = PERTURBATIONS.get(name).info
    except Exception:
        # What is wrong with it was noted where it stands.
        return False
    return bool(info.kind == "adaptive")


def _detector(
    entry: DetectorEntry, index: int, checker: _Checker, perturbations: Sequence[PerturbationPart]
) -> DetectorPart:
    label = entry.label or entry.name
    location = ("detectors", index)
    params: dict[str, Any] = {}
    factory = checker.part("detector", DETECTORS, entry, location, ())
    fit_on = _labels(entry.fit_on, "fit_on", label, location, checker, perturbations)
    negatives = _labels(entry.fit_negatives, "fit_negatives", label, location, checker, perturbations)
    if factory is not None:
        params = checker.bound(factory, entry.params, f"detector {label!r}", location, ())
        if len(params) == len(entry.params):
            _supervision(factory, params, label, location, checker, entry.fit_on)
    return DetectorPart(entry.name, label, params, fit_on, negatives)


def _analysis(entry: AnalysisEntry, index: int, checker: _Checker) -> Part:
    label = entry.label or entry.name
    location = ("analyses", index)
    if entry.name == "propagation":
        checker.add((*location, "name"), "propagation is part of every run: leave it out")
        return Part(entry.name, label, {})
    factory = checker.part("analysis", ANALYSES, entry, location, ())
    if factory is None:
        return Part(entry.name, label, {})
    params = checker.bound(factory, entry.params, f"analysis {label!r}", location, ())
    if len(params) == len(entry.params):
        try:
            made = factory(**params)
            _ = [need.code for need in made.needs], made.reads_perturbed
        except Exception as error:
            checker.add(location, f"analysis {label!r}: {_told(error)}")
    return Part(entry.name, label, params)


def _supervision(
    factory: Any, params: dict[str, Any], label: str, location: tuple[str | int, ...], checker: _Checker,
    fit_on: Sequence[str],
) -> None:  # fmt: skip
    try:
        detector = factory(**params)
        # A plugin's part may be anything: what the plan asks of it is asked here first.
        supervised, needs, _ = detector.supervised, detector.needs, (detector.views, detector.gradients)
        wrong = [need for need in needs if not isinstance(need, Need)]
        if wrong:
            raise ValueError(f'needs holds {wrong[0]!r}: write Need("bits"), Need("pooled") or Need("full")')
    except Exception as error:
        checker.add(location, f"detector {label!r}: {_told(error)}")
        return
    if supervised and not fit_on:
        checker.add(location, f"detector {label!r} is supervised: name the perturbations to learn from, fit_on = [...]")
    if fit_on and not supervised:
        checker.add((*location, "fit_on"), f"detector {label!r} is unsupervised: it cannot use fit_on")


def _labels(
    names: Sequence[str], key: str, label: str, location: tuple[str | int, ...], checker: _Checker,
    perturbations: Sequence[PerturbationPart],
) -> tuple[str, ...]:  # fmt: skip
    found: list[str] = []
    for name in names:
        chosen = [p for p in perturbations if name in (p.label, p.group)]
        if not chosen:
            known = dict.fromkeys(name for p in perturbations for name in (p.group, p.label))
            checker.add(
                (*location, key),
                f"detector {label!r}: {key} names {name!r}, which is no perturbation of this suite"
                f"{did_you_mean(name, known)}",
            )
        for part in chosen:
            try:
                info = PERTURBATIONS.get(part.name).info
            except Exception:  # noqa: S112 (what is wrong with it was noted where it stands)
                continue
            if info.kind == "adaptive":
                checker.add((*location, key), f"detector {label!r}: {key} may not name the adaptive attack {name!r}")
            if key == "fit_negatives" and info.kind not in ("noise", "corruption"):
                checker.add((*location, key), f"detector {label!r}: fit_negatives takes noise and corruptions only")
            if not _learnable(part):
                checker.add((*location, key), f"detector {label!r}: {key} may not name {name!r}, made of test images")
            found.append(part.label)
    return tuple(dict.fromkeys(found))


def _learnable(part: PerturbationPart) -> bool:
    try:
        return bool(PERTURBATIONS.get(part.name)(**part.params).learnable)
    except Exception:
        # What is wrong with it was noted where it stands.
        return True
