"""Plans detectors: their fits, their scores, and the extra passes that they declare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..core.code_digests import code_digest, part_digest
from ..core.content_keys import canonical, content_key, versions
from ..core.registry import DETECTORS
from ..core.seeds import derive_seed
from ..suite.resolved import DetectorPart, PerturbationPart
from ..tracing.traces import Need
from .cells import ROUNDINGS, ExtraJob, FitJob, ScoreJob, TraceKeys, Which
from .draft import TRACING, Draft, Made, all_keys, cut, image_count
from .plan import ModelPlan

DECIDES_NO_NUMBER = True

_CONTRACT = "detectors.base.detector"
_DETECTING = "harness.run.tasks.detectors"
# Scores are asked for again in a process that knows nothing of the run.
_RESCORING = "harness.run.answering.detectors"


class DetectorPlanner:
    """Plans one detector of one model_plan; its fit first.

    Args:
        draft: where its cells go.
        model_plan: the model, whose clean traces and oblivious perturbations are planned.
        part: the detector's entry in the suite.
    """

    def __init__(self, draft: Draft, model_plan: ModelPlan, part: DetectorPart) -> None:
        self.draft, self.model_plan, self.part = draft, model_plan, part
        detector = draft.detectors[part.label]
        self.needs: tuple[Need, ...] = draft.stored_needs(model_plan.part, detector.needs)
        self._views = [(view.name, False) for view in detector.views] + [(g.name, True) for g in detector.gradients]
        made_of = [part_digest(DETECTORS.entry(name), _CONTRACT) for name in (part.name, *detector.made_of)]
        self._identity = [part.name, part.params, made_of]
        self._seed = derive_seed(model_plan.seed, "detector", canonical(self._identity[:2]))

    def fit(self) -> None:
        """Plan the fit, and the scores of the clean images."""
        model_plan, part = self.model_plan, self.part
        clean = self._with_extras(model_plan.clean["fit"], Made("none", "fit"))
        perturbed = self._fit_on(part.fit_on, "success")
        negatives = self._fit_on(part.fit_negatives, "failed")
        groups = (clean, perturbed, negatives)
        key = content_key(
            "fit", identity=self._identity, seed=self._seed,
            inputs=[[t.keys() for t in group] for group in groups],
            code=code_digest(_DETECTING),
            versions=versions("torch", "numpy", "scipy", "scikit-learn"),
        )  # fmt: skip
        job = FitJob(model_plan.key, part, clean, perturbed, negatives, self._seed)
        name = self.draft.name(model_plan, "fit", part.label)
        images = sum(image_count(group) for group in groups)
        # Supervised detectors are told which image each row was made from.
        sources = dict.fromkeys(t.images.source for group in groups for t in group if t.images.source)
        inputs = (model_plan.key, *all_keys(*groups), *sources)
        model_plan.fits[part.label] = self.draft.add(key, name, job, inputs, images)
        self._score("calibrate", model_plan.clean["calibrate"], shared=True)
        self._score("clean", model_plan.clean["evaluate"], shared=True)
        for how, traces in model_plan.variants.items():
            self._score(how, (traces,), "none")

    def score_guides(self) -> None:
        """Plan the scores of the first fit images, among which attacks on this detector find images that pass."""
        self._score("fit", self.model_plan.clean["fit"][:1], "none")

    def score_perturbed(self, p: PerturbationPart) -> None:
        """Plan the scores of what a perturbation made, also of attacks against other detectors."""
        draft, model_plan = self.draft, self.model_plan
        traces = draft.perturbed_traces(model_plan, p.label, "evaluate", self.needs)
        if p.against not in ("", self.part.label):
            # Nothing in this detector's row depends on it.
            self._score(p.label, traces, "none")
            return
        self._score(p.label, traces, "all" if p.against else "sample", shared=not p.against)
        for how in ROUNDINGS:
            if (p.label, how) in model_plan.rounded:
                source = f"{how}:{p.label}"
                keys = model_plan.rounded[p.label, how]
                rounded = draft.made_traces(model_plan, keys, p.label, self.needs, Made(source))
                self._score(source, rounded, "sample" if p.against else "none")
        controls = draft.control_traces(model_plan, p.label, self.needs)
        self._score(f"control:{p.label}", controls, shared=not p.against)

    def _fit_on(self, labels: Sequence[str], which: Which) -> tuple[TraceKeys, ...]:
        found: tuple[TraceKeys, ...] = ()
        for label in labels:
            traces = self.draft.perturbed_traces(self.model_plan, label, "fit", self.needs, which)
            found += self._with_extras(traces, Made(label, "fit"))
        return found

    def _score(
        self, source: str, plain: tuple[TraceKeys, ...], recheck: Literal["none", "sample", "all"] = "sample",
        shared: bool = False,
    ) -> None:  # fmt: skip
        fit, traces = self.model_plan.fits[self.part.label], self._with_extras(plain, Made(source))
        inputs = all_keys(traces)
        if source != "fit" and self.draft.detectors[self.part.label].randomised:
            # A single draw decides nothing that is reported.
            recheck = "all"
        key = content_key("score", fit=fit, traces=inputs, recheck=recheck, code=code_digest(_DETECTING, _RESCORING))
        name = self.draft.name(self.model_plan, "score", self.part.label, source=source)
        job = ScoreJob(self.model_plan.key, self.part, fit, traces, recheck, self.draft.read if shared else ())
        # Scored again from the images themselves, not only from their traces.
        images = dict.fromkeys(t.images.source for t in traces if t.images.source and recheck != "none")
        found = self.draft.add(key, name, job, (fit, *inputs, *images, self.model_plan.key), image_count(traces))
        self.model_plan.scores[self.part.label, source] = found

    def _with_extras(self, traces: tuple[TraceKeys, ...], made: Made) -> tuple[TraceKeys, ...]:
        """Only the codes that the detector reads, and the views and input gradients that it declares."""
        plain = cut(traces, self.needs)
        return tuple(self._extras(t, made) for t in plain) if self._views else plain

    def _extras(self, traces: TraceKeys, made: Made) -> TraceKeys:
        model, images = self.model_plan.key, traces.images
        found = {}
        for name, gradient in self._views:
            kind = "gradient" if gradient else "view"
            key = content_key(
                kind, logits=traces.logits, detector=self._identity, name=name, seed=self._seed,
                code=code_digest(TRACING),
            )  # fmt: skip
            job = ExtraJob(model, images, self.part, name, gradient, self._seed)
            inputs = (model, images.source) if images.source else (model,)
            cell = self.draft.name(
                self.model_plan, kind, self.part.label, extra=name, source=made.text, start=images.start
            )  # fmt: skip
            found[name] = self.draft.add(key, cell, job, inputs, images.stop - images.start)
        return TraceKeys(traces.logits, traces.codes, images, found)
