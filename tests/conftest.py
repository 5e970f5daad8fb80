"""What all tests share: where real data is, and one small thread pool for models that gain nothing from more."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The root of the real data sets; skips where there is none."""
    root = os.environ.get("AFTERSHOCK_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("set AFTERSHOCK_DATA to a folder with the real data sets")
    return Path(root)
