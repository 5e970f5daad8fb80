"""Rows of a board in the form in which model repositories of the Hugging Face Hub hold results.

``.eval_results/*.yaml``, as described in huggingface/hub-docs, docs/hub/eval-results.md (at 064c754): for each row a
data set (the repository of the benchmark), a task, a value, a date, a source and notes. What is written is YAML of
which every text is a JSON string, so that no text of an entry can be anything else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from ...harness.core.errors import UsageError
from ..threats import budget
from .board import Placed

DECIDES_NO_NUMBER = True

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def hub_files(placed: Sequence[Placed], repository: str, source: str = "") -> dict[str, bytes]:
    """Return a file for each row that has a robust accuracy, by name.

    Args:
        placed: rows of a board.
        repository: of the benchmark, ``owner/name``: where the Hub shows its leaderboard.
        source: an address where the board stands; empty for none.

    Raises:
        UsageError: if ``repository`` is none, or ``source`` no address.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise UsageError(f"{repository!r} is no repository of the Hub: write owner/name.")
    if source and not source.startswith("https://"):
        raise UsageError(f"{source!r} is no address: it starts with https://.")
    files = {}
    for row in placed:
        e, value = row.entry, row.entry.metrics.robust_accuracy_at_fpr_5
        if value is None:
            continue
        about = budget(e.threat.norm, f"{e.threat.eps:.9g}")
        rank = f"rank {row.ranks.rank}" if row.ranks is not None else f"not ranked: {row.reason}"
        notes = (
            f"detector {row.label} on {e.dataset} / {e.model}; robust accuracy at FPR 5 % for {about}, "
            f"{e.metrics.n_images} images, {len(e.protocol.seeds)} seeds; {rank}; {row.standing}; "
            f"protocol {e.protocol.digest}"
        )
        lines = [
            "- dataset:",
            f"    id: {json.dumps(repository)}",
            f"    task_id: {json.dumps(f'{e.dataset}-{e.model}-{e.threat.norm}-{e.threat.eps:.6g}')}",
            f"  value: {value!r}",
            f"  date: {json.dumps(e.created)}",
            *(["  source:", f"    url: {json.dumps(source)}"] if source else []),
            '  evaluation_framework: "aftershock"',
            f"  notes: {json.dumps(notes)}",
        ]
        files[f"{e.stem}.yaml"] = ("\n".join(lines) + "\n").encode()
    return files
