"""What the tests of detectors share: an oracle and the made-up network."""

from __future__ import annotations

from typing import Any

import pytest
from support.activations import World


@pytest.fixture
def pytorch_ood() -> Any:
    """The detectors of pytorch-ood, as an oracle; skips where it is not installed."""
    return pytest.importorskip("pytorch_ood.detector", reason="pytorch-ood, the oracle, is not installed")


@pytest.fixture(scope="session")
def world() -> World:
    return World()
