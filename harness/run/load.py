"""What a finished run holds, loaded again without its suite: fitted detectors and the models they were fitted for.

A run directory may come from an untrusted source: nothing in it is executed. Parts are looked up in the registries by
name, so a plugin that the run used has to be installed (or loaded) to read the run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from ..core.bounded import (
    KnownModel,
    TooLargeError,
    bounded_parameters,
    bytes_of,
    check_parameters,
    reason_of,
    without_memory,
)
from ..core.errors import UsageError
from ..core.files import file_digest, parse_json, read_file
from ..core.formats import RUN_JSON_LIMIT, RUN_SCHEMA, check_schema, is_sealed
from ..core.parameters import bind
from ..core.registry import DETECTORS, did_you_mean
from ..store.cells import Cells
from ..store.ledger import Record
from ..store.stored_traces import tap_infos
from ..tracing.traces import TapInfo
from .stored_facts import DetectorEntry, Facts, ModelEntry, Result

if TYPE_CHECKING:
    from ...detectors.base.detector import Detector
    from ..models.classifier import Classifier, ModelSpec


_Part = TypeVar("_Part", bound=DetectorEntry)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted detector of a run.

    Attributes:
        detector: fitted; the constructor's parameters are those of the suite.
        name: its registry name.
        label: its label in the suite.
        params: its parameters, as JSON values.
        dataset: the data set's name.
        model: the label of the model that it was fitted for.
        seed: the run's seed.
        calibrate: its scores of the calibrate images, float64 (m,).
        taps: the model's taps.
        modules: the named modules among them.
        bits_per_tap: how many bits of a tap are kept; ``None`` for all.
        about: what the run knows of the model: ``digest`` of its weights, ``normalise``, ``shape``, ``classes``.
    """

    detector: Detector
    name: str
    label: str
    params: Mapping[str, Any]
    dataset: str
    model: str
    seed: int
    calibrate: Tensor
    taps: tuple[TapInfo, ...]
    modules: tuple[str, ...]
    bits_per_tap: int | None
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Perturbed:
    """The cells with the images of one perturbation of one model and seed, and of their controls, in order."""

    images: Sequence[Record]
    controls: Sequence[Record]


class RunFolder:
    """A run directory, read only.

    Args:
        folder: as given to ``aftershock run --out``.

    Attributes:
        dataset: the data set's label.
        seeds: of the run.
        data: the data set's name in the registry (``name``) and its parameters (``params``).
        evaluate: positions of the evaluate images in the test split; empty where an earlier version wrote the run.

    Raises:
        UsageError: if it holds no run.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        path = self.folder / "run.json"
        if not os.path.lexists(path):
            raise UsageError(f"{folder} is not a run directory: it has no run.json.")
        facts = self._facts(path)
        self._models, self._detectors = facts.resolved.models, facts.resolved.detectors
        self._weights = facts.digests.weights
        self.dataset, self.seeds = facts.resolved.data.name, facts.resolved.seeds
        self.data, self.evaluate = facts.resolved.data, facts.sets.evaluate
        self._results = {(r.model, r.seed): r for r in facts.results}
        for part in (self.folder / "cells", self.folder / "artifacts"):
            # Asked once: entries and artifacts themselves are never read through a link.
            if not Path(os.path.realpath(part)).is_relative_to(os.path.realpath(self.folder)):
                raise UsageError(f"{part} leads out of its run directory: replace the link by the folder itself.")
        self._cells = Cells(self.folder)
        self._cells.refresh()

    def _facts(self, path: Path) -> Facts:
        try:
            content = read_file(path, RUN_JSON_LIMIT, within=self.folder)
            value = parse_json(content, path)
            if not isinstance(value, dict):
                raise ValueError("it holds no JSON object")
            writer = value.get("versions")
            check_schema(
                path, value.get("schema", 1), RUN_SCHEMA,
                writer.get("aftershock") if isinstance(writer, dict) else None, oldest=RUN_SCHEMA,
            )  # fmt: skip
            if not is_sealed(content):
                raise ValueError("it was changed after the run wrote it")
            return Facts.model_validate(value)
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(f"{path} is damaged or of another version: {reason_of(error)}") from error

    def detector(self, label: str, model: str | None = None, seed: int | None = None) -> Fitted:
        """Return a fitted detector.

        Args:
            label: as in the suite and the tables.
            model: the model's label; may be left out where the run has one model.
            seed: may be left out where the run has one seed.

        Raises:
            UsageError: if the run has no such detector, it could not be fitted, or a plugin is missing.
        """
        from ..core.state import join_state

        part = _named(self._detectors, label, "detector", self.folder)
        entry = self._model_entry(model)
        seed = self._seed(seed)
        result = self._result(entry, seed)
        keys = result.detectors.get(label)
        if keys is None:
            raise UsageError(f"The detector {label!r} was not fitted in {self.folder}: it does not apply to its data.")
        what = f"the detector {label!r} of {entry.label!r}, seed {seed}"
        fit, scores = self._done(keys.fit, what), self._done(keys.calibrate, what)
        known = self._done(result.key, f"the model {entry.label!r}, seed {seed}")
        detector = named_detector(part.name, part.params, f"{label!r} of {self.folder}")
        try:
            tensors = self._tensors(fit)
            with bounded_parameters(f"The detector {label!r}", bytes_of(tensors)):
                detector.load_state(join_state(tensors, fit.values["state"]))
            calibrate = self._tensors(scores)["score"]
            about = KnownModel.model_validate(known.values).model_dump(exclude={"taps"})
            taps = tap_infos(known.values)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise UsageError(f"The cells of {label!r} in {self.folder} are damaged ({reason_of(error)}).") from error
        return Fitted(
            detector, part.name, label, dict(part.params), self.dataset, entry.label, seed,
            calibrate, taps, tuple(entry.tap_modules), entry.bits_per_tap, about,
        )  # fmt: skip

    def model(self, label: str | None = None, seed: int | None = None, weights: Path | str | None = None) -> Classifier:
        """Return a model of the run, in eval mode on the CPU: images in [0, 1] to logits.

        Args:
            label: may be left out where the run has one model.
            seed: may be left out where the run has one seed.
            weights: the checkpoint, where the run used one that does not come with a built-in suite: it is not
                copied into runs.

        Raises:
            UsageError: if the run has no such model, its weights are elsewhere, or they are not those of the run.
        """
        from ..models.classifier import ModelSpec, build, load_weights
        from ..models.weights import state_digest

        entry = self._model_entry(label)
        seed = self._seed(seed)
        record = self._done(self._result(entry, seed).key, f"the model {entry.label!r}, seed {seed}")
        if entry.factory:
            raise UsageError(f"The model {entry.label!r} was made by {entry.factory!r}: make it in the same way.")
        spec = ModelSpec.from_entry(entry.name, None, entry.params)
        values, state = record.values, self._tensors(record)
        if not state and weights is None:
            weights = _builtin_weights(self._weights.get(entry.label))
        if not state and weights is None:
            raise UsageError(
                f"The weights of {entry.label!r} came from a file, {entry.weights!r}, which is not in the run: "
                "give its path as `weights`."
            )
        try:
            known = KnownModel.model_validate(values)
            held = bytes_of(state) if state else Path(weights or "").stat().st_size
            mean, std = (known.normalise.mean, known.normalise.std) if known.normalise else ([0.0], [1.0])
            what = f"The model {entry.label!r} of {self.folder}"
            with bounded_parameters(what, held):
                _draft(spec, known)
            with bounded_parameters(what, held):
                classifier = build(spec, known.shape, known.classes, mean, std)
            if state:
                classifier.load_state_dict(state)
        except FileNotFoundError as error:
            raise UsageError(f"There are no weights at {weights}.") from error
        except TooLargeError:
            raise
        except (UsageError, KeyError, TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
            raise UsageError(f"The model {entry.label!r} of {self.folder} is damaged: {reason_of(error)}") from error
        if not state and weights is not None:
            load_weights(classifier.network, Path(weights))
        if state_digest(classifier.network) != known.digest:
            raise UsageError(f"The weights of {entry.label!r} are not those that {self.folder} was made with.")
        return classifier.eval()

    def perturbed(self, label: str, model: str | None = None, seed: int | None = None) -> Perturbed:
        """Return where the images of a perturbation are; arguments and errors are those of :meth:`detector`."""
        entry, seed = self._model_entry(model), self._seed(seed)
        keys = self._result(entry, seed).perturbations.get(label)
        if keys is None:
            raise UsageError(
                f"{self.folder} does not say where its images of {label!r} are: run its suite again with this version, "
                "which computes nothing that is there."
            )
        what = f"the perturbation {label!r} of {entry.label!r}, seed {seed}"
        images = [self._done(key, what) for key in keys.images]
        # Controls may be missing where images are not: they are made later.
        held = [self._cells.record(key) for key in keys.controls]
        return Perturbed(images, [r for r in held if r is not None and r.status == "done"])

    def tensor(self, record: Record, name: str) -> Tensor:
        """Return one tensor of a cell, checked against its digest; large ones are memory-mapped.

        Raises:
            UsageError: if it is missing or was changed.
        """
        self._check(record)
        try:
            return self._cells.tensor(record, name)
        except KeyError as error:
            raise UsageError(f"{self._cells.place(record)} holds no {name!r}: run the suite again.") from error
        except OSError as error:
            raise UsageError(f"{self._cells.place(record)} cannot be read ({error}).") from error

    def _model_entry(self, label: str | None) -> ModelEntry:
        if label is None and len(self._models) != 1:
            names = ", ".join(m.label for m in self._models)
            raise UsageError(f"{self.folder} has several models, {names}: say which one (model, or --model).")
        return _named(self._models, label or self._models[0].label, "model", self.folder)

    def _seed(self, seed: int | None) -> int:
        if seed is None and len(self.seeds) != 1:
            raise UsageError(f"{self.folder} has several seeds, {self.seeds}: say which one, with `seed`.")
        wanted = self.seeds[0] if seed is None else seed
        if wanted not in self.seeds:
            raise UsageError(f"{self.folder} has no seed {wanted}; it has {self.seeds}.")
        return int(wanted)

    def _result(self, entry: ModelEntry, seed: int) -> Result:
        found = self._results.get((entry.label, seed))
        if found is None:
            raise UsageError(f"{self.folder / 'run.json'} does not say where the results of {entry.label!r} are.")
        return found

    def _done(self, key: str, what: str) -> Record:
        """Return the entry of a cell with a result; ``what`` names the cell for a person."""
        try:
            record = self._cells.record(key)
        except OSError as error:
            raise UsageError(f"{self.folder} cannot be read ({error}).") from error
        if record is None:
            raise UsageError(f"{self.folder} holds no result of {what}: run its suite again, without --only.")
        if record.status != "done":
            raise UsageError(f"In {self.folder}, {what} has no result: {record.reason}")
        return record

    def _tensors(self, record: Record) -> dict[str, Tensor]:
        if not record.digest:
            return {}
        self._check(record)
        try:
            return self._cells.load(record)
        except OSError as error:
            raise UsageError(f"{self._cells.place(record)} cannot be read ({error}).") from error

    def _check(self, record: Record) -> None:
        """Refuse an artifact that is not the one that was written."""
        path = self._cells.place(record)
        try:
            if not self._cells.is_whole(record):
                raise UsageError(f"{path} is missing or was changed after it was written: run the suite again.")
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error}).") from error


def _draft(spec: ModelSpec, known: KnownModel) -> None:
    """Make the network without its memory, so that one that is too large is refused before it takes any."""
    factory = spec.find()
    try:
        with without_memory():
            factory.network(known.shape, known.classes, bind(factory.make, spec.params, factory.given)[0])
    except TooLargeError:
        raise
    except Exception:  # noqa: S110 - some compute with numbers while they are made; what is wrong is said when they are
        pass


def _builtin_weights(digest: str | None) -> Path | None:
    """Return the weights file of a built-in suite with this sha256, or ``None``."""
    folder = Path(str(files("aftershock.harness.suite.builtin.weights")))
    return next((path for path in sorted(folder.glob("*.safetensors")) if file_digest(path) == digest), None)


def _named(entries: Sequence[_Part], label: str, what: str, folder: Path) -> _Part:
    labels = [e.label for e in entries]
    if label not in labels:
        raise UsageError(
            f"{folder} has no {what} {label!r}{did_you_mean(label, labels)}; it has {', '.join(labels) or 'none'}."
        )
    return entries[labels.index(label)]


def named_detector(name: str, params: Mapping[str, Any], where: str) -> Detector:
    """Return an unfitted detector as a file describes it, looked up by its registry name.

    Raises:
        UsageError: for an unknown name or a wrong parameter; ``where`` says whose.
    """
    check_parameters(params, f"the detector {where}")
    factory = DETECTORS.get(name)
    bound, problems = bind(factory, params)
    if problems:
        raise UsageError(f"The detector {where} is wrong: {'; '.join(problems.values())}.")
    made: Detector = factory(**bound)
    return made


def load_detector(run: Path | str, label: str, model: str | None = None, seed: int | None = None) -> Detector:
    """Return a detector as a run fitted it, ready to score; see :meth:`RunFolder.detector`."""
    return RunFolder(run).detector(label, model, seed).detector


def load_model(
    run: Path | str, label: str | None = None, seed: int | None = None, weights: Path | str | None = None
) -> Classifier:
    """Return a model of a run, in eval mode: images in [0, 1] to logits; see :meth:`RunFolder.model`."""
    return RunFolder(run).model(label, seed, weights)
