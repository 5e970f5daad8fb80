"""Reads and checks a suite: every name looked up, every parameter bound, every mistake reported at once with its line.

:mod:`.schema` knows the shape of the file; names and parameters are checked here, against the registries and the
signatures of the parts.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..core.errors import UsageError
from ..core.files import is_file
from ..core.interrupts import contained
from ..core.registry import (
    ANALYSES,
    DATASETS,
    DETECTORS,
    PERTURBATIONS,
    REGISTRIES,
    allow_plugins,
    did_you_mean,
    plugin_host,
)
from ..data.sets import SIZES
from .builtin import builtin_suites
from .instances import is_standing, make_analysis, make_detector, make_perturbation
from .problems import Checker, Problem, SuiteError, error_text
from .resolved import DataPart, DetectorPart, LimitsPart, ModelPart, Part, PerturbationPart, Suite, Threat
from .schema import (
    LABEL,
    AnalysisEntry,
    DataEntry,
    DetectorEntry,
    ModelEntry,
    PerturbationEntry,
    SuiteFile,
    explain,
    only_misspelt,
    salvage,
)

DECIDES_NO_NUMBER = True


def load_suite(suite: str | Path | Mapping[str, Any], plugins: Iterable[Path] = ()) -> Suite:
    """Read and check a suite.

    Args:
        suite: a path, the name of a built-in suite, or the mapping itself.
        plugins: local files with registered parts, besides those that the suite names.

    Raises:
        SuiteError: with every mistake at once.
        UsageError: if there is no such suite.
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


def _check(raw: dict[str, Any], text: str, source: Path | None, plugins: tuple[Path, ...]) -> Suite:
    where = str(source) if source else "suite"
    checker = Checker(text)
    try:
        parsed = SuiteFile.model_validate(raw)
    except ValidationError as error:
        for item in error.errors():
            if not only_misspelt(item, error.errors()):
                checker.add(item["loc"], explain(item))
        # What is whole is checked all the same, so that no mistake hides another.
        parsed = salvage(raw, [item["loc"] for item in error.errors()])
    folder = source.parent if source else Path.cwd()
    limits = parsed.limits.model_dump() if parsed.limits is not None else {"": None}
    _load_plugins(parsed.plugins, plugins, None if None in limits.values() else LimitsPart(**limits), checker, folder)
    for index, entry in enumerate(parsed.perturbations):
        if checker.wrong_at("perturbations", index, "name") or checker.wrong_at("perturbations", index, "label"):
            given = raw["perturbations"][index]
            name = given.get("label", given.get("name")) if isinstance(given, Mapping) else None
            checker.doubtful.add(name if isinstance(name, str) else entry.name)
    data = _data(parsed.data, checker, folder) if parsed.data is not None else None
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
    if checker.problems or data is None:
        raise SuiteError(where, checker.problems)
    again = sorted({str(seed) for seed in parsed.seeds if parsed.seeds.count(seed) > 1})
    if again:
        checker.notes.append(f"seeds names {', '.join(again)} more than once: each seed is run once.")
    return Suite(
        name=parsed.name,
        seeds=tuple(dict.fromkeys(parsed.seeds)),
        plugins=(*(folder / name for name in parsed.plugins), *plugins),
        data=data,
        threat=Threat(parsed.threat.norm, parsed.threat.eps),
        limits=LimitsPart(**parsed.limits.model_dump()),
        price_images=parsed.price_images,
        models=tuple(models),
        perturbations=tuple(perturbations),
        detectors=tuple(detectors),
        analyses=tuple(analyses),
        source=source,
        folder=folder,
        raw=raw,
        notes=tuple(dict.fromkeys(checker.notes)),
    )


def _load_plugins(
    own: Sequence[str | None], more: Sequence[Path], limits: LimitsPart | None, checker: Checker, folder: Path
) -> None:
    """Open the plugin files of the suite and of the command line, within the suite's limits where these are whole."""
    if limits is not None:
        allow_plugins(limits)
    named = [(("plugins", index), folder / name) for index, name in enumerate(own) if name is not None]
    for location, path in [*named, *(((), path) for path in more)]:
        try:
            origin = plugin_host().open_file(path)
            if not any(registry.of(origin) for registry in REGISTRIES.values()):
                checker.notes.append(
                    f"The plugin file {path} registers nothing: is a decorator such as @register_detector('mine') "
                    "missing?"
                )
        except (UsageError, ValueError) as error:
            # A path with a null byte is a ValueError.
            checker.add(location, str(error))
            try:
                checker.lost.append(path.read_text(encoding="utf-8", errors="replace"))
            except (OSError, ValueError):
                checker.lost.append("")


# What cells of clean images are told apart by, where those of others have a perturbation's label.
_OF_CLEAN_IMAGES = ("none", "clean", "calibrate", "fit")


def _unique(kind: str, parts: Sequence[tuple[int, Part]], checker: Checker) -> None:
    seen: set[str] = set()
    for index, part in parts:
        where = (kind, index, "label")
        if not part.label or checker.wrong_at(*where):
            continue
        if part.label in seen:
            checker.add(where, f"two {kind} have the label {part.label!r}: give one of them a `label` of its own")
        if kind == "detectors" and part.label == "none":
            checker.add(where, "the label 'none' is kept for the row without a detector: choose another")
        if kind == "perturbations" and part.label in _OF_CLEAN_IMAGES:
            checker.add(where, f"the label {part.label!r} is kept for clean images: choose another")
        if not LABEL.fullmatch(part.group if isinstance(part, PerturbationPart) else part.label):
            # A label that was given is checked already; a registered name may be anything.
            checker.add(where, f"the name {part.label!r} cannot be a label: give this entry a `label` of its own")
        seen.add(part.label)


def beside(path: str, folder: Path) -> Path:
    """Return a path of a suite: absolute, or relative to the suite's folder."""
    return Path(path) if Path(path).is_absolute() else folder / path


def _with_paths(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Resolve parameters called ``path`` beside the suite."""
    if isinstance(params.get("path"), str):
        params["path"] = str(beside(params["path"], folder))
    return params


def _data(entry: DataEntry, checker: Checker, folder: Path) -> DataPart:
    params: dict[str, Any] = {}
    factory = checker.part("data set", DATASETS, entry, ("data",))
    if factory is not None:
        given = _with_paths(entry.params, folder)
        params = checker.bound(factory, given, f"data set {entry.name!r}", ("data",), entry, ("root",)) or {}
    part = DataPart(entry.name, entry.name, params, entry.fit, entry.calibrate, entry.evaluate)
    if entry.name in SIZES and None not in (entry.fit, entry.calibrate, entry.evaluate):
        for size, wrong in part.excess(*SIZES[entry.name]).items():
            checker.add(("data", size), wrong)
    return part


def _model(entry: ModelEntry, index: int, checker: Checker, folder: Path) -> ModelPart:
    from ..models.factories import model_factory

    label = entry.label or entry.name or re.sub(r"[^A-Za-z0-9._-]+", "-", (entry.factory or "").rpartition(":")[2])
    location = ("models", index)
    params: dict[str, Any] = {}
    # With both or neither there is nothing to look up, which was noted where the shape of the file was read.
    if (entry.name is None) != (entry.factory is None):
        try:
            with checker.noted(f"model {label!r}", entry.factory is not None), contained():
                factory = model_factory(entry.name, entry.factory, folder)
                signature = factory.signature
        except Exception as error:
            if not checker.may_be_lost(entry.name, str(error)):
                checker.add((*location, "factory" if entry.factory else "name"), error_text(error))
        else:
            params = checker.bound(signature, entry.params, f"model {label!r}", location, entry, factory.given) or {}
    weights = str(beside(entry.weights, folder)) if entry.weights and is_file(beside(entry.weights, folder)) else None
    return ModelPart(
        entry.name or "", label, params, entry.factory, weights or entry.weights, entry.train_if_missing,
        tuple(entry.tap_modules), entry.bits_per_tap,
    )  # fmt: skip


def _perturbation(entry: PerturbationEntry, index: int, checker: Checker, folder: Path) -> list[PerturbationPart]:
    label = entry.label or entry.name or ""
    location = ("perturbations", index)
    factory = checker.part("perturbation", PERTURBATIONS, entry, location)
    if factory is None:
        if not entry.label:
            checker.doubtful.add(entry.name)
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
        part = PerturbationPart(entry.name, f"{label}[eps={budget}]" if many else label, {}, label)
        params = checker.bound(factory, one, f"perturbation {label!r}", location, entry)
        if params is not None:
            part = replace(part, params=params)
            checker.made(make_perturbation, part, f"perturbation {label!r}", location)
        parts.append(part)
    return parts


def _against_each(part: PerturbationPart, detectors: Sequence[DetectorPart]) -> list[PerturbationPart]:
    """Return an adaptive attack once for each detector, everything else as it is."""
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
    entry: DetectorEntry, index: int, checker: Checker, perturbations: Sequence[PerturbationPart]
) -> DetectorPart:
    label = entry.label or entry.name or ""
    location = ("detectors", index)
    factory = checker.part("detector", DETECTORS, entry, location)
    fit_on = _labels(entry.fit_on, "fit_on", label, location, checker, perturbations)
    negatives = _labels(entry.fit_negatives, "fit_negatives", label, location, checker, perturbations)
    part = DetectorPart(entry.name, label, {}, fit_on, negatives)
    if factory is not None:
        params = checker.bound(factory, entry.params, f"detector {label!r}", location, entry)
        if params is not None:
            part = replace(part, params=params)
            _supervision(part, location, checker, entry.fit_on)
    return part


def _analysis(entry: AnalysisEntry, index: int, checker: Checker) -> Part:
    label = entry.label or entry.name or ""
    location = ("analyses", index)
    part = Part(entry.name, label, {})
    factory = checker.part("analysis", ANALYSES, entry, location)
    if factory is None:
        return part
    if is_standing(factory):
        checker.add((*location, "name"), f"{entry.name} is part of every run: leave it out")
        return part
    params = checker.bound(factory, entry.params, f"analysis {label!r}", location, entry)
    if params is not None:
        part = replace(part, params=params)
        checker.made(make_analysis, part, f"analysis {label!r}", location)
    return part


def _supervision(part: DetectorPart, location: tuple[str | int, ...], checker: Checker, fit_on: Sequence[str]) -> None:
    label = part.label
    detector = checker.made(make_detector, part, f"detector {label!r}", location)
    if detector is None or checker.wrong_at(*location, "fit_on"):
        return
    if detector.supervised and not fit_on:
        checker.add(location, f"detector {label!r} is supervised: name the perturbations to learn from, fit_on = [...]")
    if fit_on and not detector.supervised:
        checker.add((*location, "fit_on"), f"detector {label!r} is unsupervised: it cannot use fit_on")


def _labels(
    names: Sequence[str], key: str, label: str, location: tuple[str | int, ...], checker: Checker,
    perturbations: Sequence[PerturbationPart],
) -> tuple[str, ...]:  # fmt: skip
    found: list[str] = []
    for place, name in enumerate(names):
        at = (*location, key, place)
        chosen = [p for p in perturbations if name in (p.label, p.group)]
        if not chosen and not _doubtful(name, checker):
            known = dict.fromkeys(name for p in perturbations for name in (p.group, p.label))
            checker.add(
                at,
                f"detector {label!r}: {key} names {name!r}, which is not a perturbation of this suite"
                f"{did_you_mean(name, known)}",
            )
        for part in chosen:
            try:
                info = PERTURBATIONS.get(part.name).info
            except (Exception, SystemExit):  # noqa: S112 (what is wrong with it was noted where it stands)
                continue
            if info.kind == "adaptive":
                checker.add(at, f"detector {label!r}: {key} may not name the adaptive attack {name!r}")
            if key == "fit_negatives" and info.kind not in ("noise", "corruption"):
                checker.add(at, f"detector {label!r}: fit_negatives takes noise and corruptions only")
            if not _learnable(part):
                checker.add(at, f"detector {label!r}: {key} may not name {name!r}, made of test images")
            found.append(part.label)
    return tuple(dict.fromkeys(found))


def _doubtful(name: str, checker: Checker) -> bool:
    """Return whether a name may be meant for a perturbation whose own name or label is wrong."""
    if None in checker.doubtful:
        return True
    return bool(did_you_mean(name.partition("[")[0], [d for d in checker.doubtful if d]))


def _learnable(part: PerturbationPart) -> bool:
    try:
        return bool(PERTURBATIONS.get(part.name)(**part.params).learnable)
    except (Exception, SystemExit):
        # What is wrong with it was noted where it stands.
        return True
