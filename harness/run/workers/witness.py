"""Scores from a process that has done nothing else: no fit, no attack, no other detector's state.

A detector must give an image the same score wherever it is asked. The built-in parts share a process for this. A
plugin's detector has another one for each question, which sees one set, in an order of its own, while everything else
of plugins stands still: what was scored elsewhere or before cannot tell it what to answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.content_keys import canonical
from ...core.registry import DETECTORS
from ...core.seeds import generator
from ...tracing.rows import Rows
from ...tracing.traces import Traces
from .packing import pack_traces
from .pool import POOL
from .process import Source, Worker
from .standins.part import PluginPart

DECIDES_NO_NUMBER = True

# What the view of a name makes of images, with draws of its own.
Transform = Callable[[str, Tensor, torch.Generator], Tensor]
# Traces of images in an order, int64 (n,), by views that are made so, for one evaluation.
Viewed = Callable[[Transform, Tensor, int], Traces]


def expect_questions(name: str, made_of: Sequence[str] = ()) -> None:
    """Let a process get ready for questions about a detector: that takes seconds.

    Args:
        name: the detector's registry name.
        made_of: names of others that it asks.
    """
    if _is_foreign(name, made_of):
        POOL.worker(_source(name), "witness").prepare()
    else:
        POOL.worker(_source(name), "witness").start()


def witness_scores(
    name: str, params: Mapping[str, Any], tensors: Mapping[str, Tensor], state: Any, traces: Traces, repeats: int = 1,
    cpu: float = 60.0, plugins: Sequence[Path] = (), made_of: Sequence[str] = (), limit: str = "",
    viewed: Viewed | None = None,
) -> Tensor:  # fmt: skip
    """Return the scores that a fitted detector gives there, float64 (repeats, n).

    Args:
        name: the detector's registry name.
        params: its parameters.
        tensors: of its fitted state, and
        state: the rest of it (:func:`aftershock.harness.core.state.split_state`).
        traces: of n images, with views and input gradients.
        repeats: evaluations, of one detector that is made anew for them.
        cpu: seconds that all of them may take.
        plugins: files whose detectors a built-in one may be made of.
        made_of: names of other detectors that it asks.
        limit: what of a suite sets ``cpu``, for a person.
        viewed: traces the same images by views that are made there, where the detector has views: a process that has
            seen other images could have kept them.

    Raises:
        AftershockError: if it gives no scores there, with the reason.
        WorkerEndedError: if the process did not answer.
    """
    foreign = _is_foreign(name, made_of)
    order = torch.arange(len(traces))
    if foreign:
        order = torch.randperm(len(traces), generator=generator(0, "recheck", "process", "order"))
        traces = traces.pick(order).alone()
    given = json.loads(canonical(dict(params)))

    def ask(worker: Worker, shown: Traces, first: int, count: int) -> Tensor:
        rows, described = pack_traces(shown)
        question = {
            "name": name, "params": given, "state": state, "traces": described, "first": first, "repeats": count,
            "plugins": [str(path) for path in plugins],
        }  # fmt: skip
        sent: dict[str, Tensor | Rows] = {**rows, **{f"state/{n}": value for n, value in tensors.items()}}
        return worker.ask("rescore", question, sent, cpu=cpu, limit=limit).tensor("scores").double()

    with POOL.fresh(_source(name)) if foreign else nullcontext(POOL.worker(_source(name), "witness")) as worker:
        if viewed is None or not isinstance(DETECTORS.get(name), PluginPart):
            scores = ask(worker, traces, 0, repeats)
        else:
            number = worker.ask("make", {"kind": "detectors", "name": name, "params": given}).values["id"]
            transform = partial(_transformed, worker, number, cpu, limit)
            # A view that is drawn is drawn anew for each evaluation.
            scores = torch.cat([ask(worker, viewed(transform, order, n).alone(), n, 1) for n in range(repeats)])
    return scores.reshape(repeats, len(traces))[:, order.argsort()]


def _transformed(
    worker: Worker, number: int, cpu: float, limit: str, view: str, images: Tensor, draws: torch.Generator
) -> Tensor:
    """Return what a detector's view makes of images in one process."""
    given: dict[str, Tensor | Rows] = {"images": images, "random": draws.get_state()}
    return worker.ask("transform", {"view": view, "id": number}, given, cpu=cpu, limit=limit).tensor("images")


def _source(name: str) -> Source:
    detector = DETECTORS.get(name)
    return detector.source if isinstance(detector, PluginPart) else Source()


def _is_foreign(name: str, made_of: Sequence[str]) -> bool:
    """Return whether a plugin's code is asked."""
    return any(isinstance(DETECTORS.get(part), PluginPart) for part in (name, *made_of))
