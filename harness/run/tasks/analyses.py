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
from ...tracing.traced_model import Instruments
from ...tracing.traces import Need
from ..work import Output
from ..workers.standins.analyses import PluginAnalysis
from .lent import lent_instruments
from .workbench import Workbench


def compute_analysis(bench: Workbench, key: str, job: AnalysisJob) -> Output:
    """Run one analysis."""
    analysis = ANALYSES.get(job.part.name)(**job.part.params)
    if isinstance(analysis, PluginAnalysis):
        return analysis.compute(bench.context, key, job, bench.tell)
    needs: Sequence[Need] = analysis.needs
    instruments = lent_instruments(bench.open(job.model), analysis)
    given = AnalysisInput(
        instruments=instruments,
        untrained=lambda draw=0: _untrained(bench, job.model, instruments, job.seed, draw),
        classes=tuple(bench.dataset.classes),
        fit=_clean(bench, job.model, job.fit, "fit", needs),
        evaluate=_clean(bench, job.model, job.evaluate, "evaluate", needs),
        perturbed={p.label: _perturbed(bench, job, p, needs) for p in job.perturbed},
        seed=job.seed,
        progress=bench.tell,
        prepared=_prepared(bench, job, analysis) if job.prepared else None,
    )
    with guarded_part(analysis) as changes:
        measured = analysis.measure(given)
    return _output(key, "measure", measured, measured_class(analysis), changes)


def compute_preparation(bench: Workbench, key: str, job: PreparationJob) -> Output:
    """Let an analysis learn of a model what it needs for every perturbation."""
    analysis = ANALYSES.get(job.part.name)(**job.part.params)
    fit = _clean(bench, job.model, job.fit, "fit", analysis.needs)
    with guarded_part(analysis) as changes:
        prepared = analysis.prepare(fit)
    return _output(key, "prepare", prepared, prepared_class(analysis), changes)


def _output(key: str, method: str, made: object, kind: type[Any], changes: Changes) -> Output:
    """What a method made, as it is stored."""
    if not isinstance(made, kind):
        raise AftershockError(f"{method}() returned {type(made).__name__} instead of {kind.__name__}")
    tensors, value = encode(made)
    # What cannot be read again is said now, not when tables are written.
    decode(kind, tensors, value)
    return Output(key, tensors, noted({f"{method}d": value}, changes))


def _prepared(bench: Workbench, job: AnalysisJob, analysis: Any) -> object:
    tensors, values = bench.reader.load(job.prepared), bench.reader.values(job.prepared)
    return decode(prepared_class(analysis), tensors, values["prepared"])


def _clean(bench: Workbench, model: str, chunks: Sequence[TraceKeys], name: SetName, needs: Sequence[Need]) -> ImageSet:
    positions, split = bench.sets.of(name), bench.source(name)
    labels = split.labels(positions.tolist())

    def read(rows: slice) -> Tensor:
        return split.images(positions[rows].tolist())

    return _set(bench, model, chunks, needs, labels, read)


def _set(
    bench: Workbench, model: str, chunks: Sequence[TraceKeys], needs: Sequence[Need], labels: Tensor,
    read: Callable[[slice], Tensor],
) -> ImageSet:  # fmt: skip
    traces = bench.traces(model, chunks, needs)
    if not len(labels):
        traces = traces[:0]
    return ImageSet(replace(traces, label_rows=labels), read)


def _perturbed(bench: Workbench, job: AnalysisJob, keys: PerturbedKeys, needs: Sequence[Need]) -> PerturbedSet:
    def column(chunks: Sequence[TraceKeys], name: str) -> Tensor:
        return torch.cat([bench.reader.tensor(t.images.source, name) for t in chunks])

    def images(chunks: Sequence[TraceKeys]) -> Callable[[slice], Tensor]:
        sources = [t.images.source for t in chunks]
        lengths = [int(bench.reader.values(s)["rows"]) for s in sources]

        def chunk(source: str) -> Callable[[], Tensor]:
            return lambda: bench.reader.tensor(source, "images")

        rows = ChunkedRows([chunk(s) for s in sources], lengths, bench.dataset.shape)
        return rows.__getitem__

    labels = bench.dataset.test.labels(bench.sets.evaluate.tolist())
    rows, control_rows = column(keys.traces, "row").long(), column(keys.control, "row").long()
    return PerturbedSet(
        label=keys.label,
        kind=keys.kind,
        images=_set(bench, job.model, keys.traces, needs, labels[rows], images(keys.traces)),
        rows=rows,
        success=column(keys.traces, "success").bool(),
        control=_set(bench, job.model, keys.control, needs, labels[control_rows], images(keys.control)),
        control_rows=control_rows,
    )


def _untrained(bench: Workbench, model: str, trained: Instruments, seed: int, draw: int) -> Instruments:
    part = bench.part(model)
    seed = derive_seed(seed, "untrained", draw) if draw else seed
    classifier = untrained_classifier(part, bench.suite.folder, bench.dataset, seed).to(bench.device)
    return replace(trained, model=classifier, root=classifier.network)
