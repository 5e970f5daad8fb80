"""Fits and scores of detectors; what a plugin's detector returns is checked here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from ....detectors.base.detector import Detector
from ....detectors.base.scores import checked_scores
from ...core.clock import Stopwatch
from ...core.errors import AftershockError
from ...core.memory import peak_memory
from ...core.process_state import CHANGED, Changes, guarded_part, noted
from ...core.seeds import derive_seed, forked_rng, generator
from ...evaluation.rankability import OPENED, STARTED
from ...plan.cells import FitJob, ScoreJob, TraceKeys
from ...tracing.traces import Traces
from ..work import Output
from ..workers.standins.detectors import PluginDetector
from .rescoring import rescore
from .task_context import TaskContext

# Rows that a detector scores at once, and those that are tried before, so that a slow one is noticed early.
SCORE_BATCH = 512
TRIED_BATCHES = (1, 8, 64)


def compute_fit(context: TaskContext, key: str, job: FitJob) -> Output:
    """Fit a detector; its state is what is kept."""
    from ...core.state import split_state

    detector = context.make_detector(job.part)
    context.expect_fresh_scores(job.part, detector)
    sources = _sources(context, (*job.clean, *job.negatives))
    clean = replace(
        context.traces(job.model, (*job.clean, *job.negatives), detector.needs),
        label_rows=context.dataset.train.labels(sources.tolist()),
        source_rows=sources,
        random=generator(job.seed, "fit"),
    )
    perturbed = None
    if job.perturbed:
        made = context.traces(job.model, job.perturbed, detector.needs)
        perturbed = replace(made, source_rows=_sources(context, job.perturbed))
    _import_first()
    with guarded_part(detector) as changes, peak_memory() as peak:
        clock = Stopwatch()
        fitted = detector.fit(clean, perturbed)
        seconds, _ = spent_by(detector) or (clock.seconds, False)
    if seconds > context.suite.limits.fit_seconds:
        # What ended is not undone: a limit on a fit is enforced where the process can be ended, which is not here.
        context.on_message(
            f"fit() of {job.part.label} took {seconds:.0f} CPU seconds, more than fit_seconds under [limits]."
        )
    if fitted is not detector:
        raise AftershockError("fit() must return the detector itself (`return self`)")
    tensors, state = split_state(detector.state())
    rise = detector.peak_bytes if isinstance(detector, PluginDetector) else peak.rise
    values = {"state": state, "peak_bytes": rise, "fit_seconds": seconds, **notes_of(detector)}
    return Output(key, tensors, noted(values, changes))


@cache
def _import_first() -> None:
    """What most detectors import when they are fitted, so that it is not put down to the first of them."""
    for name in ("scipy.stats", "sklearn.linear_model", "sklearn.covariance"):
        import_module(name)


def _sources(context: TaskContext, chunks: Sequence[TraceKeys]) -> Tensor:
    """Return which image of the train split each row of fit traces was made from, int64 (n,)."""
    found = []
    for images in (chunk.images for chunk in chunks):
        if not images.source:
            found.append(context.sets.fit[images.start : images.stop])
            continue
        success = context.reader.tensor(images.source, "success")
        kept = {"success": success, "failed": ~success, "all": torch.ones_like(success)}[images.which]
        found.append(context.sets.fit[context.reader.tensor(images.source, "row")[kept]])
    return torch.cat(found)


def compute_scores(context: TaskContext, key: str, job: ScoreJob) -> Output:
    """Score traces with a fitted detector, float64 (n,)."""
    detector = context.detector(job.fit, job.part)
    traces = context.traces(job.model, job.traces, detector.needs)
    limit = context.suite.limits.score_seconds
    scored = [torch.empty(0, dtype=torch.float64)]
    changes, spent = [], 0.0
    if job.fit not in context.timely:
        # One that takes very long is noticed with few images. These scores are not kept: how images are put into
        # batches must not depend on what was computed before, since it moves last digits and what is drawn.
        for size in (size for size in TRIED_BATCHES if size < len(traces)):
            changes.append(_score_in_time(detector, traces[:size].alone(), derive_seed(0, "try", key, size), limit)[2])
    for start in range(0, len(traces), SCORE_BATCH):
        batch = traces[start : start + SCORE_BATCH].alone()
        given, taken, changed = _score_in_time(detector, batch, derive_seed(0, "score", key, start), limit)
        scored.append(given)
        changes.append(changed)
        spent += taken
    context.timely.add(job.fit)
    found = torch.cat(scored)
    again, reasons = rescore(context, job, traces, found) if job.recheck != "none" and len(traces) else ({}, {})
    values = {"score_seconds": spent, "rows": len(traces), "recheck": reasons, **notes_of(detector)}
    return Output(key, {"score": found, **again}, noted(values, *changes))


def _score_in_time(detector: Detector, batch: Traces, seed: int, limit: float) -> tuple[Tensor, float, Changes]:
    """Return scores, the seconds that they took, and what the call changed; one that took too long is repeated.

    Raises:
        AftershockError: if it takes more than ``limit`` CPU seconds an image both times.
    """
    given, taken, imported, changed = _score(detector, batch, seed)
    if imported or taken > limit * len(batch):
        # Only the first call pays for imports and compilation, and a disturbance is over.
        taken = _score(detector, batch, seed)[1]
    if taken > limit * len(batch):
        raise AftershockError(
            f"score() took {taken / len(batch):.2g} CPU seconds per image, twice: make it faster, or raise "
            f"score_seconds = {limit:g} under [limits] in the suite"
        )
    return given, taken, changed


def _score(detector: Detector, batch: Traces, seed: int) -> tuple[Tensor, float, bool, Changes]:
    """Return scores, the seconds to hold against the limit, whether the call imported modules, and what it changed."""
    # As an attack asks: without gradients. A score that is drawn is the same in every run, whatever came before.
    with torch.no_grad(), forked_rng(seed), guarded_part(detector) as changes:
        clock = Stopwatch()
        found = detector.score(batch)
        # What a plugin's process measured of itself, where that is another.
        taken, imported = spent_by(detector) or (clock.seconds, clock.imported)
    return checked_scores(found, len(batch)), taken, imported, changes


def spent_by(detector: Detector) -> tuple[float, bool] | None:
    """Return what the last answer of a plugin's detector took in its own process, as :class:`Stopwatch` counts."""
    return detector.spent if isinstance(detector, PluginDetector) else None


def notes_of(detector: Detector) -> dict[str, list[str]]:
    """Return what is known of a plugin's code in its own process: what it opened and started, and what state it left
    changed."""
    if not isinstance(detector, PluginDetector):
        return {}
    return {OPENED: detector.files, STARTED: detector.programs, CHANGED: detector.changed}
