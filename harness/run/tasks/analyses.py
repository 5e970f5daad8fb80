"""Analyses: what each is given, and what is kept of what it measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ....analyses.base import AnalysisInput, ImageSet, PerturbedSet, measured_class
from ....analyses.standing import prepared_class
from ...core.errors import AftershockError
from ...core.process_state import Changes, guarded_part, noted
from ...core.registry import ANALYSES
from ...core.seeds import derive_seed
from ...core.state import decode, encode
from ...plan.cells import AnalysisJob, PerturbedKeys, PreparationJob, SetName, TraceKeys
from ...plan.models import untrained_classifier
from ...tracing.rows import ChunkedRows
from ...tracing.traced_model import TracedModel
from ...tracing.traces import Need
from ..work import Output
from ..workers.standins.analyses import PluginAnalysis
from .lent import lent_model
from .task_context import TaskContext


def compute_analysis(context: TaskContext, key: str, job: AnalysisJob) -> Output:
    """Run one analysis."""
    analysis = ANALYSES.get(job.part.name)(**job.part.params)
    if isinstance(analysis, PluginAnalysis):
        return analysis.compute(context.worker_context, key, job, context.on_progress)
    needs: Sequence[Need] = analysis.needs
    traced_model = lent_model(context.open(job.model), analysis)
    given = AnalysisInput(
        traced_model=traced_model,
        untrained=lambda draw=0: _untrained(context, job.model, traced_model, job.seed, draw),
        classes=tuple(context.dataset.classes),
        fit=_clean(context, job.model, job.fit, "fit", needs),
        evaluate=_clean(context, job.model, job.evaluate, "evaluate", needs),
        perturbed={p.label: _perturbed(context, job, p, needs) for p in job.perturbed},
        seed=job.seed,
        progress=context.on_progress,
        prepared=_prepared(context, job, analysis) if job.prepared else None,
    )
    with guarded_part(analysis) as changes:
        measured = analysis.measure(given)
    return _output(key, "measure", measured, measured_class(analysis), changes)


def compute_preparation(context: TaskContext, key: str, job: PreparationJob) -> Output:
    """Let an analysis learn of a model what it needs for every perturbation."""
    analysis = ANALYSES.get(job.part.name)(**job.part.params)
    fit = _clean(context, job.model, job.fit, "fit", analysis.needs)
    with guarded_part(analysis) as changes:
        prepared = analysis.prepare(fit)
    return _output(key, "prepare", prepared, prepared_class(analysis), changes)


def _output(key: str, method: str, made: object, kind: type[Any], changes: Changes) -> Output:
    """Return what a method made, as it is stored."""
    if not isinstance(made, kind):
        raise AftershockError(f"{method}() returned {type(made).__name__} instead of {kind.__name__}")
    tensors, value = encode(made)
    # What cannot be read again is said now, not when tables are written.
    decode(kind, tensors, value)
    return Output(key, tensors, noted({f"{method}d": value}, changes))


def _prepared(context: TaskContext, job: AnalysisJob, analysis: Any) -> object:
    tensors, values = context.reader.load(job.prepared), context.reader.values(job.prepared)
    return decode(prepared_class(analysis), tensors, values["prepared"])


def _clean(
    context: TaskContext, model: str, chunks: Sequence[TraceKeys], name: SetName, needs: Sequence[Need]
) -> ImageSet:
    positions, split = context.sets.of(name), context.source(name)
    labels = split.labels(positions.tolist())

    def read(rows: slice) -> Tensor:
        return split.images(positions[rows].tolist())

    return _set(context, model, chunks, needs, labels, read)


def _set(
    context: TaskContext, model: str, chunks: Sequence[TraceKeys], needs: Sequence[Need], labels: Tensor,
    read: Callable[[slice], Tensor],
) -> ImageSet:  # fmt: skip
    traces = context.traces(model, chunks, needs)
    if not len(labels):
        traces = traces[:0]
    return ImageSet(replace(traces, label_rows=labels), read)


def _perturbed(context: TaskContext, job: AnalysisJob, keys: PerturbedKeys, needs: Sequence[Need]) -> PerturbedSet:
    def column(chunks: Sequence[TraceKeys], name: str) -> Tensor:
        return torch.cat([context.reader.tensor(t.images.source, name) for t in chunks])

    def images(chunks: Sequence[TraceKeys]) -> Callable[[slice], Tensor]:
        sources = [t.images.source for t in chunks]
        lengths = [int(context.reader.values(s)["rows"]) for s in sources]

        def chunk(source: str) -> Callable[[], Tensor]:
            return lambda: context.reader.tensor(source, "images")

        rows = ChunkedRows([chunk(s) for s in sources], lengths, context.dataset.shape)
        return rows.__getitem__

    labels = context.dataset.test.labels(context.sets.evaluate.tolist())
    rows, control_rows = column(keys.traces, "row").long(), column(keys.control, "row").long()
    return PerturbedSet(
        label=keys.label,
        kind=keys.kind,
        images=_set(context, job.model, keys.traces, needs, labels[rows], images(keys.traces)),
        rows=rows,
        success=column(keys.traces, "success").bool(),
        control=_set(context, job.model, keys.control, needs, labels[control_rows], images(keys.control)),
        control_rows=control_rows,
    )


def _untrained(context: TaskContext, model: str, trained: TracedModel, seed: int, draw: int) -> TracedModel:
    part = context.part(model)
    seed = derive_seed(seed, "untrained", draw) if draw else seed
    classifier = untrained_classifier(part, context.suite.folder, context.dataset, seed).to(context.device)
    return replace(trained, model=classifier, root=classifier.network)
