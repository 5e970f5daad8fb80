"""Where data sets and the shared cache lie when a caller does not say."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def data_root(data: Path | str | None = None) -> Path:
    """Return where data sets lie: given, else ``AFTERSHOCK_DATA``, else the user's data directory."""
    place = data or os.environ.get("AFTERSHOCK_DATA") or platformdirs.user_data_dir("aftershock")
    return Path(place).expanduser().absolute()


def cache_root(cache: Path | str | None = None) -> Path:
    """Return where finished cells are shared: given, else ``AFTERSHOCK_CACHE``, else the user's cache directory."""
    place = cache or os.environ.get("AFTERSHOCK_CACHE") or platformdirs.user_cache_dir("aftershock")
    return Path(place).expanduser().absolute()
