"""Traces of images: logits and codes from one pass, and the extra passes that a detector declares."""

from __future__ import annotations

from collections.abc import Sequence

from ...core.process_state import guarded_part, noted
from ...core.seeds import generator
from ...plan.cells import Cell, ExtraJob, TraceJob
from ...tracing.recorder import input_gradient, record
from ...tracing.traced_model import view_seed
from ...tracing.view_images import view_images
from ..work import Output
from .task_context import TaskContext


def compute_traces(context: TaskContext, cells: Sequence[Cell]) -> list[Output]:
    """Return logits and codes of the same images, in one instrumented forward."""
    jobs = [cell.job for cell in cells if isinstance(cell.job, TraceJob)]
    model = context.open(jobs[0].model)
    needs = tuple(job.need for job in jobs if job.need is not None)
    images = context.images(jobs[0].images)
    recording = record(model.model, images, model.taps, needs, model.modules, model.root)
    outputs = []
    for cell, job in zip(cells, jobs, strict=True):
        if job.need is None:
            values = {"rows": len(recording.logits), "shape": list(recording.logits.shape[1:])}
            outputs.append(Output(cell.key, {"logits": recording.logits}, values))
            continue
        # Not whatever was recorded: others in this pass may have asked for the same code at other taps.
        found, wanted = recording.codes[job.need.code], {t.name for t in job.need.select(model.taps)}
        codes = {str(i): found[t.name] for i, t in enumerate(model.taps) if t.name in wanted}
        outputs.append(Output(cell.key, codes, {"shapes": {i: list(v.shape[1:]) for i, v in codes.items()}}))
    return outputs


def compute_extra(context: TaskContext, key: str, job: ExtraJob) -> Output:
    """Return a view or an input gradient that a detector declares."""
    model, detector = context.open(job.model), context.make_detector(job.detector)
    images = context.images(job.images)
    if job.gradient:
        wanted = next(g for g in detector.gradients if g.name == job.name)
        with guarded_part(detector) as changes:
            gradient = input_gradient(model.model, images, wanted.objective)
        found = {"gradient": True, "shape": list(gradient.shape[1:])}
        return Output(key, {"gradient": gradient}, noted(found, changes))
    view = next(v for v in detector.views if v.name == job.name)
    # Of the chunk's start, so that the transform's draws do not depend on what else was computed.
    draws = generator(job.seed, "view", view.name, job.images.source, job.images.start)
    with guarded_part(detector) as changes:
        changed = view_images(model.model, view, images, draws)
    recording = record(
        model.model, changed, model.taps, model.capped(detector.needs), model.modules, model.root, dropout=view.dropout,
        seed=view_seed(view),
    )  # fmt: skip
    position = {t.name: i for i, t in enumerate(model.taps)}
    tensors = {f"{c}|{position[t]}": v for c, codes in recording.codes.items() for t, v in codes.items()}
    shapes = {name: list(v.shape[1:]) for name, v in tensors.items()}
    values = {"gradient": False, "shape": list(recording.logits.shape[1:]), "shapes": shapes}
    return Output(key, {"logits": recording.logits, **tensors}, noted(values, changes))
