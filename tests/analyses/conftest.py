"""What the tests of analyses share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aftershock.analyses.base import Analysis, AnalysisInput, measured_class
from aftershock.analyses.findings import Findings
from aftershock.harness.core.state import decode, encode
from safetensors.torch import load, save
from support.cells import ledger, tensors


def _study(analysis: Analysis[Any], given: AnalysisInput) -> Findings:
    tensors, value = encode(analysis.measure(given))
    stored = load(save(tensors)) if tensors else {}
    return analysis.report(decode(measured_class(analysis), stored, json.loads(json.dumps(value, allow_nan=False))))


@pytest.fixture(scope="session")
def study() -> Callable[..., Findings]:
    """What an analysis reports of what it measured, which was stored and read in between."""
    return _study


@pytest.fixture(scope="session")
def of_run() -> Callable[..., Findings]:
    """What an analysis reports of the first of its cells in a run directory."""

    def read(run: Path, analysis: Analysis[Any], label: str) -> Findings:
        for key, record in sorted(ledger(run).items()):
            if (record.kind, record.name.part) == ("analysis", label):
                held = tensors(run, key)
                return analysis.report(decode(measured_class(analysis), held, record.values["measured"]))
        raise AssertionError(f"{run} has no analysis {label}")

    return read
