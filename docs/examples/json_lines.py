"""A hook that writes what happens in runs as JSON, a line each, for a dashboard or a log collector.

Named by an entry point in the group ``aftershock.hooks`` of an installed distribution:

    [project.entry-points."aftershock.hooks"]
    json-lines = "json_lines:JsonLines"
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aftershock import Hook


class JsonLines(Hook):
    """Appends to the file that the environment variable ``RUN_LOG`` names."""

    def __init__(self) -> None:
        self._log = Path(os.environ.get("RUN_LOG", "runs.jsonl"))

    def run_started(self, facts: Mapping[str, Any]) -> None:
        self._write("started", facts)

    def cell_finished(self, facts: Mapping[str, Any]) -> None:
        # Thousands of cells are done; what fails is worth a line.
        if facts["status"] == "failed":
            self._write("failed", facts)

    def row_ready(self, facts: Mapping[str, Any]) -> None:
        kept = ("dataset", "model", "detector", "rank", "robust_accuracy_at_fpr_5", "price")
        self._write("row", {name: facts[name] for name in kept})

    def run_finished(self, facts: Mapping[str, Any]) -> None:
        self._write("finished", facts)

    def _write(self, what: str, facts: Mapping[str, Any]) -> None:
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "what": what, **facts}
        with self._log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
