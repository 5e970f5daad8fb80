"""What computing cells share: the data set, stored traces, and the last models and detectors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ....attacks.base.watched_model import Limits
from ...core.errors import UnavailableError
from ...core.memory import trim_heap
from ...core.recent import Recent
from ...core.registry import DATASETS, DETECTORS
from ...data.types import Dataset, ImageSplit
from ...models.classifier import Classifier
from ...models.folding import folded
from ...plan import Sets, stored_need
from ...plan.cells import Images, ModelJob, ScoreJob, SetName, TraceKeys
from ...plan.models import load_classifier, make_classifier
from ...store.stored_traces import Reader, StoredCells, open_traces, tap_infos
from ...suite.instances import make_detector
from ...suite.resolved import DetectorPart, ModelPart, Suite
from ...tracing.extra_passes import InputGradient, View
from ...tracing.traced_model import TracedModel
from ...tracing.traces import Need, Traces, has_taps
from ..context import Context
from ..events import once
from ..work import Output
from ..workers.pool import POOL
from ..workers.process import WorkerEndedError
from ..workers.standins.detectors import PluginDetector
from ..workers.standins.part import SETTLING
from ..workers.witness import Transform, expect_questions, witness_scores

if TYPE_CHECKING:
    from ....detectors.base.detector import Detector


# Images on which a quick copy of a model is compared with it.
COMPARED = 8
# Seconds after which memory is given back, which takes some milliseconds.
_TRIMMED = 2.0


@dataclass(frozen=True)
class _Seen:
    """What is traced for a detector, by views that are made elsewhere."""

    needs: tuple[Need, ...]
    views: tuple[View, ...]
    gradients: tuple[InputGradient, ...]

    def score(self, traces: Traces) -> Tensor:
        """Raise: nothing is asked for scores here."""
        raise NotImplementedError


class TaskContext:
    """Opens what the cells of one run need.

    Args:
        suite: as resolved.
        dataset: loaded.
        sets: which images belong to which set.
        reader: where finished cells are read.
        device: where models run.
        parts: the suite's entry of each model, by the key of its cell (a cell may come from a suite that called the
            same model otherwise).
        weights: file of each model label, ``None`` where it is trained.
        on_message: called with a sentence that a person should see (how long training takes, a suspicious accuracy).
        worker_context: the same for another process; ``None`` where nothing is computed elsewhere.
    """

    def __init__(
        self,
        suite: Suite,
        dataset: Dataset,
        sets: Sets,
        reader: Reader,
        device: torch.device,
        parts: Mapping[str, ModelPart],
        weights: Mapping[str, Path | None],
        on_message: Callable[[str], None],
        worker_context: Context | None = None,
    ) -> None:
        self.suite, self.dataset, self.sets, self.reader = suite, dataset, sets, reader
        self.device, self.weights, self.on_message = device, weights, on_message
        self._models: Recent[str, Classifier] = Recent(2)
        self._quick: Recent[str, nn.Module | None] = Recent(2)
        self._detectors: Recent[str, Detector] = Recent(4)
        # Of the rows of a perturbation that are scored again, and of its control's.
        self._fresh: Recent[tuple[str, tuple[Images, ...], bytes], Traces] = Recent(2)
        self._parts = parts
        self._message_once = once(on_message)
        self._trimmed = time.monotonic()
        # Called with the share of the present cell that is done.
        self.on_progress: Callable[[float], None] = lambda share: None
        limits = suite.limits
        # What an attack may spend per image.
        self.limits = Limits(limits.forwards, limits.backwards, limits.seconds)
        # Fits whose scores came in time.
        self.timely: set[str] = set()
        self.worker_context = worker_context
        # Fits whose detector ended the other process: every further question would cost another start.
        self._ended: dict[str, str] = {}

    def tidy(self) -> None:
        """Give memory back between two cells, now and then."""
        if time.monotonic() - self._trimmed > _TRIMMED:
            trim_heap()
            self._trimmed = time.monotonic()

    def close(self) -> None:
        """End what was started."""
        POOL.close()

    def expect_fresh_scores(self, part: DetectorPart, detector: Detector) -> None:
        """Start the process that scores are asked for in: it takes seconds to get ready."""
        if DETECTORS.entry(part.name).origin.package != "session":
            expect_questions(part.name, detector.made_of)

    def fresh_scores(
        self, fit: str, part: DetectorPart, traces: Traces, evaluations: int, images: Tensor, model: TracedModel
    ) -> Tensor:
        """Return the scores that a fitted detector gives in a process that has done nothing else, (evaluations, n).

        Args:
            fit: the cell with its state.
            part: its entry in the suite.
            traces: of n images.
            evaluations: how often it is asked.
            images: the same, of which a plugin's views are made there, too.
            model: that traces them.

        Raises:
            UnavailableError: for a detector that was registered in this session: no other process has it.
            AftershockError: if it gives none there.
        """
        if DETECTORS.entry(part.name).origin.package == "session":
            raise UnavailableError(f"{part.name} was registered in this session")
        if fit in self._ended:
            raise WorkerEndedError(self._ended[fit])
        each = self.suite.limits.score_seconds
        cpu = SETTLING + each * len(traces) * evaluations
        limit = f"score_seconds = {each:g} for each image, and {SETTLING:g} s for what is done once"
        tensors, state = self.reader.load(fit), self.reader.values(fit)["state"]
        detector = self.detector(fit, part)

        def viewed(transform: Transform, order: Tensor, number: int) -> Traces:
            views = tuple(replace(v, transform=partial(transform, v.name)) for v in detector.views)
            seen = _Seen(detector.needs, views, detector.gradients)
            return model.traces(seen, images[order].to(self.device), number)

        try:
            return witness_scores(
                part.name, part.params, tensors, state, traces, evaluations, cpu, self.suite.plugins,
                detector.made_of, limit, viewed if detector.views else None,
            )  # fmt: skip
        except WorkerEndedError as error:
            self._ended[fit] = str(error)
            raise

    def make_detector(self, part: DetectorPart) -> Detector:
        """Return a detector as a suite's entry describes it, not fitted; one of a plugin under the suite's limits."""
        detector = make_detector(part)
        if isinstance(detector, PluginDetector):
            detector.fit_seconds, detector.score_seconds = (
                self.suite.limits.fit_seconds,
                self.suite.limits.score_seconds,
            )
        return detector

    def make_model(self, key: str, job: ModelJob) -> Output:
        """Train a model, or read its weights; measure it. A message about every seed is shown once."""
        state, values = make_classifier(
            job.part, self.suite.folder, self.dataset, self.weights[job.part.label], job.seed, self.device,
            self._message_once,
        )  # fmt: skip
        return Output(key, state, values)

    def open(self, model: str) -> TracedModel:
        """Return the model of a finished ``model`` cell, in eval mode on the device."""
        part = self._parts[model]

        def load() -> Classifier:
            weights = self.weights[part.label]
            state, made = self.reader.load(model), self.reader.values(model)
            loaded = load_classifier(part, self.suite.folder, self.dataset, weights, state, made)
            return loaded.to(self.device)

        classifier = self._models.get_or_make(model, load)
        taps = tap_infos(self.reader.values(model))
        return TracedModel(classifier, taps, part.tap_modules, classifier.network, part.bits_per_tap)

    def quick(self, model: str) -> nn.Module | None:
        """Return a copy of a model for attacks to follow, if there is one (:func:`~...models.folding.folded`)."""
        return self._quick.get_or_make(model, lambda: folded(self.open(model).model, self.clean("fit", 0, COMPARED)[0]))

    def part(self, model: str) -> ModelPart:
        """Return the suite's entry of a model's cell."""
        return self._parts[model]

    def source(self, name: SetName) -> ImageSplit:
        """Return the split that a set's images come from."""
        return self.dataset.train if name == "fit" else self.dataset.test

    def clean(self, name: SetName, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and positions of some rows of a set."""
        positions = self.sets.of(name)[start:stop]
        split = self.source(name)
        rows = positions.tolist()
        return split.images(rows), split.labels(rows), positions

    def images(self, wanted: Images) -> Tensor:
        """Return the images that a trace sees."""
        if not wanted.source:
            return self.clean(wanted.set, wanted.start, wanted.stop)[0]
        images = self.reader.tensor(wanted.source, "images")
        if wanted.which == "all":
            return images
        success = self.reader.tensor(wanted.source, "success")
        return images[success if wanted.which == "success" else ~success]

    def traces(self, model: str, chunks: Sequence[TraceKeys], needs: Sequence[Need]) -> Traces:
        """Stored traces of consecutive chunks."""
        part, taps = self._parts[model], tap_infos(self.reader.values(model))
        return open_traces(self.reader, chunks, taps, needs, lambda need: stored_need(need, part.bits_per_tap))

    def fresh_codes(self, job: ScoreJob, rows: Tensor, images: Tensor) -> Traces | None:
        """Return codes of images that are scored again, recorded once for all detectors, or ``None`` if one reads them.

        Args:
            job: of one of the detectors.
            rows: of its set, int64 (r,).
            images: of these rows.
        """
        if not job.shared:
            return None
        key = job.model, tuple(chunk.images for chunk in job.traces), rows.numpy().tobytes()
        model = self.open(job.model)
        # A detector that asks for what this model does not have fails alone.
        needs = [need for need in job.shared if has_taps(need, model.taps)]
        return self._fresh.get_or_make(key, lambda: model.codes(needs, images.to(self.device)))

    def detector(self, fit: str, part: DetectorPart) -> Detector:
        """Return a fitted detector, its state read from the run."""
        from ...core.state import join_state

        def load() -> Detector:
            detector = self.make_detector(part)
            detector.load_state(join_state(self.reader.load(fit), self.reader.values(fit)["state"]))
            return detector

        return self._detectors.get_or_make(fit, load)


def open_task_context(worker_context: Context, on_message: Callable[[str], None]) -> TaskContext:
    """Open what the cells of a run need, reading finished ones from its directory."""
    suite = worker_context.suite
    dataset = DATASETS.get(suite.data.name)(worker_context.root, **suite.data.params).load()
    reader, device = StoredCells(worker_context.folder), torch.device(worker_context.device)
    return TaskContext(
        suite,
        dataset,
        worker_context.sets,
        reader,
        device,
        worker_context.parts,
        worker_context.weights,
        on_message,
        worker_context,
    )
