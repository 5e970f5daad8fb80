"""A plan in the making: what every kind of cell needs to be laid out (rows, identities, traces)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.batches import batch_for
from ..core.cell_names import CellName
from ..core.code_digests import code_digest
from ..core.content_keys import content_key, versions
from ..core.files import file_digest
from ..core.protocol_content import positions_digest
from ..core.registry import PERTURBATIONS
from ..data.types import TaskShape
from ..suite.instances import make_analysis, make_detector, standing_analyses
from ..suite.resolved import ModelPart, PerturbationPart, Suite
from ..tracing.traces import Need, capped
from .applicability import applicability, make_perturbations
from .cells import Cell, Images, Job, ModelJob, Rounding, SetName, TraceJob, TraceKeys, Which
from .facts import Facts, analysis_facts, detector_facts, perturbation_facts
from .models import model_identity
from .plan import ModelPlan
from .sets import Sets

if TYPE_CHECKING:
    from ...analyses.base import Analysis
    from ...detectors.base.detector import Detector

DECIDES_NO_NUMBER = True

# Images per cell on a CPU: what a kill may cost, and what is in memory at once. Elsewhere a cell is a batch, if that is
# more, since such devices compute thousands of small images in the time of a few.
CHUNK = 256

# The modules that compute each kind of cell; what they import counts too.
TRACING = "harness.run.tasks.traces"


@dataclass(frozen=True)
class Made:
    """What made traced images (``none`` for clean ones), and of which set: for the names of cells."""

    part: str
    source: str = ""

    @property
    def text(self) -> str:
        """Both in one field."""
        return f"{self.part}/{self.source}" if self.source else self.part


class Draft:
    """The cells of a plan so far.

    Args:
        suite: resolved and checked.
        sets: the source images.
        data_digest: digest of the data's bytes and of the code that reads them.
        device: the device type.
        weights: file of each model label, ``None`` where it is trained.
        task: shape of the images and number of classes, which decide what of the suite applies.
        levels: how many levels the data have, ``None`` where their values are continuous.
        states: digest of what a user's function gives as the network, by label and seed of the model.
        lost: labels of the perturbations that failed, by key of the model.
        secret: of the run, which decides the shadow images; without one there are none.

    Attributes:
        chunk: images per cell.
        planned: the perturbations that have cells: defined for the task, and not against a detector that is not fitted.
    """

    def __init__(
        self, suite: Suite, sets: Sets, data_digest: str, device: str, weights: Mapping[str, Path | None],
        task: TaskShape, levels: int | None = None, states: Mapping[tuple[str, int], str | None] | None = None,
        lost: Mapping[str, Collection[str]] | None = None, secret: str = "",
    ) -> None:  # fmt: skip
        self.suite, self.sets, self.data_digest, self.device, self.weights = suite, sets, data_digest, device, weights
        self.states, self.lost, self.secret = states or {}, lost or {}, secret
        self.chunk = CHUNK if device == "cpu" else max(CHUNK, batch_for(device, task.image))
        self.cells: dict[str, Cell] = {}
        # Traces are asked for by every detector and analysis that reads them.
        self._traces: dict[tuple[str, Images, Need | None], str] = {}
        self._positions: dict[tuple[SetName, int, int], str] = {}
        # Image files have 8 bits; data with fewer levels are saved with those.
        own: tuple[tuple[Rounding, int], ...] = (("levels", levels),) if levels is not None and levels < 256 else ()
        self.roundings: tuple[tuple[Rounding, int], ...] = (("8-bit", 256), *own)
        self.perturbations = make_perturbations(suite)
        self.applicability = applicability(suite, self.perturbations, task)
        self.planned = tuple(p for p in self.applicable if p.against not in self.applicability.unfitted)
        self.detectors: dict[str, Detector] = {d.label: make_detector(d) for d in suite.detectors}
        self.analyses: dict[str, Analysis[Any]] = {a.label: make_analysis(a) for a in suite.analyses}
        self.standing = standing_analyses()
        self.facts = Facts(
            {
                p.label: perturbation_facts(self.perturbations[p.label], PERTURBATIONS.entry(p.name).origin)
                for p in suite.perturbations
            },
            {label: detector_facts(made) for label, made in self.detectors.items()},
            {label: analysis_facts(made) for label, made in self.analyses.items()},
        )

    @cached_property
    def read(self) -> tuple[Need, ...]:
        """What the detectors of the suite read of a plain pass, all together."""
        return tuple(dict.fromkeys(need for made in self.detectors.values() for need in made.needs))

    @property
    def applicable(self) -> tuple[PerturbationPart, ...]:
        """The perturbations that are defined for the task."""
        return tuple(p for p in self.suite.perturbations if p.label not in self.applicability.inapplicable)

    def name(
        self, model_plan: ModelPlan, kind: str, part: str = "", *, extra: str = "", source: str = "",
        start: int | None = None, code: str = "",
    ) -> CellName:  # fmt: skip
        """Return the name of a cell of a model_plan; see :class:`CellName`."""
        at = (self.suite.data.name, model_plan.part.label, model_plan.seed)
        return CellName(*at, kind, part, extra, source, start, code)

    def add(self, key: str, name: CellName, job: Job, inputs: Iterable[str], images: int, group: str = "") -> str:
        """Plan a cell once; two places that ask for the same content share it."""
        self.cells.setdefault(key, Cell(key, name, job, tuple(dict.fromkeys(inputs)), group or key, images))
        return key

    def chunks(self, name: SetName, label: str = "") -> list[tuple[int, int]]:
        """Row ranges of a set, or of those of its rows that a perturbation covers, cut at multiples of ``chunk``."""
        count = len(self.sets.of(name))
        if label:
            count = min(count, self.perturbations[label].images or count)
        return [(start, min(start + self.chunk, count)) for start in range(0, count, self.chunk)]

    def positions_digest(self, name: SetName, start: int, stop: int) -> str:
        """Digest of which images some rows of a set are."""
        rows = (name, start, stop)
        if rows not in self._positions:
            positions = self.sets.of(name)[start:stop]
            split = "train" if name == "fit" else "test"
            self._positions[rows] = positions_digest(split, positions.numpy())
        return self._positions[rows]

    def portable(self, part: PerturbationPart) -> object:
        """Return a perturbation's parameters with the content of its files in place of their paths."""
        made = self.perturbations.get(part.label)
        files = made.source_files() if made else ()
        kept = {k: v for k, v in part.params.items() if str(v) not in {str(f) for f in files}}
        return [kept, [file_digest(f) for f in files]]

    def model(self, part: ModelPart, seed: int) -> str:
        """Plan a model; one whose weights come from a file is the same for every seed."""
        weights, state = self.weights[part.label], self.states.get((part.label, seed))
        identity = model_identity(part, self.suite.folder, weights, self.suite.data.name, state)
        key = content_key(
            "model",
            data=self.data_digest,
            identity=identity,
            seed=seed if self.weights[part.label] is None else None,
            taps=part.tap_modules,
            bits_per_tap=part.bits_per_tap,
            code=code_digest("harness.plan.models"),
            versions=versions("torch", "torchvision"),
            device=self.device,
        )
        name = CellName(self.suite.data.name, part.label, seed, "model")
        return self.add(key, name, ModelJob(part, seed), (), 0)

    def stored_needs(self, part: ModelPart, needs: Iterable[Need]) -> tuple[Need, ...]:
        """Return needs as they are stored for a model, each once."""
        return tuple(dict.fromkeys(stored_need(need, part.bits_per_tap) for need in needs))

    def traces(self, model_plan: ModelPlan, images: Images, needs: tuple[Need, ...], made: Made) -> TraceKeys:
        """Plan logits and codes of some images: cells of their own, computed in one forward pass."""
        model = model_plan.key
        for need in (None, *needs):
            if (model, images, need) not in self._traces:
                self._traces[model, images, need] = self._trace(model_plan, images, need, made)
        codes = {need: self._traces[model, images, need] for need in needs}
        return TraceKeys(self._traces[model, images, None], codes, images)

    def _trace(self, model_plan: ModelPlan, images: Images, need: Need | None, made: Made) -> str:
        source: object = [self.data_digest, self.positions_digest(images.set, images.start, images.stop)]
        identity = [model_plan.key, [images.source, images.which] if images.source else source]
        key = content_key("trace", identity=identity, need=need, code=code_digest(TRACING))
        name = self.name(
            model_plan, "trace", made.part, source=made.source, start=images.start, code=need.code if need else "logits"
        )
        return self.add(
            key, name, TraceJob(model_plan.key, images, need),
            (model_plan.key, images.source) if images.source else (model_plan.key,), images.stop - images.start,
            group=content_key("pass", identity=identity),
        )  # fmt: skip

    def perturbed_traces(
        self, model_plan: ModelPlan, label: str, name: SetName, needs: tuple[Need, ...], which: Which = "all"
    ) -> tuple[TraceKeys, ...]:
        """Plan the traces of a perturbation's images."""
        return self.made_traces(
            model_plan, model_plan.perturbs[label, name], label, needs, Made(label, name), name, which
        )  # fmt: skip

    def control_traces(self, model_plan: ModelPlan, label: str, needs: tuple[Need, ...]) -> tuple[TraceKeys, ...]:
        """Plan the traces of its equal-norm control."""
        return self.made_traces(
            model_plan, model_plan.controls[label], label, needs, Made(f"control:{label}", "evaluate")
        )

    def made_traces(
        self, model_plan: ModelPlan, keys: tuple[str, ...], label: str, needs: tuple[Need, ...], made: Made,
        name: SetName = "evaluate", which: Which = "all",
    ) -> tuple[TraceKeys, ...]:  # fmt: skip
        """Plan the traces of what was made of a perturbation's chunks, one cell after the other."""
        return tuple(
            self.traces(model_plan, Images(name, start, stop, key, which), needs, made)
            for key, (start, stop) in zip(keys, self.chunks(name, label), strict=True)
        )


def stored_need(need: Need, bits_per_tap: int | None) -> Need:
    """A need as it is stored: for all taps where that is cheap, so that detectors share it; bits capped per model."""
    held = capped(need, bits_per_tap)
    if held.representation == "full" and held.units is None:
        return held
    return replace(held, taps="all")


def cut(traces: Iterable[TraceKeys], needs: Iterable[Need]) -> tuple[TraceKeys, ...]:
    """Return traces with only those codes that are read."""
    needs = tuple(needs)
    return tuple(TraceKeys(t.logits, {n: t.codes[n] for n in needs}, t.images) for t in traces)


def all_keys(*groups: Iterable[TraceKeys]) -> tuple[str, ...]:
    """Return the keys of all cells behind some traces."""
    return tuple(k for group in groups for t in group for k in t.keys())  # noqa: SIM118 (not a mapping)


def image_count(traces: Iterable[TraceKeys]) -> int:
    """Return how many images some traces cover at most."""
    return sum(t.images.stop - t.images.start for t in traces)
