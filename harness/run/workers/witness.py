"""Scores from a process that has done nothing else: no fit, no attack, no other detector's state.

A detector must give an image the same score wherever it is asked. Each plugin has a process for this, and the built-in
parts share one; none of them is asked anything else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ...core.content_keys import canonical
from ...core.registry import DETECTORS
from ...tracing.rows import Rows
from ...tracing.traces import Traces
from .packing import pack_traces
from .pool import POOL
from .process import Source, Worker
from .standins import PluginPart

DECIDES_NO_NUMBER = True


def witness_of(detector: Any) -> Worker:
    """The process that is asked about a detector, by what its registry holds."""
    return POOL.worker(detector.source if isinstance(detector, PluginPart) else Source(), "witness")


def witness_scores(
    name: str, params: Mapping[str, Any], tensors: Mapping[str, Tensor], state: Any, traces: Traces, repeats: int = 1,
    cpu: float = 60.0, plugins: Sequence[Path] = (),
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

    Raises:
        AftershockError: if it gives no scores there, with the reason.
        WorkerEndedError: if the process did not answer.
    """
    rows, described = pack_traces(traces)
    question = {
        "name": name, "params": json.loads(canonical(dict(params))), "state": state, "traces": described,
        "repeats": repeats, "plugins": [str(path) for path in plugins],
    }  # fmt: skip
    sent: dict[str, Tensor | Rows] = {**rows, **{f"state/{n}": value for n, value in tensors.items()}}
    found = witness_of(DETECTORS.get(name)).ask("rescore", question, sent, cpu=cpu)
    return found.tensor("scores").double().reshape(repeats, len(traces))
