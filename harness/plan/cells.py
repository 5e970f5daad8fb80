"""The cell: the smallest unit of work of a run. What each kind of cell has to know to be computed anywhere.

A cell's ``job`` is a small picklable value; its inputs are other cells, named by key. Nothing here computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..core.cell_names import CellName
from ..suite.resolved import DetectorPart, ModelPart, Part, PerturbationPart
from ..tracing.traces import Need

DECIDES_NO_NUMBER = True

SetName = Literal["fit", "calibrate", "evaluate"]
Which = Literal["all", "success", "failed"]
Rounding = Literal["8-bit", "levels"]
ROUNDINGS: tuple[Rounding, ...] = ("8-bit", "levels")
Variant = Literal["shadow", "re-encoded"]


@dataclass(frozen=True)
class Images:
    """Which images a pass sees: clean rows of a set, or what a perturbation or its control made of them.

    Attributes:
        set: the set of source images.
        start, stop: rows of the set.
        source: the key of the cell that holds them (``perturb``, ``control``, ``rounded`` or ``variant``); empty for
            clean images.
        which: all of them, those that fool the model (what supervised detectors learn from), or those that failed
            (noise that a detector may learn as harmless).
    """

    set: SetName
    start: int
    stop: int
    source: str = ""
    which: Which = "all"


@dataclass(frozen=True)
class ModelJob:
    """Train a model, or load and check one."""

    part: ModelPart
    seed: int


@dataclass(frozen=True)
class TraceJob:
    """Logits (``need`` is ``None``) or the codes of one need, for some images."""

    model: str
    images: Images
    need: Need | None


@dataclass(frozen=True)
class ExtraJob:
    """What one detector asks for beyond the plain forward: a view (all its codes) or an input gradient."""

    model: str
    images: Images
    detector: DetectorPart
    name: str
    gradient: bool
    seed: int


@dataclass(frozen=True)
class TargetPlan:
    """The detector that an adaptive attack is made against.

    Attributes:
        part: its entry in the suite.
        fit: the cell with its fitted state.
        calibrate: the cell with its scores of the calibrate images.
        guide_logits: the cell with the logits of the first fit images, among which feature matching finds its guides.
        guide_scores: the cell with the detector's scores of them.
        rehearsal: the cell with what the attack learned of it beforehand; empty for an attack that learns nothing.
    """

    part: DetectorPart
    fit: str
    calibrate: str
    guide_logits: str
    guide_scores: str
    rehearsal: str = ""

    def keys(self) -> tuple[str, ...]:
        """The keys of all its cells."""
        keys = (self.fit, self.calibrate, self.guide_logits, self.guide_scores, self.rehearsal)
        return tuple(key for key in keys if key)


@dataclass(frozen=True)
class RehearsalJob:
    """Learn of a fitted detector what an attack on it can use, on calibrate images that the model gets right.

    Attributes:
        logits: the cell with the logits of the first calibrate images.
        images: of how many of them, at most.
    """

    model: str
    part: PerturbationPart
    target: TargetPlan
    logits: str
    images: int
    seed: int


@dataclass(frozen=True)
class AlarmJob:
    """Look for the smallest changes of clean images that a fitted detector flags although the model is right.

    Attributes:
        part: the attack that knows the detector, whose budget, norm and effort are meant.
        logits: the cell with the logits of the first evaluate images, and
        clean: the one with the detector's scores of them.
        stop: how many of these images are looked at.
    """

    model: str
    part: PerturbationPart
    target: TargetPlan
    logits: str
    clean: str
    stop: int
    seed: int


@dataclass(frozen=True)
class Opponent:
    """A detector that one image shall pass together with others.

    Attributes:
        target: its cells.
        clean: the cell with its scores of the first evaluate images.
        made: the cell with what the attack on it alone made of these.
    """

    target: TargetPlan
    clean: str
    made: str

    def keys(self) -> tuple[str, ...]:
        """The keys of all its cells."""
        return (*self.target.keys(), self.clean, self.made)


@dataclass(frozen=True)
class PastAllJob:
    """Look for images that fool the model and pass several detectors at once.

    Attributes:
        part: the attack that knows one of them, whose budget, norm and effort are meant.
        opponents: the detectors that an image shall pass.
        judges: detectors that combine others, which say something of what was found.
        logits: the cell with the logits of the first evaluate images.
        stop: how many of these images are looked at.
    """

    model: str
    part: PerturbationPart
    opponents: tuple[Opponent, ...]
    judges: tuple[TargetPlan, ...]
    logits: str
    stop: int
    seed: int


@dataclass(frozen=True)
class VariantJob:
    """Make variants of the first evaluate images.

    Attributes:
        stop: of how many.
        how: ``shadow``: a small change that is drawn, with ``seed``, and about which the model is as sure as about the
            image; or ``re-encoded``.
        levels: how many levels shadows are rounded to.
        model: the model that is asked, and
        logits: the cell with its clean logits.
    """

    stop: int
    how: Variant
    seed: int = 0
    levels: int = 256
    model: str = ""
    logits: str = ""


@dataclass(frozen=True)
class ShadowPlan:
    """What an attack on shadow images is compared with.

    Attributes:
        images: the cell with the shadow images.
        original: the cell with the same attack on the images that they were made of.
        logits: the cell with the logits of the shadow images.
        clean: the cell with the detector's scores of the originals, and
        shadow: of the shadow images.
    """

    images: str
    original: str
    logits: str
    clean: str
    shadow: str

    def keys(self) -> tuple[str, ...]:
        """All of them."""
        return (self.images, self.original, self.logits, self.clean, self.shadow)


@dataclass(frozen=True)
class PerturbJob:
    """Perturb those images of some rows that the model gets right.

    Attributes:
        logits: the cell with the clean logits, whose first row is ``start``.
        target: for an adaptive attack.
        canary: whether the attack has to show, in the same process, that it works.
        shadow: of an attack on shadow images.
    """

    model: str
    part: PerturbationPart
    set: SetName
    start: int
    stop: int
    logits: str
    seed: int
    target: TargetPlan | None = None
    canary: bool = False
    shadow: ShadowPlan | None = None


@dataclass(frozen=True)
class RadiusJob:
    """Search for the smallest perturbations that fool the model and pass a detector.

    Attributes:
        part: the attack whose norm and large budget are meant.
        logits: the cell with the logits of the first evaluate images.
        images: of how many of them that the model gets right, at most, from the first on.
        known: cells with perturbed images of the same rows, which are asked about.
        alone: the cell of the search that knows no detector; empty for that one itself.
        target: the detector; ``None`` for that search.
    """

    model: str
    part: PerturbationPart
    logits: str
    images: int
    seed: int
    known: tuple[str, ...] = ()
    alone: str = ""
    target: TargetPlan | None = None


@dataclass(frozen=True)
class DerivedJob:
    """Perturbed images changed afterwards, and measured again.

    Attributes:
        source: the cell with the perturbed images.
        how: projected into the budget of ``part`` (a minimising attack ran without one), rounded to 8 bits, or to the
            levels of the data.
        levels: how many levels the data have, for ``levels``.
    """

    model: str
    part: PerturbationPart
    source: str
    set: SetName
    how: Literal["budget", "8-bit", "levels"]
    levels: int = 256


@dataclass(frozen=True)
class ControlJob:
    """Noise of the same size as each successful perturbation of a ``perturb`` cell."""

    model: str
    perturbed: str
    set: SetName
    logits: str
    start: int
    seed: int


@dataclass(frozen=True)
class TraceKeys:
    """The cells that hold the traces of one run of images.

    Attributes:
        logits: key of the logits.
        codes: ``Need`` as stored to key.
        extras: names of views and gradients to key, for one detector.
        images: whose traces these are.
    """

    logits: str
    codes: Mapping[Need, str]
    images: Images
    extras: Mapping[str, str] = field(default_factory=dict)

    def keys(self) -> tuple[str, ...]:
        """All keys, logits first."""
        return (self.logits, *self.codes.values(), *self.extras.values())


@dataclass(frozen=True)
class FitJob:
    """Fit one detector on clean traces and, if supervised, on perturbed ones."""

    model: str
    part: DetectorPart
    clean: tuple[TraceKeys, ...]
    perturbed: tuple[TraceKeys, ...]
    negatives: tuple[TraceKeys, ...]
    seed: int


@dataclass(frozen=True)
class ScoreJob:
    """Score traces with a fitted detector.

    Attributes:
        recheck: which rows are scored again in other ways: none (nothing is ranked by them), a sample, or all.
        shared: what all detectors together read that score the same rows again, so that these are recorded once; empty
            where no other does.
    """

    model: str
    part: DetectorPart
    fit: str
    traces: tuple[TraceKeys, ...]
    recheck: Literal["none", "sample", "all"] = "sample"
    shared: tuple[Need, ...] = ()


@dataclass(frozen=True)
class PerturbedKeys:
    """The traces of one perturbation's images and of its control."""

    label: str
    kind: str
    traces: tuple[TraceKeys, ...]
    control: tuple[TraceKeys, ...]


@dataclass(frozen=True)
class PreparationJob:
    """Let an analysis that is part of every run learn of a model what it needs for every perturbation."""

    model: str
    part: Part
    fit: tuple[TraceKeys, ...]


@dataclass(frozen=True)
class AnalysisJob:
    """Run an analysis on the clean images of one model and, if it asks for them, on perturbed ones.

    Attributes:
        prepared: the cell with what it learned before; empty for one that is not part of every run.
    """

    model: str
    part: Part
    fit: tuple[TraceKeys, ...]
    evaluate: tuple[TraceKeys, ...]
    perturbed: tuple[PerturbedKeys, ...]
    seed: int
    prepared: str = ""


Job = (
    ModelJob
    | TraceJob
    | ExtraJob
    | RehearsalJob
    | AlarmJob
    | PastAllJob
    | VariantJob
    | PerturbJob
    | RadiusJob
    | DerivedJob
    | ControlJob
    | FitJob
    | ScoreJob
    | PreparationJob
    | AnalysisJob
)


@dataclass(frozen=True)
class Cell:
    """One unit of work.

    Attributes:
        key: its content key.
        name: what it is about; its text is what ``--only`` matches.
        inputs: keys of the cells that must be finished before; computing it reads no other.
        group: cells of one group that are missing are computed together (codes of one forward pass).
        images: how many images it handles at most, for the time that is left.
    """

    key: str
    name: CellName
    job: Job
    inputs: tuple[str, ...]
    group: str
    images: int

    @property
    def kind(self) -> str:
        """What it does; see :class:`~..core.cell_names.CellName`."""
        return self.name.kind
