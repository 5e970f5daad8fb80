"""Fits and scores of detectors; what a plugin's detector returns is checked here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from ..cells import FitJob, ScoreJob, TraceKeys
from ..engines import Output
from ..errors import AftershockError
from ..instances import make_detector
from ..memory import peak_memory
from ..seeds import derive_seed, forked_rng, generator
from .rescoring import rescore
from .workbench import Workbench

# Rows that a detector scores at once: few at first, so that a slow one is noticed early.
SCORE_BATCHES = (1, 8, 64, 512)
# The first row may pay for imports and compilation.
FIRST_ROW = 30


def compute_fit(bench: Workbench, key: str, job: FitJob) -> Output:
    """Fit a detector; its state is what is kept."""
    from ...detectors.base import split_state

    detector = make_detector(job.part)
    bench.expect_fresh_scores()
    sources = _sources(bench, (*job.clean, *job.negatives))
    clean = replace(
        bench.traces(job.model, (*job.clean, *job.negatives), detector.needs),
        label_rows=bench.dataset.train.labels(sources.tolist()),
        source_rows=sources,
        random=generator(job.seed, "fit"),
    )
    perturbed = None
    if job.perturbed:
        made = bench.traces(job.model, job.perturbed, detector.needs)
        perturbed = replace(made, source_rows=_sources(bench, job.perturbed))
    _import_first()
    began = time.perf_counter()
    with peak_memory() as peak:
        fitted = detector.fit(clean, perturbed)
    seconds = time.perf_counter() - began
    if fitted is not detector:
        raise AftershockError("fit() must return the detector itself (`return self`)")
    tensors, state = split_state(detector.state())
    return Output(key, tensors, {"state": state, "peak_bytes": peak.rise, "fit_seconds": seconds})


@cache
def _import_first() -> None:
    """What most detectors import when they are fitted, so that it is not put down to the first of them."""
    for name in ("scipy.stats", "sklearn.linear_model", "sklearn.covariance"):
        import_module(name)


def _sources(bench: Workbench, chunks: Sequence[TraceKeys]) -> Tensor:
    """Which image of the train split each row of fit traces was made from, int64 (n,)."""
    found = []
    for images in (chunk.images for chunk in chunks):
        if not images.source:
            found.append(bench.sets.fit[images.start : images.stop])
            continue
        success = bench.reader.tensor(images.source, "success")
        kept = {"success": success, "failed": ~success, "all": torch.ones_like(success)}[images.which]
        found.append(bench.sets.fit[bench.reader.tensor(images.source, "row")[kept]])
    return torch.cat(found)


def compute_scores(bench: Workbench, key: str, job: ScoreJob) -> Output:
    """Score traces with a fitted detector, float64 (n,)."""
    detector = bench.detector(job.fit, job.part)
    traces = bench.traces(job.model, job.traces, detector.needs)
    spent = 0.0
    scores, start, limit = [torch.empty(0, dtype=torch.float64)], 0, bench.suite.limits.score_seconds
    # One that was fast enough before need not be watched so closely again; what is drawn depends on the batches.
    sizes = SCORE_BATCHES[-1:] if job.fit in bench.timely and not detector.randomised else SCORE_BATCHES
    while start < len(traces):
        batch = traces[start : start + sizes[min(len(scores), len(sizes)) - 1]]
        began = time.perf_counter()
        # As an attack asks: without gradients. A score that is drawn is the same in every run, whatever came before.
        with torch.no_grad(), forked_rng(derive_seed(0, "score", key, start)):
            scores.append(checked_scores(detector.score(batch.alone()), len(batch)))
        taken = time.perf_counter() - began
        spent, seconds = spent + taken, taken / len(batch)
        if seconds > limit * (1 if start else FIRST_ROW):
            raise AftershockError(
                f"score() took {seconds:.1f} s per image: make it faster, or raise score_seconds = {limit:g} under "
                "[limits] in the suite"
            )
        start += len(batch)
    bench.timely.add(job.fit)
    found = torch.cat(scores)
    again, reasons = rescore(bench, job, traces, found) if job.recheck != "none" and len(traces) else ({}, {})
    values = {"score_seconds": spent, "rows": len(traces), "recheck": reasons}
    return Output(key, {"score": found, **again}, values)


def checked_scores(found: object, images: int) -> Tensor:
    """What ``score`` returned, as float64 on the CPU.

    Raises:
        AftershockError: unless it is one finite real number for each image; integers are numbers, truth values are not.
    """
    if not isinstance(found, Tensor) or tuple(found.shape) != (images,):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise AftershockError(f"score() gave {shape} for {images} images instead of shape ({images},)")
    if found.is_complex() or found.dtype == torch.bool or found.layout != torch.strided:
        kind = str(found.dtype if found.layout == torch.strided else found.layout).removeprefix("torch.")
        raise AftershockError(f"score() gave {kind} values: return a real number for each image, such as float32")
    if not bool(torch.isfinite(found).all()):
        raise AftershockError(f"score() gave {int((~torch.isfinite(found)).sum())} values that are not finite")
    return found.detach().double().cpu()
