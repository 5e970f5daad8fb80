"""Checks the models of a suite before a run: their weights are found, they are built and probed, nothing is trained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..core.errors import UsageError, described
from ..core.registry import DATASETS
from ..data.sets import task_shape
from ..data.types import Dataset, TaskShape
from ..models.classifier import Classifier, Source, accuracy, accuracy_warning, build
from ..models.probe import probe, probe_images
from ..models.weights import load_weights
from ..plan.models import find_model_weights, model_spec, tap_notes
from ..suite.problems import Problem
from ..suite.resolved import ModelPart, Suite
from ..suite.toml_lines import locate
from ..tracing.recorder import survey

T = TypeVar("T")

# Enough images to tell a wrong normalisation from bad luck, few enough to take a moment.
CHECK_IMAGES = 500
# Normalisation where the data set, whose constants are used in a run, is not there.
_MEAN, _STD = 0.5, 0.25


@dataclass(frozen=True)
class ModelCheck:
    """What became of it.

    Attributes:
        problems: what will stop a run, with the line of the key.
        sentences: what a person should know besides.
    """

    problems: tuple[Problem, ...]
    sentences: tuple[str, ...]


def check_models(suite: Suite, root: Path) -> ModelCheck:
    """Build every model of a suite on the CPU, read its weights and send one batch through it.

    Nothing is trained and nothing is downloaded: where the data set is not there, random images of its shape serve.

    Args:
        suite: resolved and checked.
        root: where data sets, and weights with a relative path, lie.
    """
    text = suite.source.read_text(encoding="utf-8-sig") if suite.source else ""
    problems: list[Problem] = []
    try:
        dataset, absent = _dataset(suite, root)
    except UsageError as error:
        # The user's own files are there, and a run would end with the same sentence.
        return ModelCheck((Problem(locate(text, ("data", "path")) if text else 0, str(error)),), ())
    task = dataset.task if dataset is not None else task_shape(suite.data.name, suite.data.params)
    sentences = [absent] if absent else []
    if task is None:
        sentences.append("No model is built: the shape of the images is not known without them.")
    for index, part in enumerate(suite.models):
        try:
            sentences += [f"{part.label}: {said}" for said in _check(suite, part, root, dataset, task)]
        except _ModelError as error:
            place = ("models", index, error.key)
            problems.append(Problem(locate(text, place) if text else 0, str(error)))
    return ModelCheck(tuple(problems), tuple(sentences))


class _ModelError(Exception):
    """What is wrong with a model, and the key of its entry that it is about."""

    def __init__(self, part: ModelPart, key: str, error: BaseException) -> None:
        said = described(error).rstrip(".")
        super().__init__(said if repr(part.label) in said else f"model {part.label!r}: {said}")
        self.key = key


def _dataset(suite: Suite, root: Path) -> tuple[Dataset | None, str]:
    """Return the data set where it lies on this machine; else why there is none.

    Raises:
        UsageError: if it was given by a path, lies there, and cannot be used.
    """
    factory = DATASETS.get(suite.data.name)
    offline = {"download": False} if "download" in inspect.signature(factory).parameters else {}
    try:
        return factory(root, **{**suite.data.params, **offline}).load(), ""
    except Exception as error:  # a plugin's data set may raise anything, and a run says it again
        given = suite.data.params.get("path")
        if isinstance(error, UsageError) and isinstance(given, str | Path) and Path(given).exists():
            raise
        what = " ".join(str(error).split()) or type(error).__name__
        return None, f"Models are checked without the data set {suite.data.name}, which cannot be read here: {what}"


def _check(suite: Suite, part: ModelPart, root: Path, dataset: Dataset | None, task: TaskShape | None) -> Sequence[str]:
    """Return sentences about one model.

    Raises:
        _ModelError: for what will stop a run.
    """
    made_by = "factory" if part.factory else "name"

    def step(key: str, do: Callable[[], T]) -> T:
        try:
            return do()
        except (Exception, SystemExit) as error:  # a user's model may do anything
            raise _ModelError(part, key, error) from error

    weights = step("weights", lambda: find_model_weights(part, suite.folder, root))
    spec = step(made_by, lambda: model_spec(part, suite.folder, weights))
    if task is None:
        return []
    channels = task.image[0]
    mean, std = (dataset.mean, dataset.std) if dataset is not None else ((_MEAN,) * channels, (_STD,) * channels)
    model = step(made_by, lambda: build(spec, task.image, task.classes, mean, std))
    beside = step("weights", lambda: load_weights(model.network, weights) if weights is not None else "")
    images = probe_images(None if dataset is None else dataset.test, task.image)
    found = step(made_by, lambda: probe(model, images))
    taps = step(
        "tap_modules" if part.tap_modules else made_by,
        lambda: survey(model, images, part.tap_modules, model.network),
    )
    sentences = [*([beside] if beside else []), *found.notes, *tap_notes(taps), *found.warnings]
    if weights is None and spec.needs_training:
        return ["It is trained by the run.", *sentences]
    if dataset is not None:
        sentences += step(made_by, lambda: _accuracy(model, dataset, "weights" if weights else "factory"))
    return sentences


def _accuracy(model: Classifier, dataset: Dataset, source: Source) -> list[str]:
    warning = accuracy_warning(accuracy(model, dataset.test, CHECK_IMAGES), len(dataset.classes), source)
    return [warning] if warning else []
