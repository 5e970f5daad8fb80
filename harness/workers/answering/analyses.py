"""Answers about analyses: a whole cell, computed from the run directory."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ...analysis import Analysis
from ...errors import UsageError
from ...registry import load_plugin_file
from ..channel import Message

if TYPE_CHECKING:
    from .router import Answers


def facts(analysis: Analysis) -> dict[str, Any]:
    """What an instance says about itself."""
    return {"needs": [asdict(need) for need in analysis.needs]}


def _study(answers: Answers, asked: Message) -> Message:
    from ...computing.analyses import compute_analysis
    from ...computing.context import open_bench

    # From this process's owner, who started it.
    context, job = pickle.loads(asked.tensor("task").numpy().tobytes())  # noqa: S301
    for path in context.suite.plugins:
        # The data set may be another plugin's.
        with suppress(UsageError):
            load_plugin_file(path)
    bench = open_bench(context, lambda text: None)

    def tell(share: float) -> None:
        answers.call("tell", {"share": share}, {})

    bench.tell = tell
    try:
        found = compute_analysis(bench, asked.values["values"]["key"], job)
    finally:
        bench.close()
    return Message({"output": dict(found.values)}, dict(found.tensors))


ANSWERS: dict[str, Callable[[Answers, Message], Message]] = {"study": _study}
