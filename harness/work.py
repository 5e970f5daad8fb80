"""Computing cells: one function per kind, each from stored inputs to an output. Nothing here writes.

A :class:`Workbench` holds what is worth keeping between cells (the data set, the last models and detectors).
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from .cells import (
    Cell,
    ControlJob,
    DerivedJob,
    EncodersJob,
    ExtraJob,
    FitJob,
    Images,
    ModelJob,
    Opponent,
    PerturbJob,
    PropagationJob,
    ScoreJob,
    SetName,
    TraceJob,
    TraceKeys,
)  # fmt: skip
from .data import Dataset, ImageSplit
from .engines import Output
from .errors import AftershockError, UnavailableError
from .models import Classifier
from .modes import one_thread
from .plan import Sets, stored_need
from .reading import Reader, open_traces, pick, tap_infos
from .recorder import input_gradient, record
from .registry import ANALYSES, DETECTORS, PERTURBATIONS
from .seeds import Draws, derive_seed, generator
from .subjects import load_classifier, make_classifier
from .suite import DetectorPart, ModelPart, Suite
from .trace import Need, Rows, TapInfo, Traces

if TYPE_CHECKING:
    from ..attacks.perturbing import DerivedBatch, PerturbedBatch
    from ..detectors.base import Detector
    from .defence import DetectorDefence

T = TypeVar("T")

# Values of an image below which one thread is faster than several (the digits have 64, MNIST 784).
SMALL_IMAGE = 512

# Rows that a detector scores at once.
SCORE_BATCH = 512


class _Recent(OrderedDict[str, T]):
    """The few things used last, by key."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def get_or_make(self, key: str, make: Callable[[], T]) -> T:
        if key in self:
            self.move_to_end(key)
        else:
            self[key] = make()
            while len(self) > self._size:
                self.popitem(last=False)
        return self[key]


class Workbench:
    """Computes cells of one run.

    Args:
        suite: as resolved.
        dataset: loaded.
        sets: which images belong to which set.
        reader: where finished cells are read.
        device: where models run.
        parts: the suite's entry of each model, by the key of its cell (a cell may come from a suite that called the
            same model otherwise).
        weights: file of each model label, ``None`` where it is trained.
        say: told a sentence that a person should see (how long training takes, a suspicious accuracy).
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
        say: Callable[[str], None],
    ) -> None:
        self.suite, self.dataset, self.sets, self.reader = suite, dataset, sets, reader
        self.device, self.weights, self.say = device, weights, say
        self._models: _Recent[Classifier] = _Recent(2)
        self._detectors: _Recent[Detector] = _Recent(4)
        self._parts = parts

    def compute(self, cells: Sequence[Cell]) -> list[Output]:
        """Compute cells of one group; several at once only for traces of the same images."""
        start = time.perf_counter()
        together = isinstance(cells[0].job, TraceJob)
        with one_thread(math.prod(self.dataset.shape) < SMALL_IMAGE):
            outputs = self._traces(cells) if together else [self._one(cell) for cell in cells]
        seconds = (time.perf_counter() - start) / len(cells)
        return [replace(output, seconds=output.seconds or seconds) for output in outputs]

    def _one(self, cell: Cell) -> Output:
        job = cell.job
        if isinstance(job, ModelJob):
            return self._model(cell.key, job)
        if isinstance(job, PerturbJob):
            return self._perturb(cell.key, job)
        if isinstance(job, DerivedJob):
            return self._derived(cell.key, job)
        if isinstance(job, ControlJob):
            return self._control(cell.key, job)
        if isinstance(job, ExtraJob):
            return self._extra(cell.key, job)
        if isinstance(job, FitJob):
            return self._fit(cell.key, job)
        if isinstance(job, ScoreJob):
            return self._score(cell.key, job)
        if isinstance(job, EncodersJob):
            return self._encoders(cell.key, job)
        if isinstance(job, PropagationJob):
            return self._propagation(cell.key, job)
        raise AftershockError(f"cells of kind {cell.kind!r} cannot be computed one by one")

    # Models

    def _model(self, key: str, job: ModelJob) -> Output:
        state, values = make_classifier(
            job.part, self.suite.folder, self.dataset, self.weights[job.part.label], job.seed, self.device, self.say
        )
        return Output(key, state, values)

    def model(self, key: str) -> Classifier:
        """The model of a finished ``model`` cell, in eval mode on the device."""
        part = self._parts[key]

        def load() -> Classifier:
            return load_classifier(
                part, self.suite.folder, self.dataset, self.weights[part.label], self.reader.load(key)
            ).to(self.device)

        return self._models.get_or_make(key, load)

    def _opened(self, key: str) -> tuple[Classifier, tuple[TapInfo, ...], tuple[str, ...]]:
        return self.model(key), tap_infos(self.reader.values(key)), self._parts[key].tap_modules

    def _stored(self, model: str) -> Callable[[Need], Need]:
        bits_per_tap = self._parts[model].bits_per_tap
        return lambda need: stored_need(need, bits_per_tap)

    # Images

    def _source(self, name: SetName) -> ImageSplit:
        return self.dataset.train if name == "fit" else self.dataset.test

    def _clean(self, name: SetName, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and positions of some rows of a set."""
        positions = self.sets.of(name)[start:stop]
        split = self._source(name)
        rows = positions.tolist()
        return split.images(rows), split.labels(rows), positions

    def images(self, wanted: Images) -> Tensor:
        """The images that a trace sees."""
        if not wanted.source:
            return self._clean(wanted.set, wanted.start, wanted.stop)[0]
        images = self.reader.tensor(wanted.source, "images")
        if wanted.which == "all":
            return images
        success = self.reader.tensor(wanted.source, "success")
        return images[success if wanted.which == "success" else ~success]

    # One pass

    def _traces(self, cells: Sequence[Cell]) -> list[Output]:
        jobs = [cell.job for cell in cells if isinstance(cell.job, TraceJob)]
        classifier, taps, modules = self._opened(jobs[0].model)
        needs = tuple(job.need for job in jobs if job.need is not None)
        recording = record(classifier, self.images(jobs[0].images), taps, needs, modules, classifier.network)
        outputs = []
        for cell, job in zip(cells, jobs, strict=True):
            if job.need is None:
                values = {"rows": len(recording.logits), "shape": list(recording.logits.shape[1:])}
                outputs.append(Output(cell.key, {"logits": recording.logits}, values))
                continue
            # Not whatever was recorded: others in this pass may have asked for the same code at other taps.
            found, wanted = recording.codes[job.need.code], {t.name for t in job.need.select(taps)}
            codes = {str(i): found[t.name] for i, t in enumerate(taps) if t.name in wanted}
            outputs.append(Output(cell.key, codes, {"shapes": {i: list(v.shape[1:]) for i, v in codes.items()}}))
        return outputs

    def _extra(self, key: str, job: ExtraJob) -> Output:
        classifier, taps, modules = self._opened(job.model)
        detector = _make(job.detector)
        images = self.images(job.images)
        if job.gradient:
            wanted = next(g for g in detector.gradients if g.name == job.name)
            gradient = input_gradient(classifier, images, wanted.objective)
            return Output(key, {"gradient": gradient}, {"gradient": True, "shape": list(gradient.shape[1:])})
        view = next(v for v in detector.views if v.name == job.name)
        # Of the chunk's start, so that the transform's draws do not depend on what else was computed.
        draws = generator(job.seed, "view", view.name, job.images.source, job.images.start)
        changed = view.transform(images.clone(), draws)
        if changed.shape != images.shape:
            raise AftershockError(f"the view {view.name!r} changes the images' shape to {tuple(changed.shape)}")
        held = self._stored(job.model)
        needs = [replace(need, units=held(need).units) for need in detector.needs]
        recording = record(
            classifier, changed, taps, needs, modules, classifier.network, dropout=view.dropout,
            seed=derive_seed(job.seed, "dropout", view.name, job.images.source, job.images.start),
        )  # fmt: skip
        position = {t.name: i for i, t in enumerate(taps)}
        tensors = {f"{c}|{position[t]}": v for c, codes in recording.codes.items() for t, v in codes.items()}
        shapes = {name: list(v.shape[1:]) for name, v in tensors.items()}
        values = {"gradient": False, "shape": list(recording.logits.shape[1:]), "shapes": shapes}
        return Output(key, {"logits": recording.logits, **tensors}, values)

    # Perturbations

    def _perturb(self, key: str, job: PerturbJob) -> Output:
        from ..attacks.perturbing import Limits, perturb_batch

        perturbation = PERTURBATIONS.get(job.part.name)(**job.part.params)
        reason = perturbation.unavailable(self.dataset.shape, len(self.dataset.classes))
        if reason:
            raise UnavailableError(reason)
        images, labels, positions = self._clean(job.set, job.start, job.stop)
        logits = self.reader.tensor(job.logits, "logits")[: len(labels)]
        right = (logits.argmax(1) == labels).nonzero().squeeze(1)
        covered = perturbation.covers(positions[right].tolist())
        right = right[torch.tensor(covered, dtype=torch.bool)]
        classifier = self._opened(job.model)[0]
        defence = self._defence(job.model, job.opponent) if job.opponent else None
        made = perturb_batch(
            perturbation, classifier, images[right], labels[right], positions[right].tolist(), seed=job.seed,
            defence=defence, limits=Limits(**vars(self.suite.limits)),
        )  # fmt: skip
        tensors = _perturbed(made, right + job.start)
        values = {
            "rows": len(right),
            "forwards": made.forwards,
            "backwards": made.backwards,
            "seconds": made.seconds,
            "flags": list(made.flags),
            "late": made.late,
        }
        if defence is not None and len(right):
            passed = (defence.judge(classifier, made.images.to(self.device))[1] <= defence.threshold).cpu()
            values["undetected"] = int((made.success & passed).sum())
        return Output(key, tensors, values)

    def _defence(self, model: str, opponent: Opponent) -> DetectorDefence:
        """A fitted detector as an attack that knows it sees it."""
        from .defence import DetectorDefence

        classifier, taps, modules = self._opened(model)
        detector = self.detector(opponent.fit, opponent.part)
        held = self._stored(model)
        logits = self.reader.tensor(opponent.guides, "logits")
        images, labels, _ = self._clean("fit", 0, len(logits))
        right = logits.argmax(1) == labels
        return DetectorDefence(
            detector=detector,
            model=classifier,
            taps=taps,
            needs=tuple(replace(need, units=held(need).units) for need in detector.needs),
            modules=modules,
            root=classifier.network,
            calibrate=self.reader.tensor(opponent.calibrate, "score"),
            clean=images[right].to(self.device),
            labels=labels[right],
        )

    def _derived(self, key: str, job: DerivedJob) -> Output:
        from ..attacks.perturbing import limited, rounded

        perturbation = PERTURBATIONS.get(job.part.name)(**job.part.params)
        rows = self.reader.tensor(job.source, "row")
        clean = self._source(job.set).images(self.sets.of(job.set)[rows].tolist())
        labels = self._source(job.set).labels(self.sets.of(job.set)[rows].tolist())
        found = self.reader.tensor(job.source, "images")
        classifier = self._opened(job.model)[0]
        if job.how == "8-bit":
            made = rounded(classifier, clean, found, labels)
        else:
            made = limited(classifier, clean, found, labels, perturbation.eps, perturbation.norm)
        return Output(key, _perturbed(made, rows), dict(self.reader.values(job.source)))

    def _control(self, key: str, job: ControlJob) -> Output:
        from ..attacks.control import equal_norm_control

        rows = self.reader.tensor(job.perturbed, "row")
        success = self.reader.tensor(job.perturbed, "success")
        perturbed = self.reader.tensor(job.perturbed, "images")[success]
        rows = rows[success]
        positions = self.sets.of(job.set)[rows]
        clean = self._source(job.set).images(positions.tolist())
        predictions = self.reader.tensor(job.logits, "logits").argmax(1)[rows - job.start]
        classifier = self._opened(job.model)[0]
        control = equal_norm_control(
            classifier, clean, perturbed, predictions, Draws(derive_seed(job.seed, "control"), positions.tolist())
        )
        tensors = {"images": control.images, "row": rows[control.positions]}
        values = {
            "rows": len(control.positions),
            **{
                name: value if math.isfinite(value) else None
                for name, value in (
                    ("kept_share", control.kept_share),
                    ("linf_ratio", control.linf_ratio),
                    ("l2_ratio", control.l2_ratio),
                )
            },
        }
        return Output(key, tensors, values)

    # Detectors

    def traces(self, model: str, chunks: Sequence[TraceKeys], needs: Sequence[Need]) -> Traces:
        """Stored traces of consecutive chunks."""
        return open_traces(self.reader, chunks, tap_infos(self.reader.values(model)), needs, self._stored(model))

    def _fit(self, key: str, job: FitJob) -> Output:
        from ..detectors.base import split_state

        detector = _make(job.part)
        labels: Rows = self._fit_labels(job)
        clean = replace(
            self.traces(job.model, (*job.clean, *job.negatives), detector.needs),
            label_rows=labels,
            random=generator(job.seed, "fit"),
        )
        perturbed = self.traces(job.model, job.perturbed, detector.needs) if job.perturbed else None
        fitted = detector.fit(clean, perturbed)
        if fitted is not detector:
            raise AftershockError("fit() must return the detector itself (`return self`)")
        tensors, state = split_state(detector.state())
        return Output(key, tensors, {"state": state})

    def _fit_labels(self, job: FitJob) -> Tensor:
        positions = [self.sets.fit[t.images.start : t.images.stop] for t in job.clean]
        for chunk in job.negatives:
            kept = ~self.reader.tensor(chunk.images.source, "success")
            positions.append(self.sets.fit[self.reader.tensor(chunk.images.source, "row")[kept]])
        labels: Tensor = self.dataset.train.labels(torch.cat(positions).tolist())
        return labels

    def detector(self, key: str, part: DetectorPart) -> Detector:
        """A fitted detector, its state read from the run."""
        from ..detectors.base import join_state

        def load() -> Detector:
            detector = _make(part)
            detector.load_state(join_state(self.reader.load(key), self.reader.values(key)["state"]))
            return detector

        return self._detectors.get_or_make(key, load)

    def _score(self, key: str, job: ScoreJob) -> Output:
        detector = self.detector(job.fit, job.part)
        traces = self.traces(job.model, job.traces, detector.needs)
        scores = []
        for batch in traces.batches(SCORE_BATCH):
            found = detector.score(batch)
            if not isinstance(found, Tensor) or tuple(found.shape) != (len(batch),):
                shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise AftershockError(f"score() gave {shape} for {len(batch)} images instead of shape ({len(batch)},)")
            if not bool(torch.isfinite(found).all()):
                raise AftershockError(f"score() gave {int((~torch.isfinite(found)).sum())} values that are not finite")
            scores.append(found.detach().double().cpu())
        return Output(key, {"score": torch.cat(scores) if scores else torch.empty(0, dtype=torch.float64)})

    # Propagation

    def _encoders(self, key: str, job: EncodersJob) -> Output:
        propagation = ANALYSES.get("propagation")
        clean = self.traces(job.model, job.clean, propagation.NEEDS)
        labels = self.dataset.train.labels(self.sets.fit.tolist())
        tensors, state = propagation.fit_encoders(replace(clean, label_rows=labels)).state()
        return Output(key, tensors, {"state": state})

    def _propagation(self, key: str, job: PropagationJob) -> Output:
        propagation = ANALYSES.get("propagation")
        values = self.reader.values(job.encoders)
        encoders = propagation.Encoders.from_state(self.reader.load(job.encoders), values["state"])
        clean = self.traces(job.model, job.clean, propagation.NEEDS)
        perturbed = self.traces(job.model, job.perturbed, propagation.NEEDS)
        control = self.traces(job.model, job.control, propagation.NEEDS)
        rows = torch.cat([self.reader.tensor(t.images.source, "row") for t in job.perturbed])
        success = torch.cat([self.reader.tensor(t.images.source, "success") for t in job.perturbed])
        control_rows = torch.cat([self.reader.tensor(t.images.source, "row") for t in job.control])
        fooled, failed = success.nonzero().squeeze(1), (~success).nonzero().squeeze(1)
        reached, partners = self._partners(clean, perturbed.predictions, fooled, generator(job.seed))
        pairs = {
            "success": (pick(clean, rows[fooled]), pick(perturbed, fooled)),
            "failed": (pick(clean, rows[failed]), pick(perturbed, failed)),
            "control": (pick(clean, control_rows), control),
            "target-class": (pick(clean, rows[reached]), pick(clean, partners)),
        }
        tensors: dict[str, Tensor] = {}
        for population, (before, after) in pairs.items():
            tensors[population] = propagation.measure(encoders, before, after)
            tensors[f"cka:{population}"] = propagation.cka(before, after)
        return Output(key, tensors)

    @staticmethod
    def _partners(clean: Traces, predictions: Tensor, fooled: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """For each success, a clean image that the model puts in the reached class; those without one are left out."""
        known = clean.predictions
        by_class = {int(c): (known == c).nonzero().squeeze(1) for c in known.unique()}
        reached, partners = [], []
        for position in fooled.tolist():
            candidates = by_class.get(int(predictions[position]))
            if candidates is not None:
                reached.append(position)
                partners.append(int(candidates[int(torch.randint(len(candidates), (1,), generator=draws))]))
        return torch.tensor(reached, dtype=torch.int64), torch.tensor(partners, dtype=torch.int64)


def _perturbed(made: PerturbedBatch | DerivedBatch, rows: Tensor) -> dict[str, Tensor]:
    """What a cell of perturbed images holds, whatever made them."""
    return {
        "images": made.images,
        "row": rows,
        "prediction": made.predictions,
        "success": made.success,
        **{f"norm:{name}": value for name, value in made.norms.items()},
    }


def _make(part: DetectorPart) -> Detector:
    detector: Detector = DETECTORS.get(part.name)(**part.params)
    return detector
