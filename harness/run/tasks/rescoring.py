"""Scores asked for again, in the ways in which a detector could tell who asks, in what order and in which company.

A valid score is a function of the image alone. What is compared here is judged by
:mod:`aftershock.harness.evaluation.consistency`, which knows thresholds; nothing is decided here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ....detectors.base.detector import Detector
from ...core.errors import AftershockError, UnavailableError
from ...core.process_state import guarded_part
from ...core.seeds import derive_seed, forked_rng, generator
from ...evaluation.consistency import EVALUATIONS, SAMPLE, moved
from ...plan.cells import ScoreJob
from ...tracing.traces import Traces
from ..workers.standins.detectors import only_own_code
from .task_context import TaskContext

# Other batches: more single rows than may differ by chance, then batches whose size divides none of ours.
_SINGLES, _SINGLE_SHARE, _ODD = 5, 0.03, 31


def rescore(
    context: TaskContext, job: ScoreJob, traces: Traces, scores: Tensor
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Score some rows of a set again.

    One evaluation in another order, in other batches and with gradient mode on tells whether any of these matters, or
    chance; only where it differs each is tried alone, so that a valid detector costs three evaluations.

    Args:
        context: opens detector, model and images.
        job: the cell's job; ``job.recheck`` says which rows.
        traces: the stored traces of all n rows.
        scores: as stored, float64 (n,).

    Returns:
        ``recheck:rows``, int64 (r,): positions among the rows; and by context, float64 (evaluations, r):
        ``recheck:process``, ``recheck:attack`` (from the images themselves, as an attack asks), and where something
        matters ``recheck:same`` (at least two, the same question again), ``recheck:order``, ``recheck:batch`` and
        ``recheck:gradients``. A context in which the detector gives no scores is left out, and why is in the second
        value; its reason is empty where no other process has the detector.
    """
    detector = context.detector(job.fit, job.part)
    rows = _rows(context, job, len(traces), detector)
    picked, count = traces.pick(rows).alone(), EVALUATIONS if detector.randomised else 1
    order = torch.randperm(len(rows), generator=generator(0, "recheck", "order"))
    reordered, back = picked.pick(order).alone(), order.argsort()
    found: dict[str, Tensor] = {"recheck:rows": rows}
    reasons: dict[str, str] = {}

    def evaluate(how: str, ask: Callable[[int], Tensor], times: int = count, gradients: bool = False) -> bool:
        try:
            given = []
            for number in range(times):
                # A detector that draws from global generators draws anew each time, and the same in every run.
                seed = derive_seed(0, "recheck", how, number)
                with forked_rng(seed), torch.set_grad_enabled(gradients), guarded_part(detector):
                    answer = ask(number)
                given.append(answer.detach().double().cpu())
            found[f"recheck:{how}"] = torch.stack(given)
        except Exception as error:
            reasons[how] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return how not in reasons

    def in_batches(part: Traces) -> Tensor:
        return torch.cat([detector.score(batch) for batch in _cut(part)])

    whole = evaluate("all", lambda number: in_batches(reordered)[back], 1, gradients=True)
    together = found.pop("recheck:all", None)
    reasons.pop("all", None)
    matters = not whole or together is None or _differs(scores[rows], together[0])
    if matters or detector.randomised:
        evaluate("same", lambda number: detector.score(picked), max(2, count))
        evaluate("order", lambda number: detector.score(reordered)[back])
        evaluate("batch", lambda number: in_batches(picked))
        evaluate("gradients", lambda number: detector.score(picked), gradients=True)
    images, model = _images(context, job, rows), context.open(job.model)
    plain = context.fresh_codes(job, rows, images) if only_own_code(detector) else None
    evaluate("attack", lambda number: model.score(detector, images.to(context.device), number, plain)[1])
    try:
        found["recheck:process"] = context.fresh_scores(job.fit, job.part, picked, count, images, model)
    except UnavailableError:
        reasons["process"] = ""
    except AftershockError as error:
        reasons["process"] = str(error)
    return found, reasons


def _differs(stored: Tensor, found: Tensor) -> bool:
    """Return whether any score differs: by its size, or by its place among the others, whatever their scale."""
    if not torch.allclose(found, stored, rtol=1e-5, atol=1e-6):
        return True
    one, other = stored.numpy(), found.numpy()
    return bool(np.isfinite(one).all() and (moved(one, one, other) > 1 / len(one)).any())


def _rows(context: TaskContext, job: ScoreJob, count: int, detector: Detector) -> Tensor:
    """Return which rows are scored again: all, or a sample in which successful perturbations come first."""
    if job.recheck == "all" or detector.randomised or count <= SAMPLE:
        return torch.arange(count)
    drawn = torch.randperm(count, generator=generator(0, "recheck", "rows"))
    sources = [chunk.images.source for chunk in job.traces if chunk.images.source]
    names = {"success"} if sources and all(_has(context, s, "success") for s in sources) else set()
    if names:
        success = torch.cat([context.reader.tensor(s, "success") for s in sources]).bool()
        # Half of the sample are positives, as far as there are enough.
        positive, rest = drawn[success[drawn]][: SAMPLE // 2], drawn
        chosen = torch.cat([positive, rest[~torch.isin(rest, positive)]])
        return chosen[:SAMPLE].sort().values
    return drawn[:SAMPLE].sort().values


def _has(context: TaskContext, key: str, name: str) -> bool:
    return name in context.reader.load(key)


def _cut(traces: Traces) -> Sequence[Traces]:
    """Return the same rows in other batches."""
    singles = min(max(_SINGLES, math.ceil(_SINGLE_SHARE * len(traces))), len(traces))
    edges = [*range(singles), *range(singles, len(traces), _ODD), len(traces)]
    return [traces[a:b].alone() for a, b in pairwise(edges) if a < b]


def _images(context: TaskContext, job: ScoreJob, rows: Tensor) -> Tensor:
    """Return the images of some rows of a set, read chunk by chunk."""
    parts, start = [], 0
    for chunk in job.traces:
        length = int(context.reader.values(chunk.logits)["rows"])
        here = rows[(rows >= start) & (rows < start + length)] - start
        if len(here):
            parts.append(context.images(chunk.images)[here])
        start += length
    return torch.cat(parts)
