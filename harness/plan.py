"""From a suite to cells: a plain list in which every cell comes after its inputs, and the map of what is where.

The plan knows names and keys, never results: which images fool a model is found out when its cells are computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from .cells import (
    Cell,
    ControlJob,
    DerivedJob,
    EncodersJob,
    ExtraJob,
    FitJob,
    Images,
    Job,
    ModelJob,
    Opponent,
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
from .results import HOSTILE
from .seeds import derive_seed
from .subjects import model_identity
from .suite import DetectorPart, ModelPart, PerturbationPart, Suite
from .trace import Need

# Images on which an adaptive attack shows, at its large budget, that it is not broken.
CHECK_IMAGES = 32
# Fit images among which feature matching finds its guides.
GUIDE_IMAGES = 256

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
    """Everything planned for one model and seed.

    ``checks`` holds, by the label of an adaptive perturbation, the cell of the same attack at its large budget;
    ``rounded``, by the label of an attack, the cells of its images after 8-bit rounding.
    """

    part: ModelPart
    seed: int
    key: str
    clean: dict[SetName, tuple[TraceKeys, ...]] = field(default_factory=dict)
    perturbs: dict[tuple[str, SetName], tuple[str, ...]] = field(default_factory=dict)
    controls: dict[str, tuple[str, ...]] = field(default_factory=dict)
    checks: dict[str, str] = field(default_factory=dict)
    rounded: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fits: dict[str, str] = field(default_factory=dict)
    scores: dict[tuple[str, str], str] = field(default_factory=dict)
    propagation: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Plan:
    """The cells of a run, in an order in which inputs come first, and where each result is found.

    ``Subject.scores`` is keyed by detector label and source: ``calibrate``, ``clean``, a perturbation's label, or
    ``control:<label>`` and ``rounded:<label>`` (of an adaptive attack only for the detector that it was made against).
    ``ranked`` is the number of evaluate images, from the first on, that every adaptive attack of the suite covers.
    ``protocol_digests`` is keyed by model label.
    """

    suite: Suite
    sets: Sets
    cells: Mapping[str, Cell]
    subjects: tuple[Subject, ...]
    protocol_digests: Mapping[str, str]
    ranked: int


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
    return Plan(suite, planner.sets, planner.cells, tuple(planner.subjects), digests, planner.ranked)


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A detector of one subject whose fit is planned."""

    part: DetectorPart
    needs: tuple[Need, ...]
    fit: str
    with_extras: Callable[[tuple[TraceKeys, ...], str], tuple[TraceKeys, ...]]


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
        for perturbation in self.oblivious:
            self.perturb(subject, perturbation, "evaluate")
            self.control(subject, perturbation)
            if perturbation.label in learned:
                self.perturb(subject, perturbation, "fit")
        detectors = {detector.label: self.detector(subject, detector) for detector in self.suite.detectors}
        for perturbation in self.adaptive:
            self.adapt(subject, perturbation, detectors[perturbation.against])
            self.control(subject, perturbation)
        for perturbation in self.suite.perturbations:
            if self.perturbations[perturbation.label].info.kind in HOSTILE:
                self.round(subject, perturbation)
        for detector in detectors.values():
            self.score_perturbed(subject, detector)
        self.propagation(subject)

    @property
    def oblivious(self) -> list[PerturbationPart]:
        """Perturbations that know no detector."""
        return [p for p in self.suite.perturbations if not p.against]

    @property
    def adaptive(self) -> list[PerturbationPart]:
        """Attacks that are made against one detector each."""
        return [p for p in self.suite.perturbations if p.against]

    @property
    def ranked(self) -> int:
        """How many evaluate images, from the first on, every adaptive attack covers."""
        limits = [self.perturbations[p.label].images for p in self.adaptive]
        counts: list[int] = [len(self.sets.evaluate), *(n for n in limits if n is not None)]
        return min(counts)

    def chunks(self, name: SetName, label: str = "") -> list[tuple[int, int]]:
        """Row ranges of a set, or of those of its rows that a perturbation covers, cut at multiples of ``CHUNK``."""
        count = len(self.sets.of(name))
        if label:
            count = min(count, self.perturbations[label].images or count)
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
        """Plan a perturbation of one set, chunk by chunk; a minimising attack once for all its budgets."""
        perturbation = self.perturbations[part.label]
        unlimited = part
        if perturbation.info.minimises and perturbation.eps is not None:
            params = {k: v for k, v in part.params.items() if k != "eps"}
            unlimited = replace(part, label=part.group, params=params)
        keys = []
        for start, stop in self.chunks(name, part.label):
            key = self.perturb_chunk(subject, unlimited, name, start, stop, None)
            if unlimited is not part:
                job = DerivedJob(subject.key, part, key, name, "budget")
                budget = [perturbation.eps, perturbation.norm]
                limited = content_key("budget", unlimited=key, budget=budget, code=code_digest("attacks"))
                label = f"{self.at}/perturb/{part.label}/{name}/{start}"
                key = self.add(limited, label, "perturb", job, (subject.key, key), "", stop - start)
            keys.append(key)
        subject.perturbs[part.label, name] = tuple(keys)

    def adapt(self, subject: Subject, part: PerturbationPart, detector: _Fitted) -> None:
        """Plan an adaptive attack, and its check at a large budget."""
        scores = subject.scores[detector.part.label, "calibrate"]
        opponent = Opponent(detector.part, detector.fit, scores, subject.clean["fit"][0].logits)
        subject.perturbs[part.label, "evaluate"] = tuple(
            self.perturb_chunk(subject, part, "evaluate", start, stop, opponent)
            for start, stop in self.chunks("evaluate", part.label)
        )
        large = getattr(self.perturbations[part.label], "large_eps", None)
        if large is None:
            return
        check = replace(part, params={**part.params, "eps": large, "large_eps": large})
        stop = min(CHECK_IMAGES, len(self.sets.evaluate))
        subject.checks[part.label] = self.perturb_chunk(subject, check, "evaluate", 0, stop, opponent, "check")

    def round(self, subject: Subject, part: PerturbationPart) -> None:
        """Plan what is left of an attack after its images were saved with 8 bits."""
        keys = []
        chunks = self.chunks("evaluate", part.label)
        for key, (start, stop) in zip(subject.perturbs[part.label, "evaluate"], chunks, strict=True):
            job = DerivedJob(subject.key, part, key, "evaluate", "8-bit")
            found = content_key("8-bit", perturbed=key, code=code_digest("attacks/perturbing.py"))
            label = f"{self.at}/rounded/{part.label}/{start}"
            keys.append(self.add(found, label, "rounded", job, (subject.key, key), "", stop - start))
        subject.rounded[part.label] = tuple(keys)

    def perturb_chunk(
        self, subject: Subject, part: PerturbationPart, name: SetName, start: int, stop: int,
        opponent: Opponent | None, kind: str = "perturb",
    ) -> str:  # fmt: skip
        """Plan a perturbation of some rows of a set."""
        info = PERTURBATIONS.get(part.name).info
        identity = [part.name, self.portable(part), part_digest(PERTURBATIONS.entry(part.name), "attacks")]
        # A deterministic attack on fixed weights is the same for every seed of the run.
        axes = canonical([part.name, self.portable(part)])
        seed = derive_seed(subject.seed if info.stochastic else 0, "perturbation", axes, name)
        logits = subject.clean[name][start // CHUNK].logits
        against = [opponent.fit, opponent.calibrate, opponent.guides] if opponent else []
        key = content_key(
            "perturb", model=subject.key, logits=logits, rows=[start, stop], identity=identity, seed=seed,
            against=[*against, code_digest("harness/defence.py", "harness/work.py", *TRACE_CODE)] if against else [],
            versions=versions("torch", *({info.library} - {"aftershock"})),
        )  # fmt: skip
        job = PerturbJob(subject.key, part, name, start, stop, logits, seed, opponent)
        label = f"{self.at}/{kind}/{part.label}/{name}/{start}"
        return self.add(key, label, kind, job, (subject.key, logits, *against), "", stop - start)

    def portable(self, part: PerturbationPart) -> object:
        """A perturbation's parameters with the content of its files in place of their paths."""
        made = self.perturbations.get(part.label)
        files = made.source_files() if made else ()
        kept = {k: v for k, v in part.params.items() if str(v) not in {str(f) for f in files}}
        return [kept, [file_digest(f) for f in files]]

    def control(self, subject: Subject, part: PerturbationPart) -> None:
        """Plan the equal-norm control of a perturbation's successes."""
        keys = []
        for index, perturbed in enumerate(subject.perturbs[part.label, "evaluate"]):
            start, stop = self.chunks("evaluate", part.label)[index]
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
        return self.made_traces(subject, subject.perturbs[label, name], label, needs, f"{label}/{name}", name, which)

    def control_traces(self, subject: Subject, label: str, needs: tuple[Need, ...]) -> tuple[TraceKeys, ...]:
        return self.made_traces(subject, subject.controls[label], label, needs, f"control:{label}/evaluate")

    def rounded_traces(self, subject: Subject, label: str, needs: tuple[Need, ...]) -> tuple[TraceKeys, ...]:
        return self.made_traces(subject, subject.rounded[label], label, needs, f"rounded:{label}")

    def made_traces(
        self, subject: Subject, keys: tuple[str, ...], label: str, needs: tuple[Need, ...], readable: str,
        name: SetName = "evaluate", which: Which = "all",
    ) -> tuple[TraceKeys, ...]:  # fmt: skip
        """Plan the traces of what was made of a perturbation's chunks, one cell after the other."""
        return tuple(
            self.traces(subject.key, Images(name, start, stop, key, which), needs, readable)
            for key, (start, stop) in zip(keys, self.chunks(name, label), strict=True)
        )

    def detector(self, subject: Subject, part: DetectorPart) -> _Fitted:
        """Plan the fit of one detector and its scores of clean images."""
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
        fitted = _Fitted(part, needs, fit, with_extras)
        self.score(subject, fitted, "calibrate", subject.clean["calibrate"])
        self.score(subject, fitted, "clean", subject.clean["evaluate"])
        return fitted

    def score_perturbed(self, subject: Subject, fitted: _Fitted) -> None:
        """Plan a detector's scores of what every perturbation made, attacks against other detectors included."""
        for p in self.suite.perturbations:
            traces = self.perturbed_traces(subject, p.label, "evaluate", fitted.needs)
            self.score(subject, fitted, p.label, traces)
            if p.against not in ("", fitted.part.label):
                continue
            if p.label in subject.rounded:
                rounded = self.rounded_traces(subject, p.label, fitted.needs)
                self.score(subject, fitted, f"rounded:{p.label}", rounded)
            self.score(subject, fitted, f"control:{p.label}", self.control_traces(subject, p.label, fitted.needs))

    def score(self, subject: Subject, fitted: _Fitted, source: str, plain: tuple[TraceKeys, ...]) -> None:
        part, fit, traces = fitted.part, fitted.fit, fitted.with_extras(plain, source)
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

        Detectors, other models, analyses and paths are not in it; an adaptive attack counts once, whatever it is made
        against.
        """
        perturbations = []
        for p in {p.label.partition("@")[0]: p for p in self.suite.perturbations}.values():
            entry = PERTURBATIONS.entry(p.name)
            foreign = "" if entry.origin.package == PACKAGE else part_digest(entry, "attacks")
            perturbations.append([p.label.partition("@")[0], p.name, self.portable(p), foreign])
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
