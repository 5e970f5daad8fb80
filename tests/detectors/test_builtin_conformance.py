"""Every registered detector keeps the contract that plugins are held to."""

from __future__ import annotations

from typing import Any

import pytest
from aftershock.harness.conformance import check_detector
from aftershock.harness.core.registry import DETECTORS

# What makes some of them quick; their defaults are for real data.
QUICK: dict[str, dict[str, Any]] = {
    "codeshift": {"rows": 4, "columns": 4, "epochs": 5},
    "latent": {"latent": 8, "units": 64, "hidden": [32], "epochs": 5},
    "layerwise": {"latent": 8, "hidden": 32, "epochs": 5},
    "cpr": {"steps": 2, "step_size": 0.005},
    # A median filter leaves little of any image of 8 x 8 pixels.
    "feature-squeezing": {"squeezers": ["bit-depth"], "bits": 3},
}


@pytest.mark.parametrize("name", sorted(DETECTORS.builtins))
def test_every_rule_is_kept(name: str) -> None:
    findings = check_detector(name, QUICK.get(name))
    broken = [str(f) for f in findings if f.status == "failed"]
    assert not broken, "\n".join(broken)
    skipped = {f.name for f in findings if f.status == "skipped"}
    assert skipped <= {"gpu", "surrogate"}
