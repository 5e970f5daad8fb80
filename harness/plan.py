"""From a suite to cells: a plain list in which every cell comes after its inputs, and the map of what is where.

The plan knows names and keys, never results: which images fool a model is found out when its cells are computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .cells import (
    Cell,
    ControlJob,
    EncodersJob,
    ExtraJob,
    FitJob,
    Images,
    Job,
    ModelJob,
    PerturbJob,
    PropagationJob,
    ScoreJob,
    SetName,
    TraceJob,
    TraceKeys,
    Which,
)  # fmt: skip
from .data import Dataset
from .errors import UsageError
from .keys import canonical, code_digest, content_key, part_digest, versions
from .registry import ANALYSES, DETECTORS, PACKAGE, PERTURBATIONS, file_digest
from .seeds import derive_seed
from .subjects import model_identity
from .suite import DetectorPart, ModelPart, PerturbationPart, Suite
from .trace import Need

# Images per cell: what a kill may cost, and what is in memory at once.
CHUNK = 256

TRACE_CODE = (
    "harness/taps.py", "harness/recorder.py", "harness/trace.py", "harness/modes.py", "harness/seeds.py",
    "detectors/codes/bits.py",
)  # fmt: skip
MODEL_CODE = (
    "harness/models.py", "harness/architectures.py", "harness/training.py", "harness/weights.py", "harness/subjects.py",
    "harness/recorder.py", "harness/taps.py", "harness/modes.py",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Sets:
    """The three disjoint sets of source images: positions in the train split (fit) and in the test split."""

    fit: torch.Tensor
    calibrate: torch.Tensor
    evaluate: torch.Tensor

    def of(self, name: SetName) -> torch.Tensor:
        """The positions of a set, int64."""
        found: torch.Tensor = getattr(self, name)
        return found


def make_sets(suite: Suite, dataset: Dataset, limit: int | None) -> Sets:
    """Choose the sets: a fixed permutation per split; evaluate from its start, calibrate from its end.

    A smaller set is a prefix of a larger one, so results of the same images are reused.

    Raises:
        UsageError: if a split is too small.
    """
    data = suite.data
    sizes = {n: min(getattr(data, n), limit or getattr(data, n)) for n in ("fit", "calibrate", "evaluate")}
    if data.fit > len(dataset.train):
        raise UsageError(f"fit = {data.fit}, but the train split of {data.name} has {len(dataset.train)} images.")
    if data.calibrate + data.evaluate > len(dataset.test):
        raise UsageError(
            f"calibrate + evaluate = {data.calibrate + data.evaluate}, but the test split of {data.name} has "
            f"{len(dataset.test)} images; the two sets must not overlap."
        )

    def order(split: str, count: int) -> torch.Tensor:
        chosen = torch.Generator().manual_seed(derive_seed(0, "split", data.name, split))
        return torch.randperm(count, generator=chosen)

    test = order("test", len(dataset.test))
    return Sets(
        fit=order("train", len(dataset.train))[: sizes["fit"]],
        calibrate=test.flip(0)[: sizes["calibrate"]],
        evaluate=test[: sizes["evaluate"]],
    )


@dataclass
class Subject:
    """Everything planned for one model and seed."""

    part: ModelPart
    seed: int
    key: str
    clean: dict[SetName, tuple[TraceKeys, ...]] = field(default_factory=dict)
    perturbs: dict[tuple[str, SetName], tuple[str, ...]] = field(default_factory=dict)
    controls: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fits: dict[str, str] = field(default_factory=dict)
    scores: dict[tuple[str, str], str] = field(default_factory=dict)
    propagation: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Plan:
    """The cells of a run, in an order in which inputs come first, and where each result is found.

    ``Subject.scores`` is keyed by detector label and source: ``calibrate``, ``clean``, a perturbation's label, or
    ``control:<label>``. ``protocol_digests`` is keyed by model label.
    """

    suite: Suite
    sets: Sets
    cells: Mapping[str, Cell]
    subjects: tuple[Subject, ...]
    protocol_digests: Mapping[str, str]


def make_plan(
    suite: Suite,
    dataset: Dataset,
    data_digest: str,
    device: str,
    weights: Mapping[str, Path | None],
    limit: int | None = None,
) -> Plan:
    """Lay out a suite.

    Args:
        suite: resolved and checked.
        dataset: loaded, for the sizes of its splits.
        data_digest: digest of the data's bytes and of the code that reads them.
        device: the device type; results of different devices differ in the last digits.
        weights: file of each model label, ``None`` where it is trained.
        limit: at most so many images in each set.

    Raises:
        UsageError: if the sets do not fit the splits, or a perturbation cannot be planned.
    """
    planner = _Planner(suite, make_sets(suite, dataset, limit), data_digest, device, weights)
    for part in suite.models:
        for seed in suite.seeds:
            planner.subject(part, seed)
    digests = {part.label: planner.protocol_digest(part) for part in suite.models}
    return Plan(suite, planner.sets, planner.cells, tuple(planner.subjects), digests)


class _Planner:
    def __init__(
        self, suite: Suite, sets: Sets, data_digest: str, device: str, weights: Mapping[str, Path | None]
    ) -> None:
        self.suite, self.sets, self.data_digest, self.device, self.weights = suite, sets, data_digest, device, weights
        self.cells: dict[str, Cell] = {}
        self.subjects: list[Subject] = []
        self.propagation_needs: tuple[Need, ...] = ANALYSES.get("propagation").NEEDS
        self.perturbations = {p.label: PERTURBATIONS.get(p.name)(**p.params) for p in suite.perturbations}
        self.detectors = {d.label: DETECTORS.get(d.name)(**d.params) for d in suite.detectors}

    def add(self, key: str, name: str, kind: str, job: Job, inputs: tuple[str, ...], group: str, images: int) -> str:
        """Plan a cell once; two places that ask for the same content share it."""
        self.cells.setdefault(key, Cell(key, name, kind, job, tuple(dict.fromkeys(inputs)), group or key, images))
        return key

    def subject(self, part: ModelPart, seed: int) -> None:
        """Plan everything for one model and seed."""
        self.at = f"{self.suite.data.name}/{part.label}/{seed}"
        key = self.model(part, seed)
        subject = Subject(part, seed, key)
        self.subjects.append(subject)
        needs = self.stored_needs(
            part, (*self.propagation_needs, *(n for d in self.detectors.values() for n in d.needs))
        )
        for name in ("fit", "calibrate", "evaluate"):
            subject.clean[name] = tuple(
                self.traces(key, Images(name, start, stop), needs, f"none/{name}") for start, stop in self.chunks(name)
            )
        learned = {label for d in self.suite.detectors for label in (*d.fit_on, *d.fit_negatives)}
        for perturbation in self.suite.perturbations:
            self.perturb(subject, perturbation, "evaluate")
            self.control(subject, perturbation)
            if perturbation.label in learned:
                self.perturb(subject, perturbation, "fit")
        for detector in self.suite.detectors:
            self.detector(subject, detector)
        self.propagation(subject)

    def chunks(self, name: SetName) -> list[tuple[int, int]]:
        """Row ranges of a set, cut at multiples of ``CHUNK``."""
        count = len(self.sets.of(name))
        return [(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]

    def positions_digest(self, name: SetName, start: int, stop: int) -> str:
        positions = self.sets.of(name)[start:stop]
        split = "train" if name == "fit" else "test"
        return hashlib.sha256(split.encode() + positions.numpy().tobytes()).hexdigest()

    def model(self, part: ModelPart, seed: int) -> str:
        identity = model_identity(part, self.suite.folder, self.weights[part.label], self.suite.data.name)
        key = content_key(
            "model",
            data=self.data_digest,
            identity=identity,
            seed=seed if self.weights[part.label] is None else None,
            taps=part.tap_modules,
            bits_per_tap=part.bits_per_tap,
            code=code_digest(*MODEL_CODE),
            versions=versions("torch", "torchvision"),
            device=self.device,
        )
        return self.add(key, f"{self.at}/model", "model", ModelJob(part, seed), (), "", 0)

    def stored_needs(self, part: ModelPart, needs: tuple[Need, ...]) -> tuple[Need, ...]:
        return tuple(dict.fromkeys(stored_need(need, part.bits_per_tap) for need in needs))

    def images_identity(self, images: Images) -> object:
        if images.source:
            return [images.source, images.which]
        return [self.data_digest, self.positions_digest(images.set, images.start, images.stop)]

    def traces(self, model: str, images: Images, needs: tuple[Need, ...], label: str) -> TraceKeys:
        """Plan logits and codes of some images: cells of their own, computed in one forward pass."""
        identity = [model, self.images_identity(images)]
        group = content_key("pass", identity=identity)
        inputs = (model, images.source) if images.source else (model,)

        def one(need: Need | None) -> str:
            key = content_key("trace", identity=identity, need=need, code=code_digest(*TRACE_CODE))
            name = f"{self.at}/trace/{label}/{images.start}/{need.code if need else 'logits'}"
            return self.add(
                key, name, "trace", TraceJob(model, images, need), inputs, group, images.stop - images.start
            )

        return TraceKeys(one(None), {need: one(need) for need in needs}, images)

    def perturb(self, subject: Subject, part: PerturbationPart, name: SetName) -> None:
        """Plan a perturbation of one set, chunk by chunk."""
        perturbation = self.perturbations[part.label]
        info = perturbation.info
        identity = [part.name, self.portable(part), part_digest(PERTURBATIONS.entry(part.name), "attacks")]
        # A deterministic attack on fixed weights is the same for every seed of the run.
        axes = canonical([part.name, self.portable(part)])
        seed = derive_seed(subject.seed if info.stochastic else 0, "perturbation", axes, name)
        keys = []
        for start, stop in self.chunks(name):
            logits = subject.clean[name][start // CHUNK].logits
            key = content_key(
                "perturb", model=subject.key, logits=logits, identity=identity, seed=seed,
                versions=versions("torch", *({info.library} - {"aftershock"})),
            )  # fmt: skip
            job = PerturbJob(subject.key, part, name, start, stop, logits, seed)
            label = f"{self.at}/perturb/{part.label}/{name}/{start}"
            keys.append(self.add(key, label, "perturb", job, (subject.key, logits), "", stop - start))
        subject.perturbs[part.label, name] = tuple(keys)

    def portable(self, part: PerturbationPart) -> object:
        """A perturbation's parameters with the content of its files in place of their paths."""
        files = self.perturbations[part.label].source_files()
        kept = {k: v for k, v in part.params.items() if str(v) not in {str(f) for f in files}}
        return [kept, [file_digest(f) for f in files]]

    def control(self, subject: Subject, part: PerturbationPart) -> None:
        """Plan the equal-norm control of a perturbation's successes."""
        keys = []
        for index, perturbed in enumerate(subject.perturbs[part.label, "evaluate"]):
            start, stop = self.chunks("evaluate")[index]
            seed = derive_seed(subject.seed, "control", canonical([part.name, self.portable(part)]))
            logits = subject.clean["evaluate"][index].logits
            key = content_key("control", perturbed=perturbed, seed=seed, code=code_digest("attacks"))
            job = ControlJob(subject.key, perturbed, "evaluate", logits, start, seed)
            label = f"{self.at}/control/{part.label}/{start}"
            keys.append(self.add(key, label, "control", job, (subject.key, perturbed, logits), "", stop - start))
        subject.controls[part.label] = tuple(keys)

    def perturbed_traces(
        self, subject: Subject, label: str, name: SetName, needs: tuple[Need, ...], which: Which = "all"
    ) -> tuple[TraceKeys, ...]:
        return tuple(
            self.traces(subject.key, Images(name, start, stop, key, which), needs, f"{label}/{name}")
            for key, (start, stop) in zip(subject.perturbs[label, name], self.chunks(name), strict=True)
        )

    def control_traces(self, subject: Subject, label: str, needs: tuple[Need, ...]) -> tuple[TraceKeys, ...]:
        return tuple(
            self.traces(subject.key, Images("evaluate", start, stop, key), needs, f"control:{label}/evaluate")
            for key, (start, stop) in zip(subject.controls[label], self.chunks("evaluate"), strict=True)
        )

    def detector(self, subject: Subject, part: DetectorPart) -> None:
        """Plan the fit of one detector and its scores of every source."""
        detector = self.detectors[part.label]
        needs = self.stored_needs(subject.part, detector.needs)
        identity = [part.name, part.params, part_digest(DETECTORS.entry(part.name), "detectors")]
        seed = derive_seed(subject.seed, "detector", canonical(identity[:2]))
        views = [(view.name, False) for view in detector.views] + [(g.name, True) for g in detector.gradients]

        def with_extras(traces: tuple[TraceKeys, ...], label: str) -> tuple[TraceKeys, ...]:
            cut = tuple(TraceKeys(t.logits, {n: t.codes[n] for n in needs}, t.images) for t in traces)
            if not views:
                return cut
            return tuple(self.extras(subject.key, t, part, identity, views, seed, label) for t in cut)

        clean = with_extras(subject.clean["fit"], "none/fit")
        positive = [
            with_extras(self.perturbed_traces(subject, label, "fit", needs, "success"), f"{label}/fit")
            for label in part.fit_on
        ]
        negative = [
            with_extras(self.perturbed_traces(subject, label, "fit", needs, "failed"), f"{label}/fit")
            for label in part.fit_negatives
        ]
        perturbed, negatives = sum(positive, ()), sum(negative, ())
        inputs = tuple(k for t in (*clean, *perturbed, *negatives) for k in t.keys())  # noqa: SIM118 (not a mapping)
        fit = content_key(
            "fit", identity=identity, seed=seed,
            inputs=[[t.keys() for t in part] for part in (clean, perturbed, negatives)],
            code=code_digest("harness/work.py", "harness/reading.py", "harness/trace.py"),
            versions=versions("torch", "numpy", "scipy", "scikit-learn", "pytorch-ood"),
        )  # fmt: skip
        job = FitJob(subject.key, part, clean, perturbed, negatives, seed)
        images = sum(t.images.stop - t.images.start for t in (*clean, *perturbed, *negatives))
        self.add(fit, f"{self.at}/fit/{part.label}", "fit", job, (subject.key, *inputs), "", images)
        subject.fits[part.label] = fit
        sources = {"calibrate": subject.clean["calibrate"], "clean": subject.clean["evaluate"]}
        for p in self.suite.perturbations:
            sources[p.label] = self.perturbed_traces(subject, p.label, "evaluate", needs)
            sources[f"control:{p.label}"] = self.control_traces(subject, p.label, needs)
        for source, traces in sources.items():
            self.score(subject, part, fit, source, with_extras(traces, source))

    def score(self, subject: Subject, part: DetectorPart, fit: str, source: str, traces: tuple[TraceKeys, ...]) -> None:
        inputs = tuple(k for t in traces for k in t.keys())  # noqa: SIM118 (not a mapping)
        key = content_key("score", fit=fit, traces=inputs, code=code_digest("harness/work.py"))
        images = sum(t.images.stop - t.images.start for t in traces)
        name = f"{self.at}/score/{part.label}/{source}"
        job = ScoreJob(subject.key, part, fit, traces)
        subject.scores[part.label, source] = self.add(key, name, "score", job, (fit, *inputs), "", images)

    def extras(
        self, model: str, traces: TraceKeys, part: DetectorPart, identity: object, views: list[tuple[str, bool]],
        seed: int, label: str,
    ) -> TraceKeys:  # fmt: skip
        """Plan the views and input gradients that a detector declares."""
        found = {}
        for name, gradient in views:
            kind = "gradient" if gradient else "view"
            key = content_key(
                kind, logits=traces.logits, detector=identity, name=name, seed=seed, code=code_digest(*TRACE_CODE)
            )
            job = ExtraJob(model, traces.images, part, name, gradient, seed)
            inputs = (model, traces.images.source) if traces.images.source else (model,)
            readable = f"{self.at}/{kind}/{part.label}/{name}/{label}/{traces.images.start}"
            count = traces.images.stop - traces.images.start
            found[name] = self.add(key, readable, kind, job, inputs, "", count)
        return TraceKeys(traces.logits, traces.codes, traces.images, found)

    def propagation(self, subject: Subject) -> None:
        """Plan the propagation report: its encoders once, then one cell per perturbation."""
        needs = self.stored_needs(subject.part, self.propagation_needs)

        def cut(traces: tuple[TraceKeys, ...]) -> tuple[TraceKeys, ...]:
            return tuple(TraceKeys(t.logits, {n: t.codes[n] for n in needs}, t.images) for t in traces)

        def keys(*groups: tuple[TraceKeys, ...]) -> tuple[str, ...]:
            return tuple(k for group in groups for t in group for k in t.keys())  # noqa: SIM118 (not a mapping)

        code = code_digest("reports/propagation.py", "detectors/codes", "harness/work.py")
        fit, clean = cut(subject.clean["fit"]), cut(subject.clean["evaluate"])
        encoders = content_key("encoders", inputs=keys(fit), code=code, versions=versions("torch"))
        job = EncodersJob(subject.key, fit)
        self.add(encoders, f"{self.at}/encoders", "encoders", job, (subject.key, *keys(fit)), "", len(self.sets.fit))
        for part in self.suite.perturbations:
            perturbed = cut(self.perturbed_traces(subject, part.label, "evaluate", needs))
            control = cut(self.control_traces(subject, part.label, needs))
            seed = derive_seed(subject.seed, "propagation", "target-class")
            key = content_key(
                "propagation", encoders=encoders, inputs=keys(clean, perturbed, control), seed=seed, code=code
            )
            made = subject.perturbs[part.label, "evaluate"] + subject.controls[part.label]
            subject.propagation[part.label] = self.add(
                key, f"{self.at}/propagation/{part.label}", "propagation",
                PropagationJob(subject.key, encoders, clean, perturbed, control, seed),
                (subject.key, encoders, *keys(clean, perturbed, control), *made), "", len(self.sets.evaluate),
            )  # fmt: skip

    def protocol_digest(self, part: ModelPart) -> str:
        """What rows of one model must share to be compared: data, weights, splits, perturbations, threat, seeds.

        Detectors, other models, analyses and paths are not in it; adaptive attacks belong to their detectors.
        """
        perturbations = []
        for p in self.suite.perturbations:
            entry = PERTURBATIONS.entry(p.name)
            if entry.load().info.kind == "adaptive":
                continue
            foreign = "" if entry.origin.package == PACKAGE else part_digest(entry, "attacks")
            perturbations.append([p.label, p.name, self.portable(p), foreign])
        return content_key(
            "protocol",
            data=self.data_digest,
            model=model_identity(part, self.suite.folder, self.weights[part.label], self.suite.data.name),
            splits=[self.positions_digest(n, 0, len(self.sets.of(n))) for n in ("fit", "calibrate", "evaluate")],
            perturbations=perturbations,
            threat=self.suite.threat,
            seeds=self.suite.seeds,
        )[:16]


def stored_need(need: Need, bits_per_tap: int | None) -> Need:
    """A need as it is stored: for all taps where that is cheap, so that detectors share it; bits capped per model."""
    units = need.units
    if need.representation == "bits" and bits_per_tap is not None:
        units = min(bits_per_tap, units or bits_per_tap)
    if need.representation == "full" and units is None:
        return need
    return Need(need.representation, "all", need.statistic, units)
