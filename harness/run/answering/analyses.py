"""Answers about analyses: a whole cell, computed from the run directory, and the report on one."""

from __future__ import annotations

import pickle
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ....analyses.base import Analysis
from ...core.errors import UsageError
from ...core.registry import DATASETS, MODELS
from ...suite.instances import make_analysis
from ..findings import reported
from ..tasks.analyses import compute_analysis
from ..tasks.task_context import open_task_context
from ..workers.channel import Message
from ..workers.plugins import open_plugin_file
from .router import Answers, Kind

if TYPE_CHECKING:
    from ...suite.resolved import Suite


def facts(analysis: Analysis[Any]) -> dict[str, Any]:
    """Return what an instance says about itself."""
    return {"needs": [asdict(need) for need in analysis.needs]}


def _open_others(suite: Suite) -> None:
    """Open the other plugins of a suite, each in a process of its own, where its data set or a model is theirs."""
    wanted = [(DATASETS, suite.data.name), *((MODELS, part.name) for part in suite.models if part.name)]
    if all(name in registry.names() for registry, name in wanted):
        return
    for path in suite.plugins:
        # What is missing still is said when it is looked for.
        with suppress(UsageError):
            open_plugin_file(path)


def _measure(answers: Answers, asked: Message) -> Message:
    # From this process's owner, who started it.
    worker_context, job = pickle.loads(asked.tensor("task").numpy().tobytes())  # noqa: S301
    _open_others(worker_context.suite)
    context = open_task_context(worker_context, lambda text: None)

    def progress(share: float) -> None:
        answers.call("progress", {"share": share}, {})

    context.on_progress = progress
    try:
        found = compute_analysis(context, asked.values["values"]["key"], job)
    finally:
        context.close()
    return Message({"output": dict(found.values)}, dict(found.tensors))


def _report(answers: Answers, asked: Message) -> Message:
    held = {name: asked.tensor(name) for name in asked.tensors}
    tensors, value = reported(answers.part(asked), held, asked.values["values"]["value"]).stored()
    return Message({"findings": value}, tensors)


KIND = Kind(lambda part, about: make_analysis(part), facts, {"measure": _measure, "report": _report})
